<?php // A chat: the first part answers the nodes, and the rest is the page. README.md says how to start it.
require __DIR__ . '/../../../clients/php/autoload.php';
use WsCluster\{Answer, Backend, Event, Target};
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    return (new Backend())
        ->action('chat/say', function (Event $event): Answer {
            $name = $event->text(0, 20, 'the name');
            $text = $event->text(1, 500, 'the text');
            return Answer::none()->publish('chat/said', [$name, $text], Target::all());
        })
        ->run();
}
$node = getenv('WS_NODE') ?: 'http://127.0.0.1:8080';
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chat</title>
<ul id="said"></ul>
<form id="form">
  <input id="name" placeholder="name" size="10" required>
  <input id="text" placeholder="text" size="40" required autofocus>
  <button>Say</button>
</form>
<p id="state"></p>
<script src="<?= $node ?>/ws-cluster.js"></script>
<script>
  const element = (id) => document.getElementById(id);
  const show = (text) => {
    const item = document.createElement("li");
    item.textContent = text;
    element("said").append(item);
  };

  const client = new WsCluster("<?= $node ?>/WebSockets")
    .on("chat/said", (name, text) => show(`${name}: ${text}`))
    .on("Client/open", () => { element("state").textContent = "connected"; })
    .on("Client/close", () => { element("state").textContent = "not connected"; })
    .on("Client/reset", () => show("(some messages are missing here)"));

  element("form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await client.request("chat/say", [element("name").value, element("text").value]);
      element("text").value = "";
    } catch (error) {
      show(`not sent: ${error.text}`);
    }
  };
</script>
