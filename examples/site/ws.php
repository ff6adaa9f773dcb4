<?php
// What the site asks of its ws-servers: to publish a message, and to close connections. Goes to their own ports, past
// nginx, with the key that only the site has. Needs no PHP extension.
declare(strict_types=1);

/**
 * Publishes a message to `all`, `registered`, `user:ID`, `group:ID`, `session:ID` or `property:NAME=VALUE`.
 *
 * @throws RuntimeException It was not accepted, or nobody knows whether it was.
 */
function ws_publish(string $action, array $details, string $to): void
{
    // With a key of its own, a message that is sent to both servers is delivered once.
    $key = bin2hex(random_bytes(16));
    ws_post('/_publish', ['action' => $action, 'details' => $details, 'to' => $to, 'key' => $key]);
}

/** Closes the connections of a session, in every tab and on every server. */
function ws_close_session(string $id): void
{
    ws_post('/_close', ['session' => $id]);
}

/** Closes the connections of a user, whatever the session. */
function ws_close_user(string $id): void
{
    ws_post('/_close', ['user' => $id]);
}

/** Asks one server after the other, until one accepts. */
function ws_post(string $path, array $order): void
{
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => [
            'Authorization: Bearer ' . getenv('WS_SERVER_PUBLISH_KEY'),
            'Content-Type: application/json',
        ],
        'content' => json_encode($order, JSON_THROW_ON_ERROR),
        'timeout' => 6, // A server answers within 5 seconds.
        'ignore_errors' => true, // Else there is no text to an error.
    ]]);
    $why = 'no ws-server answers';
    foreach (explode(' ', getenv('WS_SERVERS')) as $server) {
        $answer = @fopen($server . $path, 'r', false, $context);
        if ($answer === false) {
            continue;
        }
        $status = (int) explode(' ', stream_get_meta_data($answer)['wrapper_data'][0])[1];
        if ($status === 204) {
            return;
        }
        $why = "$status " . trim(stream_get_contents($answer));
        if ($status < 500) {
            break; // The next server would say the same.
        }
    }
    throw new RuntimeException($why);
}
