<?php
// The page: who is signed in, the messages as they come, and the comments.
declare(strict_types=1);

require __DIR__ . '/../site.php';

$user = user();
// Before the comments are read: what is published from now on comes to the page's client.
try {
    $position = (new WsCluster\Client())->position();
} catch (WsCluster\Exception $error) {
    error_log("a page without a position: {$error->getMessage()}");
    $position = null;
}
header('Cache-Control: no-store');
$comments = query('SELECT id, user, text FROM comments ORDER BY id DESC LIMIT 50')->fetchAll(PDO::FETCH_ASSOC);
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
<h2>Comments</h2>
<form id="comment"><input name="text" maxlength="500" required> <button>Comment</button> <span role="status"></span></form>
<ul id="comments"></ul>
<script src="/ws-cluster.js"></script>
<script>
  const show = (list, id, text) => {
    if (id && document.getElementById(id)) return;
    const item = document.createElement("li");
    if (id) item.id = id;
    item.textContent = text;
    document.getElementById(list).prepend(item);
  };
  const showComment = ({ id, user, text }) => show("comments", `comment-${id}`, `${user}: ${text}`);
  <?= json_encode(array_reverse($comments), JSON_HEX_TAG | JSON_UNESCAPED_UNICODE) ?>.forEach(showComment);

<?php if (login() === 'token' && $user !== null): ?>
  const credentials = async () => {
    const answer = await fetch("/token.php");
    // The client tries again later, except after 403: this user has signed out.
    if (!answer.ok && answer.status !== 403) throw new Error(`no token: ${answer.status}`);
    return answer.text();
  };
<?php else: ?>
  const credentials = undefined;
<?php endif ?>
  const position = <?= json_encode($position) ?> ?? undefined;
  const client = new WsCluster(null, { credentials, position })
    .on("news/new", (from, text) => show("news", null, `${from}: ${text}`))
    .on("comment/new", showComment)
    // Many pages may be told at once, and load again within some seconds.
    .on("Client/reset", () => setTimeout(() => location.reload(), 10_000 * Math.random()));

  document.getElementById("comment").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target, status = form.querySelector("[role=status]");
    status.textContent = "";
    try {
      const [comment] = await client.request("comment/add", [form.text.value]);
      showComment(comment);
      form.reset();
    } catch (error) {
      status.textContent = error.text;
    }
  });
</script>
