<?php
// Signs the user out, here or (`everywhere`) on all devices: first the session goes, so that nobody comes back with
// it, then its connections.
declare(strict_types=1);

require __DIR__ . '/../site.php';

only_post();
$user = user();
setcookie(COOKIE, '', ['expires' => 1, 'path' => '/', 'httponly' => true, 'samesite' => 'Lax']);
if ($user !== null && isset($_POST['everywhere'])) {
    query('DELETE FROM sessions WHERE user = ?', $user);
    close_connections(fn () => ws_close_user($user));
} elseif ($user !== null) {
    query('DELETE FROM sessions WHERE id = ?', $_COOKIE[COOKIE]);
    close_connections(fn () => ws_close_session($_COOKIE[COOKIE]));
}
header('Location: /', true, 303);
