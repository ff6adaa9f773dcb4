<?php
// Publishes a text to a user or a group, for those who are signed in.
declare(strict_types=1);

require __DIR__ . '/../site.php';

only_post();
$user = user() ?? finish(403, 'sign in first');
try {
    (new WsCluster\Client())->publish('news/new', [$user, $_POST['text'] ?? ''], $_POST['to'] ?? '');
} catch (WsCluster\Exception $refusal) {
    finish(502, $refusal->getMessage());
}
finish(200, 'published');
