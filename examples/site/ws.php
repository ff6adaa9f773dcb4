<?php
// What the site asks of its ws-servers: to publish a message, and to close connections. Goes to their own ports, past
// nginx and any other proxy, with the key that only the site has. Needs no PHP extension, and no allow_url_fopen.
//
// Settings, as environment variables:
//   WS_SERVERS             their addresses, as http://127.0.0.1:9001 http://127.0.0.1:9002
//   WS_SERVER_PUBLISH_KEY  the key
declare(strict_types=1);

/** Seconds for a connection, and for an answer if another server can be asked instead. */
const WS_CONNECT_SECONDS = 1.0;
const WS_ANSWER_SECONDS = 2.0;
/** Seconds for the answer of the last server: one that waits for a new master answers within 5. */
const WS_LAST_ANSWER_SECONDS = 6.0;
/** Seconds in which a server that did not answer is asked only after the others. */
const WS_FAILED_SECONDS = 10;

/**
 * Publishes a message to `all`, `registered`, `user:ID`, `group:ID`, `session:ID` or `property:NAME=VALUE`.
 *
 * `$details` are the arguments of the message. Their integer keys do not count, so that `array_filter` may have left
 * holes; an array with text as keys is one argument, an object. (An array inside of them follows the rules of
 * json_encode: with holes it is an object. Use array_values.) Text is UTF-8.
 *
 * @throws RuntimeException It was not accepted, or nobody knows whether it was, or a setting is missing.
 * @throws JsonException It is no JSON: text in Latin-1, say, or a number that is infinite.
 */
function ws_publish(string $action, array $details, string $to): void
{
    if (array_filter(array_keys($details), is_string(...)) === []) {
        $details = array_values($details);
    }
    // With a key of its own, a message that is sent to several servers is delivered once.
    $key = bin2hex(random_bytes(16));
    ws_post('/_publish', ['action' => $action, 'details' => $details, 'to' => $to, 'key' => $key]);
}

/**
 * Closes the connections of a session, in every tab and on every server.
 *
 * @throws RuntimeException As `ws_publish`.
 */
function ws_close_session(string $id): void
{
    ws_post('/_close', ['session' => $id]);
}

/**
 * Closes the connections of a user, whatever the session.
 *
 * @throws RuntimeException As `ws_publish`.
 */
function ws_close_user(string $id): void
{
    ws_post('/_close', ['user' => $id]);
}

/** Asks one server after the other, until one accepts. */
function ws_post(string $path, array $order): void
{
    $key = trim((string) getenv('WS_SERVER_PUBLISH_KEY'));
    if ($key === '') {
        throw new RuntimeException('WS_SERVER_PUBLISH_KEY is not set: give the key of the ws-servers');
    }
    try {
        $flags = JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES;
        $body = json_encode($order, $flags);
    } catch (JsonException $error) {
        throw new JsonException("a message is UTF-8 text, finite numbers and arrays: {$error->getMessage()}", 0, $error);
    }
    $why = 'no ws-server answers';
    foreach (ws_order(ws_servers()) as [$server, $seconds]) {
        $answer = ws_ask($server, $path, $key, $body, $seconds);
        ws_remember($server, $answer === null);
        if ($answer === null) {
            continue;
        }
        [$status, $text] = $answer;
        if ($status === 204) {
            return;
        }
        $why = trim("$status $text");
        if ($status < 500) {
            break; // The next server would say the same.
        }
    }
    throw new RuntimeException($why);
}

/** @return list<string> The addresses of the servers, without a slash at the end. */
function ws_servers(): array
{
    $example = 'http://127.0.0.1:9001 http://127.0.0.1:9002';
    $servers = preg_split('/[\s,]+/', (string) getenv('WS_SERVERS'), -1, PREG_SPLIT_NO_EMPTY);
    if ($servers === []) {
        throw new RuntimeException("WS_SERVERS is not set: give the ws-servers, as $example");
    }
    foreach ($servers as $server) {
        $parts = parse_url($server);
        if (!in_array($parts['scheme'] ?? '', ['http', 'https'], true) || ($parts['host'] ?? '') === '') {
            throw new RuntimeException("WS_SERVERS: $server is no address of a ws-server: give them as $example");
        }
    }
    return array_map(fn (string $server): string => rtrim($server, '/'), $servers);
}

/**
 * In which order servers are asked, and how long each may take: first those that answered lately, of which the last has
 * the time that a change of the master takes.
 *
 * @return list<array{string, float}>
 */
function ws_order(array $servers): array
{
    $failed = array_values(array_filter($servers, ws_failed_lately(...)));
    $first = array_values(array_diff($servers, $failed));
    if ($first === []) {
        [$first, $failed] = [$failed, []];
    }
    $order = [];
    foreach ($first as $index => $server) {
        $order[] = [$server, $index === count($first) - 1 ? WS_LAST_ANSWER_SECONDS : WS_ANSWER_SECONDS];
    }
    foreach ($failed as $server) {
        $order[] = [$server, WS_ANSWER_SECONDS];
    }
    return $order;
}

/** @return array{int, string}|null The status and the text of the answer; null without one in time. */
function ws_ask(string $server, string $path, string $key, string $body, float $seconds): ?array
{
    $parts = parse_url($server);
    $tls = $parts['scheme'] === 'https';
    $host = $parts['host'];
    $port = $parts['port'] ?? ($tls ? 443 : 80);
    $address = ($tls ? 'tls' : 'tcp') . "://$host:$port";
    $stream = @stream_socket_client($address, $code, $why, WS_CONNECT_SECONDS);
    if ($stream === false) {
        return null;
    }
    $path = ($parts['path'] ?? '') . $path;
    $rest = "POST $path HTTP/1.0\r\nHost: $host:$port\r\nAuthorization: Bearer $key\r\n"
        . 'Content-Type: application/json' . "\r\nContent-Length: " . strlen($body) . "\r\n\r\n$body";
    $deadline = microtime(true) + $seconds;
    $answer = '';
    while (($left = $deadline - microtime(true)) > 0) {
        stream_set_timeout($stream, (int) $left, (int) (fmod($left, 1) * 1_000_000));
        if ($rest !== '') {
            $written = @fwrite($stream, $rest);
            if ($written === false || $written === 0) {
                $rest = ''; // A server that refuses does not read to the end, but answers.
            } else {
                $rest = substr($rest, $written);
            }
            continue;
        }
        $part = @fread($stream, 65536);
        $answer .= (string) $part;
        if ($part === false || feof($stream)) {
            break;
        }
    }
    fclose($stream);
    if (preg_match('~^HTTP/1\.[01] (\d{3})[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n(.*)~s', $answer, $found) !== 1) {
        return null;
    }
    return [(int) $found[1], trim($found[2])];
}

/** Whether a server gave no answer in the last seconds. */
function ws_failed_lately(string $server): bool
{
    $file = ws_failure_file($server);
    clearstatcache(true, $file);
    $time = @filemtime($file);
    return $time !== false && abs(time() - $time) < WS_FAILED_SECONDS;
}

/** Notes for the next requests whether a server failed. If the file cannot be written, they find out themselves. */
function ws_remember(string $server, bool $failed): void
{
    $file = ws_failure_file($server);
    if ($failed) {
        @touch($file);
    } elseif (ws_failed_lately($server)) {
        @unlink($file);
    }
}

/** The file whose time says when a server failed last; one for each user, who cannot change that of another. */
function ws_failure_file(string $server): string
{
    return sys_get_temp_dir() . '/ws-server-failed-' . md5(getmyuid() . ' ' . __DIR__ . ' ' . $server);
}
