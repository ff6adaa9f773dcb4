<?php

declare(strict_types=1);

use WsCluster\Outbox;
use WsCluster\Target;

const ONE = '0123456789abcdef0123456789abcdef-1';

function outboxDatabase(): PDO
{
    $database = new PDO('sqlite::memory:');
    $database->exec('CREATE TABLE ws_outbox (id INTEGER PRIMARY KEY, action TEXT, details TEXT, target TEXT)');
    return $database;
}

function rows(PDO $database): array
{
    return $database->query('SELECT action, details, target FROM ws_outbox ORDER BY id')->fetchAll(PDO::FETCH_NUM);
}

/** Returns a value within so many arrays. */
function nested(int $levels, mixed $value): mixed
{
    for (; $levels > 0; $levels--) {
        $value = [$value];
    }
    return $value;
}

test('a message joins the transaction of the caller', function (): void {
    $database = outboxDatabase();
    $outbox = new Outbox($database);
    $database->beginTransaction();
    $outbox->publish('news/new', ['ann', 'é'], Target::users('a,b', 'c')->exceptConnection(ONE));
    same(true, $database->inTransaction());
    $database->rollBack();
    same([], rows($database));

    $database->beginTransaction();
    $outbox->publish('news/new', ['ann', 'é'], Target::users('a,b', 'c')->exceptConnection(ONE));
    $outbox->publish('news/gone', 7, 'group:é');
    $database->commit();
    // In ASCII, for connections in Latin-1.
    same([
        ['news/new', '["ann","\u00e9"]', 'user:a%2Cb,c except connection:' . ONE],
        ['news/gone', '[7]', 'group:%C3%A9'],
    ], rows($database));
});

test('a target as JSON keeps its ids, in ASCII', function (): void {
    $database = outboxDatabase();
    $outbox = new Outbox($database);
    foreach ([
        '{"user":"jürgen"}' => '{"user":"j\u00fcrgen"}',
        " {\"users\": [\"a,b\", 7, \"50%\"]}\n" => '{"users":["a,b",7,"50%"]}',
        '{"group":"ä/\ud83d\ude00"}' => '{"group":"\u00e4/\ud83d\ude00"}',
        '{"property":{"name":"é","value":1.0}}' => '{"property":{"name":"\u00e9","value":1.0}}',
    ] as $given => $expected) {
        $database->exec('DELETE FROM ws_outbox');
        $outbox->publish('a', [1], $given);
        $outbox->publish('a', [1], json_decode($given, true));
        same([['a', '[1]', $expected], ['a', '[1]', $expected]], rows($database));
    }
});

test('a message that would never be delivered is refused before the row is written', function (): void {
    $database = outboxDatabase();
    $outbox = new Outbox($database);
    throws('an action has 1 to 255 bytes: 0 were given', fn () => $outbox->publish('', [], 'all'));
    throws('an action has 1 to 255 bytes: 256 were given', fn () => $outbox->publish(str_repeat('é', 128), [], 'all'));
    foreach ([
        '', 'nobody', 'user:', 'users:ann', 'property:page', 'allx', 'all users', 'registeredx', ' all',
        "all\n", 'all except', 'all exceptuser:a', "all\texcept user:a", 'all except all', 'all except user:', 'user:ann,',
        'group:,', 'user:ann, bob', "session:x\n", 'property:=7', 'connection:',
        'all:', 'all except user:a except user:b', 'all except connection:' . ONE . ' except connection:' . ONE,
        'connection:abc', 'connection:ab-1', 'connection:' . ONE . 'g', 'connection:0' . ONE, 'all except connection:abc',
        'connection:' . ONE . "\n",
    ] as $target) {
        throws("unknown target $target:", fn () => $outbox->publish('a', [], $target));
    }
    throws('begins with { but is no JSON', fn () => $outbox->publish('a', [], '{"user":"ann"'));
    throws('begins with { but is no JSON', fn () => $outbox->publish('a', [], "{\"user\":\"\xe9\"}"));
    throws('begins with { but is no JSON', fn () => $outbox->publish('a', [], '{"user":"ann"} except user:bob'));
    foreach (['{}', '{"user":"ann","group":"b"}', '{"name":"ann"}', [], ['ann'], ['to' => 'all']] as $target) {
        throws('exactly one of the members users, user,', fn () => $outbox->publish('a', [], $target));
    }
    throws('unknown target connection:abc', fn () => $outbox->publish('a', [], Target::connection('abc')));
    throws('unknown target all except', fn () => $outbox->publish('a', [], Target::all()->exceptConnection('abc')));
    foreach ([
        ['users' => 'ann'], ['users' => ['a' => 'b']], ['groups' => ['a', '']], ['groups' => [1.5]], ['users' => [['a']]],
        ['user' => ''], ['user' => true], ['user' => ['ann']], ['group' => null], ['session' => 1.5],
        ['connection' => 'abc'], ['connection' => 7], ['property' => 'a=b'], ['property' => ['name' => 'a']],
        ['property' => ['name' => 7, 'value' => 1]], ['property' => ['name' => 'a', 'value' => null]],
        ['property' => ['name' => 'a', 'value' => 1, 'is' => 2]],
    ] as $target) {
        $kind = array_key_first($target);
        foreach ([$target, json_encode($target)] as $given) {
            throws("the member $kind of a target must be", fn () => $outbox->publish('a', [], $given));
        }
    }
    foreach ([nested(129, 7), nested(128, []), nested(128, new stdClass()), nested(128, ['a' => 7])] as $deep) {
        throws('Maximum stack depth exceeded', fn () => $outbox->publish('a', $deep, 'all'));
    }
    throws('a message is UTF-8', fn () => $outbox->publish('a', ["\xe9"], 'all'));
    foreach (['Server/close', 'Client/reset', 'Presence/joined'] as $action) {
        throws('which is reserved for ws-server', fn () => $outbox->publish($action, [], 'all'));
    }
    throws('the action is not UTF-8', fn () => $outbox->publish("\xe9", [], 'all'));
    foreach (["user:\xe9", 'user:%E9'] as $target) {
        throws('the target is not UTF-8', fn () => $outbox->publish('a', [], $target));
    }
    // ["x.."] with the action has one byte more than 1 MiB.
    throws('longer than 1 MiB', fn () => $outbox->publish('abc', [str_repeat('x', (1 << 20) - 6)], 'all'));
    same([], rows($database));
    $outbox->publish('a', nested(128, 7), 'all');
    $outbox->publish('a', nested(127, []), 'all');
    $database->exec('DELETE FROM ws_outbox');
    $outbox->publish('abc', [str_repeat('x', (1 << 20) - 7)], 'all');
    same(1, count(rows($database)));
});

test('every form of a target as JSON is taken', function (): void {
    $database = outboxDatabase();
    foreach ([
        ['users' => []], ['users' => ['a', 7]], ['groups' => ['g']], ['user' => -7], ['session' => ' s '],
        ['connection' => ONE], ['property' => ['name' => '', 'value' => false]],
        ['property' => ['value' => ['a' => 1], 'name' => 'p']],
    ] as $target) {
        (new Outbox($database))->publish('a', [], $target);
        (new Outbox($database))->publish('a', [], json_encode($target));
    }
    same(16, count(rows($database)));
});

test('every form of a target is taken', function (): void {
    $database = outboxDatabase();
    $targets = [
        'all', 'registered', 'user:a', 'user:ann,7,a b', 'user:urn:x:7', 'group:room/lobby', 'session:a,b',
        'property:page=7', 'property:a=', 'property:a=b= c ', 'user:doe%2Cjohn,50%,%20x', 'all except user:ann',
        'user:a except connection:' . ONE,
        'user:' . implode(',', range(1, 10_000)), 'registered except user:a b except connection:' . ONE,
    ];
    foreach ($targets as $target) {
        (new Outbox($database))->publish('servers/Server/', [], $target);
    }
    same($targets, array_column(rows($database), 2));
    // The last byte of this letter is a no-break space in Latin-1.
    (new Outbox($database))->publish('a', [], 'user:à,b');
    same('user:%C3%A0,b', end(rows($database)[count($targets)]));
});

test('a missing table is a clear error in every error mode', function (): void {
    foreach ([PDO::ERRMODE_EXCEPTION, PDO::ERRMODE_SILENT] as $mode) {
        $database = new PDO('sqlite::memory:', null, null, [PDO::ATTR_ERRMODE => $mode]);
        $error = throws('no such table: ws_outbox', fn () => (new Outbox($database))->publish('a', [], 'all'));
        contains('`ws-server pool --schema`', $error->getMessage());
    }
    throws('cannot be the name of the outbox', fn () => new Outbox($database, 'a; DROP TABLE b'));
});
