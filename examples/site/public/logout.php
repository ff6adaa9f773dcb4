<?php
// Signs the user out, here or (`everywhere`) on all devices: first the session goes, so that nobody comes back with
// it, then its connections.
declare(strict_types=1);

require __DIR__ . '/../site.php';

use WsCluster\Client;

only_post();
$user = user();
$session = session($_COOKIE[COOKIE] ?? null);
setcookie(COOKIE, '', ['expires' => 1, 'path' => '/', 'httponly' => true, 'samesite' => 'Lax']);
if ($user !== null && isset($_POST['everywhere'])) {
    query('DELETE FROM sessions WHERE user = ?', $user);
    close_connections(fn (Client $client) => $client->close(user: $user));
} elseif ($user !== null) {
    query('DELETE FROM sessions WHERE id = ?', $session);
    close_connections(fn (Client $client) => $client->close(session: $session));
}
header('Location: /', true, 303);
