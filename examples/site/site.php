<?php
// What all pages share: the database and the session of the request.
declare(strict_types=1);

require __DIR__ . '/ws.php';

const COOKIE = 'site_session';

function query(string $sql, string|int ...$values): PDOStatement
{
    static $database;
    $database ??= new PDO(getenv('SITE_DATABASE'), getenv('SITE_DATABASE_USER'), getenv('SITE_DATABASE_PASSWORD'));
    $statement = $database->prepare($sql);
    $statement->execute($values);
    return $statement;
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

/** Who is signed in. */
function user(): ?string
{
    $sql = 'SELECT user FROM sessions WHERE id = ? AND ip = ? AND expires > UNIX_TIMESTAMP()';
    return query($sql, $_COOKIE[COOKIE] ?? '', ip())->fetchColumn() ?: null;
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
 */
function close_connections(callable $close): void
{
    try {
        $close();
    } catch (RuntimeException $error) {
        error_log("connections were not closed: {$error->getMessage()}");
    }
}
