<?php
// Signs a user in: a row in the table of sessions, which is all that ws-server has to know.
declare(strict_types=1);

require __DIR__ . '/../site.php';

only_post();
$typed = array_filter([$_POST['user'] ?? '', $_POST['password'] ?? ''], is_string(...));
if (count($typed) !== 2) {
    finish(400, 'the user and the password are text');
}
[$typed, $password] = $typed;
// The session gets the name as the table has it: for the database `ANN` and `ann ` are `ann`, for ws-server they are not.
$row = query('SELECT name, password FROM users WHERE name = ?', $typed)->fetch(PDO::FETCH_NUM);
if ($row === false || !password_verify($password, $row[1])) {
    finish(403, 'unknown user or wrong password');
}
$user = $row[0];
$id = bin2hex(random_bytes(16));
$expires = time() + 86400;
query('INSERT INTO sessions VALUES (?, ?, ?, ?)', $id, $user, $expires, ip());
$cookie = login() === 'cookie' ? encrypted(COOKIE, $id) : $id;
setcookie(COOKIE, $cookie, ['expires' => $expires, 'path' => '/', 'httponly' => true, 'samesite' => 'Lax']);
header('Location: /', true, 303);
