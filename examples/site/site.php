<?php
// What all pages share: the database and the session of the request.
declare(strict_types=1);

require __DIR__ . '/../../clients/php/autoload.php';
require __DIR__ . '/cookie.php';

const COOKIE = 'site_session';

function database(): PDO
{
    static $database;
    return $database ??= new PDO(getenv('SITE_DATABASE'), getenv('SITE_DATABASE_USER'), getenv('SITE_DATABASE_PASSWORD'));
}

function query(string $sql, string|int ...$values): PDOStatement
{
    $statement = database()->prepare($sql);
    $statement->execute($values);
    return $statement;
}

/**
 * How ws-server learns who a client is: `table` (it reads the sessions), `cookie` (it asks this site, which encrypts its
 * cookies) or `token` (the page brings a token).
 */
function login(): string
{
    return getenv('SITE_LOGIN') ?: 'table';
}

/**
 * The visitor's address. Under php-fpm that is REMOTE_ADDR. Behind nginx by HTTP, as here, nginx says it in a header,
 * which counts only if the request comes from nginx: anybody else can send it as well.
 */
function ip(): string
{
    $peer = $_SERVER['REMOTE_ADDR'];
    $is_nginx = PHP_SAPI === 'cli-server' && in_array($peer, ['127.0.0.1', '::1'], true);
    return $is_nginx ? $_SERVER['HTTP_X_REAL_IP'] ?? $peer : $peer;
}

/** The id of the session in a cookie's value. */
function session(?string $cookie): string
{
    return (string) (login() === 'cookie' ? decrypted(COOKIE, (string) $cookie) : $cookie);
}

/**
 * Who is signed in with a session at an address, and until when.
 *
 * @return array{?string, ?int}
 */
function user_of(string $session, string $ip): array
{
    $sql = 'SELECT user, expires FROM sessions WHERE id = ? AND ip = ? AND expires > UNIX_TIMESTAMP()';
    $row = query($sql, $session, $ip)->fetch(PDO::FETCH_NUM);
    return $row === false ? [null, null] : [$row[0], (int) $row[1]];
}

/** Who is signed in. */
function user(): ?string
{
    return user_of(session($_COOKIE[COOKIE] ?? null), ip())[0];
}

/** Ends the request with a status and a line of text. */
function finish(int $status, string $text): never
{
    http_response_code($status);
    header('Content-Type: text/plain; charset=utf-8');
    exit("$text\n");
}

/** What changes something comes by POST, to which other sites' pages cannot add this site's cookie. */
function only_post(): void
{
    if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
        header('Allow: POST');
        finish(405, 'only POST');
    }
}

/**
 * Closes connections, if a ws-server answers. If none does, the page goes on: connections whose session is gone are
 * closed within 30 s all the same.
 *
 * @param callable(WsCluster\Client): void $close
 */
function close_connections(callable $close): void
{
    try {
        $close(new WsCluster\Client());
    } catch (WsCluster\Exception $error) {
        error_log("connections were not closed: {$error->getMessage()}");
    }
}
