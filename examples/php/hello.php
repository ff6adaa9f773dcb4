<?php // The hello service: what a user says comes back to every tab of that user. README.md says how to start it.
require __DIR__ . '/../../clients/php/autoload.php';
use WsCluster\{Answer, Backend, Event, Refusal, Target};
if ($_SERVER['REQUEST_METHOD'] === 'GET') {
    return readfile(__DIR__ . '/hello.html');
}
(new Backend())
    ->connect(fn (Event $event) => $event->cookie('user')) // believes the cookie; a site looks it up in its sessions
    ->action('hello', function (Event $event) {
        if ($event->details === []) {
            throw new Refusal(400, 'No hello message:(');
        }
        return Answer::none()->publish('hello', $event->details, Target::user($event->signedIn()));
    })
    ->run();
