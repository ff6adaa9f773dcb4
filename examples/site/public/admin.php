<?php
// For administrators of the site: whether the ws-servers answer, with a button that starts the first one.
declare(strict_types=1);

require __DIR__ . '/../site.php';
require __DIR__ . '/../admin.php';

$user = user() ?? finish(403, 'sign in first');
if (query('SELECT 1 FROM memberships WHERE user = ? AND name = ?', $user, 'admins')->fetchColumn() === false) {
    finish(403, 'only for administrators');
}
header("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'");
try {
    $servers = WsCluster\Servers::of()->urls();
    // What changes something comes by POST, to which other sites' pages cannot add this site's cookie.
    $outcome = $_SERVER['REQUEST_METHOD'] === 'POST' ? [ws_start($servers[0])] : [];
    $states = ws_states();
} catch (WsCluster\Exception $error) {
    finish(500, $error->getMessage());
}
$html = fn (string $text) => htmlspecialchars($text, ENT_QUOTES);
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Live messages</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; }
  li { margin: .35rem 0; overflow-wrap: anywhere; }
  .answers::marker { color: #2b8a4b; } .silent::marker { color: #c0392b; }
  button { font: inherit; padding: .4rem 1rem; }
</style>
<h1>Live messages</h1>
<?php foreach ($outcome as $why): ?>
<p role="status"><?= $html($why === null ? 'The server runs.' : "The server was not started: $why") ?></p>
<?php endforeach ?>
<ul>
<?php foreach ($states as $server => $why): ?>
  <li class="<?= $why === null ? 'answers' : 'silent' ?>"><?= $html($server) ?>: <?= $html($why ?? 'answers') ?></li>
<?php endforeach ?>
</ul>
<?php if ($states[$servers[0]] === null): ?>
<p>To stop or restart it, use the admin page of ws-server.</p>
<?php elseif (($hindrance = ws_start_hindrance()) !== null): ?>
<p><?= $html($hindrance) ?></p>
<?php else: ?>
<form method="post"><button>Start the server</button></form>
<?php endif ?>
