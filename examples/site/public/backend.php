<?php
// What ws-server asks of the site: what an action of a page does, and, if the cookies are encrypted, who a client is.
declare(strict_types=1);

require __DIR__ . '/../site.php';

use WsCluster\{Backend, Event, Identity, Outbox, Target};

/** The cookie's user. */
function identity(Event $event): Identity
{
    $session = session($event->cookie(COOKIE));
    [$user, $expires] = user_of($session, (string) $event->remoteAddress);
    if ($user === null) {
        return Identity::guest();
    }
    $groups = query('SELECT name FROM memberships WHERE user = ?', $user)->fetchAll(PDO::FETCH_COLUMN);
    return new Identity($user, session: $session, expires: $expires, groups: $groups);
}

/** Stores a comment. Its author gets the id, the others get the comment. */
function add_comment(Event $event): array
{
    $user = $event->signedIn();
    $text = $event->text(0, 500, 'the comment');
    database()->beginTransaction();
    query('INSERT INTO comments (user, text) VALUES (?, ?)', $user, $text);
    $comment = ['id' => (int) database()->lastInsertId(), 'user' => $user, 'text' => $text];
    (new Outbox(database()))->publish('comment/new', [$comment], Target::all()->exceptConnection($event->connection));
    database()->commit();
    return [$comment];
}

(new Backend())->connect(identity(...))->action('comment/add', add_comment(...))->run();
