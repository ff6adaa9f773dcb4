<?php
// The page: who is signed in, and the messages as they come.
declare(strict_types=1);

require __DIR__ . '/../site.php';

$user = user();
?>
<!DOCTYPE html>
<meta charset="utf-8">
<title>Site</title>
<?php if ($user === null): ?>
<form method="post" action="/login.php">
  <input name="user" placeholder="ann or bob"> <input name="password" type="password" placeholder="example">
  <button>Sign in</button>
</form>
<?php else: ?>
<p>Signed in as <b><?= htmlspecialchars($user) ?></b></p>
<form method="post" action="/publish.php" target="answer">
  <input name="to" value="user:bob"> <input name="text" value="Hello"> <button>Publish</button>
  <iframe name="answer" hidden></iframe>
</form>
<form method="post" action="/logout.php">
  <button>Sign out</button> <button name="everywhere" value="1">Sign out everywhere</button>
</form>
<?php endif ?>
<ul id="news"></ul>
<script src="/ws-cluster.js"></script>
<script>
  new WsCluster().on("news/new", (from, text) => {
    const item = document.createElement("li");
    item.textContent = `${from}: ${text}`;
    document.getElementById("news").append(item);
  });
</script>
