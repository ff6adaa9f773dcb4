<?php
// A token with which the page tells ws-server its user, for SITE_LOGIN=token. A guest gets none.
declare(strict_types=1);

require __DIR__ . '/../site.php';

header('Cache-Control: no-store');
$session = session($_COOKIE[COOKIE] ?? null);
$user = user() ?? finish(403, 'sign in first');
$groups = query('SELECT name FROM memberships WHERE user = ?', $user)->fetchAll(PDO::FETCH_COLUMN);
header('Content-Type: text/plain');
// Without a line break, which is no part of a token.
echo WsCluster\Jwt::token($user, 60, session: $session, groups: $groups);
