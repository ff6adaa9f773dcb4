<?php

declare(strict_types=1);

use WsCluster\Answer;
use WsCluster\Backend;
use WsCluster\Event;
use WsCluster\Identity;
use WsCluster\Refusal;
use WsCluster\Response;
use WsCluster\Target;

const BACKEND_KEY = 'the key of the backend of the site';

/** Collects what is logged. */
final class Logged
{
    /** @var list<string> */
    public static array $lines = [];
}

function backend(mixed ...$settings): Backend
{
    Logged::$lines = [];
    return new Backend(BACKEND_KEY, function (string $line): void {
        Logged::$lines[] = $line;
    }, ...$settings);
}

function ask(Backend $backend, array $data, string $id = 'msg_1'): Response
{
    $body = json_encode($data, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE);
    return $backend->handle(signed(BACKEND_KEY, $body, id: $id), $body);
}

function action(string $name, mixed $details = [], array $more = []): array
{
    return ['event' => 'action', 'action' => $name, 'details' => $details, 'connection' => 'ab-1', 'user' => 'ann'] + $more;
}

test('an event has the members of the request', function (): void {
    $seen = [];
    $backend = backend()->on('connect', function (Event $event) use (&$seen): void {
        $seen[] = $event;
    })->action('a', function (Event $event) use (&$seen): void {
        $seen[] = $event;
    });
    $backend->disconnect(function (Event $event) use (&$seen): void {
        $seen[] = $event;
    });
    ask($backend, [
        'event' => 'connect',
        'credentials' => ['token', 7],
        'connection' => 'ab-1',
        'remote_addr' => '192.0.2.1',
        'headers' => ['Cookie' => 'sid=a%2Cb+c; other="x=y"; sid=later; broken; =', 'user-agent' => 'Agent/1'],
        'query' => ['page' => '7'],
        'unknown' => ['x' => 1],
    ]);
    ask($backend, action('a', [['id' => 7], 'é'], [
        'session' => 's', 'groups' => ['editors'], 'properties' => ['page' => 7], 'language' => 'de', 'request' => 3,
    ]));
    ask($backend, ['event' => 'disconnect', 'code' => 1001, 'reason' => 'going away', 'resumed' => true, 'user' => null]);
    [$connect, $action, $disconnect] = $seen;
    same([1001, 'going away', null], [$disconnect->closeCode, $disconnect->closeReason, $action->closeCode]);
    same([true, false], [$disconnect->resumed, $action->resumed]);
    same(['token', 7], $connect->credentials);
    same(['connect', 'ab-1', '192.0.2.1', null], [$connect->name, $connect->connection, $connect->remoteAddress, $connect->user]);
    same(['a,b+c', '"x=y"', null], [$connect->cookie('sid'), $connect->cookie('other'), $connect->cookie('missing')]);
    same(['Agent/1', ['page' => '7'], ['x' => 1]], [$connect->header('User-Agent'), $connect->query, $connect->data['unknown']]);
    same([[['id' => 7], 'é'], 'ann', 's'], [$action->details, $action->user, $action->session]);
    same([['editors'], ['page' => 7], 'de', 3, 'msg_1'], [$action->groups, $action->properties, $action->language, $action->request, $action->id]);
});

test('cookies are those that PHP has of the same header', function (): void {
    $server = new PhpServer(__DIR__ . '/backend.php', ['WS_SERVER_BACKEND_KEY' => BACKEND_KEY]);
    foreach ([
        'sid=a%2Cb+c; other="x=y"; sid=later; broken; =; =x',
        'my.sid=1; my sid=2; my_sid=3; a.b.c=4',
        'a[b]=1; a[c][d]=2; a[]=3; a[]=4; a=5; a[b]=6; [x]=7; c[=8; d]=9',
        'e=1; e[f]=2; e=3; 7=seven; __Host-g=8; h%5Bi%5D=9; j%20k=10; l+m=11; n&o=12',
        ' p = q ;r=s ; t=%00u; v=%E9; w=é;;',
        '',
    ] as $header) {
        $event = new Event('msg_1', ['event' => 'connect', 'headers' => ['cookie' => $header]]);
        [, $body] = $server->post('/?cookies', ["Cookie: $header"], '');
        same($body, base64_encode(serialize($event->cookies())), $header);
    }
    $event = new Event('msg_1', ['event' => 'connect', 'headers' => ['cookie' => 'my.sid=1; a[b]=2']]);
    same(['1', '1', '2', null], array_map($event->cookie(...), ['my.sid', 'my_sid', 'a[b]', 'a']));
    // PHP takes as many as max_input_vars says.
    $many = implode(';', array_map(fn (int $number): string => "c$number=1", range(1, 2000)));
    same(1000, count((new Event('msg_1', ['event' => 'connect', 'headers' => ['cookie' => $many]]))->cookies()));
});

test('what a callable returns is the identity', function (): void {
    foreach ([
        ['7', '{"user":"7"}'],
        [7, '{"user":"7"}'],
        [null, '{}'],
        [false, '{}'],
        [0, '{}'],
        ['0', '{}'],
        ['', '{}'],
        ['00', '{"user":"00"}'],
        [['user' => false], '{}'],
        [['user' => '0', 'session' => 's'], '{"session":"s"}'],
        [new Identity('0', session: 's'), '{"session":"s"}'],
        [new Identity(0), '{}'],
        [new Identity(''), '{}'],
        [Identity::guest(), '{}'],
        [['user' => 7, 'groups' => ['a'], 'properties' => ['p' => 1]], '{"user":"7","groups":["a"],"properties":{"p":1}}'],
        [['session' => 's', 'groups' => []], '{"session":"s"}'],
        [new Identity('ann', session: 's', expires: 100), '{"user":"ann","session":"s","expires":100}'],
        [new Identity('ann', expires: new DateTimeImmutable('@100')), '{"user":"ann","expires":100}'],
    ] as [$returned, $body]) {
        $response = ask(backend()->connect(fn () => $returned), ['event' => 'connect']);
        same([200, 'application/json', $body], [$response->status, $response->headers['Content-Type'], $response->body]);
    }
    foreach ([[['name' => 'ann']], [new stdClass()], [1.5], [['user' => []]]] as [$returned]) {
        same(500, ask(backend()->connect(fn () => $returned), ['event' => 'connect'])->status);
        contains('a callable of connect returned', Logged::$lines[0]);
    }
});

test('a refresh asks the callable of connect unless it has its own', function (): void {
    $backend = backend()->connect(fn () => 'ann');
    same('{"user":"ann"}', ask($backend, ['event' => 'refresh'])->body);
    same('{"user":"bob"}', ask($backend->refresh(fn () => 'bob'), ['event' => 'refresh'])->body);
    same('{"user":"ann"}', ask($backend, ['event' => 'connect'])->body);
});

test('a refusal of connect is a status', function (): void {
    foreach ([[401, 401], [403, 403], [400, 403], [7, 403]] as [$code, $status]) {
        $response = ask(backend()->connect(fn () => throw new Refusal($code, 'banned')), ['event' => 'connect']);
        same([$status, "banned\n"], [$response->status, $response->body]);
    }
    same([], Logged::$lines);
});

test('what a callable returns answers the action', function (): void {
    foreach ([
        [null, 204, ''],
        [Answer::none(), 204, ''],
        [['id' => 7], 200, '{"reply":[{"id":7}]}'],
        [[1, 2], 200, '{"reply":[1,2]}'],
        [[], 200, '{"reply":[]}'],
        [true, 200, '{"reply":[true]}'],
        [Answer::error(409, 'é'), 200, '{"error":[409,"é"]}'],
        [
            Answer::reply('ok')->join('a', 'b')->join('c')->leave('d')->property('page', 7)->property('page', null)
                ->publish('x', [1], Target::group('a')->exceptConnection('ab-1'))->publish('y', null, 'all'),
            200,
            '{"reply":["ok"],"join":["a","b","c"],"leave":["d"],"properties":{"page":null},"publish":['
                . '{"action":"x","details":[1],"to":{"group":"a"},"except":{"connection":"ab-1"}},'
                . '{"action":"y","details":[],"to":"all"}]}',
        ],
        [Answer::none()->property('7', 1), 200, '{"properties":{"7":1}}'],
        [Answer::none()->property('7', 'x')->property('0', 'y'), 200, '{"properties":{"0":"y","7":"x"}}'],
        [Answer::none()->property('0', 'x')->property('0', 'y'), 200, '{"properties":{"0":"y"}}'],
    ] as [$returned, $status, $body]) {
        $response = ask(backend()->action('a', fn () => $returned), action('a'));
        same([$status, $body], [$response->status, $response->body]);
    }
    // An answer that is built further leaves the earlier one as it was.
    $base = Answer::reply(1);
    $base->join('a');
    same('{"reply":[1]}', ask(backend()->action('a', fn () => $base), action('a'))->body);
});

test('an action is found by its name, then by patterns in their order', function (): void {
    $backend = backend()
        ->action('*', fn () => 'any')
        ->action('comment/*', fn () => 'comment')
        ->action('comment/add', fn () => 'add');
    same('{"reply":["add"]}', ask($backend, action('comment/add'))->body);
    same('{"reply":["any"]}', ask($backend, action('comment/del'))->body);
    $backend = backend()->action('comment/*', fn () => 'comment')->action('a.c', fn () => 'dot')->action('7', fn () => 7);
    same('{"reply":["comment"]}', ask($backend, action("comment/\n"))->body);
    same('{"reply":[7]}', ask($backend, action('7'))->body);
    foreach (['abc', 'comment', 'xcomment/', ''] as $name) {
        same('{"error":[404,"Not Found"]}', ask($backend, action($name))->body, $name);
    }
});

test('arguments that do not fit are refused with their names', function (): void {
    $backend = backend()->action('a', function (Event $event): array {
        return [$event->text(0, 5, 'text'), $event->int(1, 'page'), $event->signedIn()];
    });
    same('{"reply":["äöüßé",7,"ann"]}', ask($backend, action('a', [' äöüßé ', 7]))->body);
    foreach ([[], [''], [" \n"], [7], [null], [['x']]] as $details) {
        same('{"error":[400,"text must be text that is not empty"]}', ask($backend, action('a', $details))->body);
    }
    same('{"error":[400,"text is longer than 5 characters"]}', ask($backend, action('a', ['abcdef', 7]))->body);
    foreach ([['a'], ['a', '7'], ['a', 7.0, 1], ['a', 1e300]] as $details) {
        // json_encode writes 7.0 as 7.
        $is_int = ($details[1] ?? null) === 7.0;
        $expected = $is_int ? '{"reply":["a",7,"ann"]}' : '{"error":[400,"page must be a whole number"]}';
        same($expected, ask($backend, action('a', $details))->body);
    }
    same('{"error":[403,"sign in first"]}', ask($backend, ['user' => null] + action('a', ['a', 7]))->body);
});

test('an exception of a callable is logged, and the client learns nothing of it', function (): void {
    foreach ([
        fn () => throw new PDOException('SQLSTATE[28000] password of root'),
        fn () => throw new WsCluster\Exception('401: give PHP the publish key'),
        fn () => [][1] ?? intdiv(1, 0),
        fn () => ["\xe9"],
        fn () => new stdClass(7),
    ] as $callable) {
        $response = ask(backend()->action('*', $callable)->connect($callable)->disconnect($callable), action("a\n2026 forged"));
        if ($response->body !== '{"reply":[{}]}') {
            same([200, '{"error":[500,"Internal Server Error"]}'], [$response->status, $response->body]);
            same(1, count(Logged::$lines));
            contains('the action a?2026 forged failed (request msg_1)', Logged::$lines[0]);
            contains(basename(__FILE__) === '' ? '' : '.php:', Logged::$lines[0]);
        }
    }
    $fails = fn () => throw new PDOException('SQLSTATE[28000] password of root');
    $backend = backend()->connect($fails)->disconnect($fails);
    foreach (['connect', 'refresh', 'disconnect'] as $event) {
        $response = ask($backend, ['event' => $event]);
        same([500, "Internal Server Error\n"], [$response->status, $response->body]);
    }
    contains('PDOException: SQLSTATE[28000]', implode("\n", Logged::$lines));
});

test('a refusal whose text is not UTF-8 reaches the client', function (): void {
    $refuses = fn () => throw new Refusal(409, "Andr\xe9 is taken");
    $backend = backend()->action('a', $refuses)->connect($refuses);
    $response = ask($backend, action('a'));
    same([200, "{\"error\":[409,\"Andr\u{fffd} is taken\"]}"], [$response->status, $response->body]);
    $response = ask($backend, ['event' => 'connect']);
    same([403, "Andr\u{fffd} is taken\n"], [$response->status, $response->body]);
    same([], Logged::$lines);
});

test('an event without a callable is taken, connect is not', function (): void {
    same(204, ask(backend(), ['event' => 'disconnect'])->status);
    same(204, ask(backend(), ['event' => 'user_online', 'user' => 'ann'])->status);
    same(500, ask(backend(), ['event' => 'connect'])->status);
    contains('leave out --backend-connect', Logged::$lines[0]);
});

test('a request that is not from ws-server is refused before a callable runs', function (): void {
    $backend = backend(maxBody: 1000)->on('connect', fn () => throw new Failure('a callable ran'));
    $body = '{"event":"connect"}';
    $headers = signed(BACKEND_KEY, $body);
    same(405, $backend->handle($headers, $body, 'GET')->status);
    same(400, $backend->handle([], $body)->status);
    same(400, $backend->handle(signed('another key of another backend', $body), $body)->status);
    same(400, $backend->handle(signed(BACKEND_KEY, $body, time() - 301), $body)->status);
    same(400, $backend->handle(signed(BACKEND_KEY, $body, time() + 301), $body)->status);
    foreach (array_keys($headers) as $name) {
        same(400, $backend->handle([$name => ''] + $headers, $body)->status);
    }
    $huge = $body . str_repeat(' ', 1000);
    same(413, $backend->handle(signed(BACKEND_KEY, $huge), $huge)->status);
    // The administrator learns of a wrong key, and the request does not count as the refusal of a visitor.
    contains('a request is refused: the signature does not fit', Logged::$lines[1]);
});

test('a signed body that is malformed is refused with the reason', function (): void {
    foreach ([
        ["\xef\xbb\xbf{\"event\":\"connect\"}", 'byte order mark'],
        ['', 'not JSON'],
        ['{"event":"connect"', 'not JSON'],
        ["{\"event\":\"\xe9\"}", 'not JSON'],
        [str_repeat('{"a":', 200) . '1' . str_repeat('}', 200), 'not JSON'],
        ['[]', 'no JSON object'],
        ['"connect"', 'no JSON object'],
        ['{}', 'no JSON object'],
        ['{"action":"a"}', 'the member event is missing'],
        ['{"event":7}', 'the member event is no text'],
        ['{"event":"action"}', 'the member action is missing'],
        ['{"event":"action","action":["a"]}', 'the member action is no text'],
        ['{"event":"connect","user":7}', 'the member user is no text'],
        ['{"event":"connect","groups":"a"}', 'the member groups is no array'],
        ['{"event":"connect","headers":1}', 'the member headers is no array'],
    ] as [$body, $why]) {
        $response = backend()->connect(fn () => 'ann')->handle(signed(BACKEND_KEY, $body), $body);
        same(400, $response->status, $body);
        contains($why, $response->body);
    }
});

test('an action that came before is refused if the site can tell', function (): void {
    $seen = [];
    $isNew = function (string $id) use (&$seen): bool {
        $new = !isset($seen[$id]);
        $seen[$id] = true;
        return $new;
    };
    $backend = backend(isNew: $isNew)->action('a', fn () => 1)->connect(fn () => 'ann');
    same(200, ask($backend, action('a'))->status);
    same(409, ask($backend, action('a'))->status);
    same(200, ask($backend, action('a'), 'msg_2')->status);
    // Events are sent again if the first try failed.
    same(200, ask($backend, ['event' => 'connect'])->status);
});

test('numbers beyond 64 bits keep their digits', function (): void {
    $body = '{"event":"action","action":"a","details":[123456789012345678901234567890]}';
    $response = backend()->action('a', fn (Event $event) => $event->details)->handle(signed(BACKEND_KEY, $body), $body);
    same('{"reply":["123456789012345678901234567890"]}', $response->body);
});

test('a script answers over HTTP, and what it prints stays out of the answer', function (): void {
    $server = new PhpServer(__DIR__ . '/backend.php', ['WS_SERVER_BACKEND_KEY' => BACKEND_KEY]);
    $post = function (string $body, array $headers = [], string $path = '/') use ($server): array {
        $lines = ['Content-Type: application/json'];
        foreach ($headers + signed(BACKEND_KEY, $body) as $name => $value) {
            $lines[] = "$name: $value";
        }
        return $server->post($path, $lines, $body);
    };
    [$status, $text, $head] = $post(json_encode(action('echo', ['é'])));
    same([200, '{"reply":["é"]}'], [$status, $text]);
    contains('Content-Type: application/json', $head);
    same([204, ''], array_slice($post(json_encode(action('prints'))), 0, 2));
    contains('a callable printed: hello', $server->log());
    [$status, $text] = $post(json_encode(action('warns')));
    same([200, '{"reply":[1]}'], [$status, $text]);
    same([200, '{"error":[500,"Internal Server Error"]}'], array_slice($post(json_encode(action('throws'))), 0, 2));
    foreach (['exits', 'exhausts'] as $action) {
        [$status, $text, $head] = $post(json_encode(action($action)));
        same([500, "Internal Server Error\n"], [$status, $text], $action);
        contains('text/plain', $head);
    }
    contains('a callable ended the script: Allowed memory size', $server->log());
    contains('a callable printed: bye', $server->log());
    same(400, $post('{"event":"connect"}', ['webhook-signature' => 'v1,AAAA'])[0]);
    same(413, $post(str_repeat(' ', 200_000))[0]);
    same(405, (int) explode(' ', get_headers("http://{$server->address}/")[0])[1]);
});

test('a buffer that cannot be removed does not keep the answer back', function (): void {
    $server = new PhpServer(__DIR__ . '/backend.php', ['WS_SERVER_BACKEND_KEY' => BACKEND_KEY]);
    $post = function (string $action, string $path) use ($server): array {
        $headers = ['Content-Type: application/json'];
        foreach (signed(BACKEND_KEY, $body = json_encode(action($action, ['é']))) as $name => $value) {
            $headers[] = "$name: $value";
        }
        return array_slice($server->post($path, $headers, $body), 0, 2);
    };
    same([200, '{"reply":[1]}'], $post('buffers', '/'));
    contains('a callable printed: one two', $server->log());
    same([200, '{"reply":[1]}'], $post('keeps', '/'));
    // The buffer of the script around it gets the answer, and nothing else.
    same([200, '<{"reply":["é"]}>'], $post('echo', '/?buffered'));
    same([200, '<{"reply":[1]}>'], $post('buffers', '/?buffered'));
    same([500, "<Internal Server Error\n>"], $post('exits', '/?buffered'));
});
