<?php
// Signs a user in: a row in the table of sessions, which is all that ws-server has to know.
declare(strict_types=1);

require __DIR__ . '/../site.php';

only_post();
$user = $_POST['user'] ?? '';
$hash = query('SELECT password FROM users WHERE name = ?', $user)->fetchColumn();
if ($hash === false || !password_verify($_POST['password'] ?? '', $hash)) {
    finish(403, 'unknown user or wrong password');
}
$id = bin2hex(random_bytes(16));
$expires = time() + 86400;
query('INSERT INTO sessions VALUES (?, ?, ?, ?)', $id, $user, $expires, ip());
$cookie = login() === 'cookie' ? encrypted(COOKIE, $id) : $id;
setcookie(COOKIE, $cookie, ['expires' => $expires, 'path' => '/', 'httponly' => true, 'samesite' => 'Lax']);
header('Location: /', true, 303);
