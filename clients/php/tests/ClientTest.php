<?php

declare(strict_types=1);

use WsCluster\Client;
use WsCluster\Http\Curl;
use WsCluster\Http\Streams;
use WsCluster\Http\Transport;
use WsCluster\Message;
use WsCluster\Target;

const KEY = 'a publish key';

/** Runs the test once for each transport, with a server that stands for ws-server. */
function withServer(Closure $test, array $environment = []): void
{
    $transports = extension_loaded('curl') ? [new Curl(), new Streams()] : [new Streams()];
    foreach ($transports as $transport) {
        $test(new PhpServer(__DIR__ . '/server.php', $environment), $transport);
    }
}

/** Returns a port at which nothing listens. */
function freePort(): int
{
    $socket = stream_socket_server('tcp://127.0.0.1:0');
    $name = stream_socket_get_name($socket, false);
    fclose($socket);
    return (int) substr($name, strrpos($name, ':') + 1);
}

test('a message is posted with the key, and with a key of its own', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $client = new Client("http://{$server->address}/204/", KEY, $transport);
        $client->publish('news/new', ['ann', 'é'], Target::users('a,b', 'c')->exceptUser('d'), volatile: true);
        $client->publish('news/new', null, 'all', key: 7);
        [$first, $second] = $server->requests();
        same(['POST', '/_publish', 'Bearer ' . KEY, 'application/json'], array_slice(array_values($first), 0, 4));
        $body = json_decode($first['body'], true);
        same(32, strlen($body['key']));
        unset($body['key']);
        same([
            'action' => 'news/new',
            'details' => ['ann', 'é'],
            'to' => ['users' => ['a,b', 'c']],
            'except' => ['user' => 'd'],
            'volatile' => true,
        ], $body);
        same('{"action":"news/new","details":[],"to":"all","key":"7"}', $second['body']);
    });
});

test('connections are closed, refreshed and put into groups', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $client = new Client(["http://{$server->address}/204"], KEY, $transport);
        $client->close(user: 7);
        $client->close(user: 'ann', exceptSession: 'e4d909');
        $client->close(session: 'e4d909', reconnect: true);
        $client->close(connection: 'ab-1');
        $client->refresh(user: 'ann');
        $client->refresh(session: 'e4d909');
        $client->groups(user: 'ann', join: ['a'], leave: ['b', 'c']);
        $client->groups(connection: 'ab-1', join: [3 => 'a']);
        same([
            ['/_close', '{"user":"7"}'],
            ['/_close', '{"user":"ann","except_session":"e4d909"}'],
            ['/_close', '{"session":"e4d909","reconnect":true}'],
            ['/_close', '{"connection":"ab-1"}'],
            ['/_refresh', '{"user":"ann"}'],
            ['/_refresh', '{"session":"e4d909"}'],
            ['/_groups', '{"user":"ann","join":["a"],"leave":["b","c"]}'],
            ['/_groups', '{"connection":"ab-1","join":["a"]}'],
        ], array_map(fn (array $request) => [$request['path'], $request['body']], $server->requests()));
    });
});

test('a batch has an outcome for each message', function (): void {
    $answer = '[{"status":204},{"status":400,"error":"`to` is missing"},{"status":504,"error":"the outcome is unknown"}]';
    withServer(function (PhpServer $server, Transport $transport): void {
        $client = new Client("http://{$server->address}/batch", KEY, $transport);
        $outcomes = $client->batch((function () {
            yield 3 => new Message('a', [1], Target::user('a,b'), key: 'k');
            yield 3 => new Message('b', null, 'all', volatile: true, key: 'l');
            yield 3 => new Message('c', 7, Target::all(), key: 'm');
        })());
        same([null, '400 `to` is missing', 400], [$outcomes[0], $outcomes[1]->getMessage(), $outcomes[1]->getCode()]);
        same([false, true], [$outcomes[1]->outcomeUnknown, $outcomes[2]->outcomeUnknown]);
        same('[{"action":"a","details":[1],"to":{"user":"a,b"},"key":"k"},'
            . '{"action":"b","details":[],"to":"all","key":"l","volatile":true},'
            . '{"action":"c","details":[7],"to":"all","key":"m"}]', $server->requests()[0]['body']);
        same([], $client->batch([]));
        throws('not that of a ws-server to a batch', fn () => $client->batch([new Message('a', null, 'all')]));
        same(2, count($server->requests()));
    }, ['BATCH' => $answer]);
});

test('a message of a batch that another node may have published has an unknown outcome', function (): void {
    $answer = '[{"status":204},{"status":400,"error":"no"},{"status":503,"error":"busy"},{"status":504,"error":"late"}]';
    withServer(function (PhpServer $server, Transport $transport): void {
        $messages = array_map(fn (string $action) => new Message($action, null, 'all'), ['a', 'b', 'c', 'd']);
        foreach ([['504', true], ['503', false]] as [$first, $unknown]) {
            $base = "http://{$server->address}";
            $outcomes = (new Client(["$base/$first", "$base/batch"], KEY, $transport))->batch($messages);
            same([null, 400, 503, 504], array_map(fn ($outcome) => $outcome?->getCode(), $outcomes));
            same([null, false, $unknown, true], array_map(fn ($outcome) => $outcome?->outcomeUnknown, $outcomes));
        }
    }, ['BATCH' => $answer]);
});

test('many or large messages are several requests', function (): void {
    $answer = '[' . implode(',', array_fill(0, 1000, '{"status":204}')) . ']';
    withServer(function (PhpServer $server, Transport $transport): void {
        $client = new Client("http://{$server->address}/batch", KEY, $transport);
        same(array_fill(0, 2000, null), $client->batch(array_fill(0, 2000, new Message('a', null, 'all'))));
        same([1000, 1000], array_map(fn ($request) => count(json_decode($request['body'])), $server->requests()));
        $client = new Client("http://{$server->address}/413", KEY, $transport);
        $large = new Message('a', str_repeat('x', 1 << 20), 'all');
        $outcomes = $client->batch([$large, $large]);
        same([413, 413], [$outcomes[0]->getCode(), $outcomes[1]->getCode()]);
    }, ['BATCH' => $answer]);
});

test('a reserved action is refused before anything is published', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $client = new Client("http://{$server->address}/204", KEY, $transport);
        foreach (['Server/close', 'Client/reset', 'Presence/joined'] as $action) {
            $why = 'begins with ' . strstr($action, '/', true) . '/, which is reserved for ws-server';
            throws($why, fn () => $client->publish($action, [], 'all'), 0);
            throws($why, fn () => $client->batch([new Message('a', [], 'all'), new Message($action, [], 'all')]), 0);
            throws($why, fn () => WsCluster\Answer::none()->publish($action, [], 'all'), 0);
        }
        throws('an action has 1 to 255 bytes: 256', fn () => $client->publish(str_repeat('a', 256), [], 'all'));
        throws('an action has 1 to 255 bytes: 0', fn () => WsCluster\Answer::none()->publish('', [], 'all'));
        same([], $server->requests());
        $client->publish('server/close', [], 'all');
        same(1, count($server->requests()));
    });
});

test('a page asks for the position of the order', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $base = "http://{$server->address}";
        same('p.vD0m', (new Client(["$base/503", "$base/batch"], KEY, $transport))->position());
        [, $request] = $server->requests();
        same(['GET', '/_position', 'Bearer ' . KEY, ''], [$request['method'], $request['path'], $request['authorization'], $request['body']]);
        throws('not that of a ws-server to /_position', fn () => (new Client("$base/html", KEY, $transport))->position());
        throws('404 told 404', fn () => (new Client("$base/404", KEY, $transport))->position(), 404);
        // Takes connections and never answers: the page does not wait for long.
        $silent = stream_socket_server('tcp://127.0.0.1:0');
        $hangs = 'http://' . stream_socket_get_name($silent, false);
        throws('no ws-server answers', fn () => (new Client($hangs, KEY, $transport))->position(0.05));
    }, ['BATCH' => '{"position":"p.vD0m"}']);
});

test('exactly one subject is named', function (): void {
    $client = new Client('http://127.0.0.1:1', KEY);
    throws('close needs exactly one of user, session, connection', fn () => $client->close());
    throws('close needs exactly one of', fn () => $client->close(user: 'a', session: 'b'));
    throws('refresh needs exactly one of user, session', fn () => $client->refresh(user: ''));
    throws('groups needs exactly one of', fn () => $client->groups(join: ['a']));
});

test('the next server is asked if one does not answer or cannot', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        // Takes connections and never answers.
        $silent = stream_socket_server('tcp://127.0.0.1:0');
        $hangs = 'http://' . stream_socket_get_name($silent, false);
        $gone = 'http://127.0.0.1:' . freePort();
        $base = "http://{$server->address}";
        (new Client([$gone, $hangs, "$base/503", "$base/504", "$base/204"], KEY, $transport))->publish('a', [], 'all');
        $requests = $server->requests();
        same(3, count($requests));
        // The same message with the same key, so that it is delivered once.
        same(1, count(array_unique(array_column($requests, 'body'))));
        // Servers that failed are asked last.
        (new Client([$gone, $hangs, "$base/204"], KEY, $transport))->publish('b', [], 'all');
        same(4, count($server->requests()));
    });
});

/**
 * Publishes to a server in another process, with these functions disabled.
 *
 * @return array{int, string} Its status and what it said.
 */
function publishWithout(string $disabled, string $url, string $directory, string $owner = ''): array
{
    $script = "$directory/publish.php";
    $autoload = var_export(dirname(__DIR__) . '/autoload.php', true);
    file_put_contents($script, "<?php
        require $autoload;
        try {
            (new WsCluster\\Client('$url', 'a publish key'))->publish('a', null, 'all');
        } catch (WsCluster\\Exception \$error) {
            exit(\$error->getMessage());
        }");
    // Only root can do that.
    $owner === '' || @chown($script, (int) $owner);
    $command = [PHP_BINARY, '-d', "disable_functions=$disabled", $script];
    $process = proc_open($command, [1 => ['pipe', 'w'], 2 => ['pipe', 'w']], $pipes, null, ['TMPDIR' => $directory]);
    $said = stream_get_contents($pipes[1]) . stream_get_contents($pipes[2]);
    return [proc_close($process), $said];
}

test('functions that a host disables are not called', function (): void {
    withServer(function (PhpServer $server): void {
        $url = "http://{$server->address}/204";
        foreach (['getmyuid,curl_exec,curl_multi_exec', 'curl_init,posix_geteuid', 'stream_socket_client'] as $disabled) {
            same([0, ''], publishWithout($disabled, $url, $server->directory), $disabled);
        }
        same(3, count($server->requests()));
        [$status, $said] = publishWithout('curl_exec,stream_socket_client', $url, $server->directory);
        same(0, $status);
        contains('disable_functions forbids both', $said);
    });
});

test('the failure of a server is noted by the user of the process, whoever owns the script', function (): void {
    withServer(function (PhpServer $server): void {
        $gone = 'http://127.0.0.1:' . freePort();
        foreach (['', 'posix_geteuid'] as $disabled) {
            foreach (['0', '65534'] as $owner) {
                contains('no ws-server answers', publishWithout($disabled, $gone, $server->directory, $owner)[1]);
            }
        }
        same(1, count(glob("{$server->directory}/ws-server-failed-*")));
    });
});

test('a failure says what to do, and whether the message may still come', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $publish = function (string ...$servers) use ($server, $transport): Closure {
            $urls = array_map(fn (string $path) => "http://{$server->address}/$path", $servers);
            return fn () => (new Client($urls, KEY, $transport))->publish('a', [], 'all');
        };
        $error = throws('503 told 503). It was not carried out. Try again', $publish('503', '503'), 503);
        same(false, $error->outcomeUnknown);
        $error = throws('It may still be carried out', $publish('504', '503'), 503);
        same(true, $error->outcomeUnknown);
        // The second one refuses, and the first one may have carried it out.
        foreach ([400, 401, 404, 413] as $status) {
            $error = throws('It may still be carried out', $publish('504', (string) $status), $status);
            same(true, $error->outcomeUnknown);
        }
        same(false, throws('401 told 401', $publish('503', '401'), 401)->outcomeUnknown);
        throws('400 told 400', $publish('400', '204'), 400);
        throws('401 told 401: give PHP the publish key', $publish('401'), 401);
        throws('404 told 404: give ws-server a publish key', $publish('404'), 404);
        throws('413 told 413: send less', $publish('413'), 413);
        throws('307', $publish('redirect'), 307);

        $gone = 'http://127.0.0.1:' . freePort();
        $error = throws('no ws-server answers', fn () => (new Client($gone, KEY, $transport))->publish('a', [], 'all'), 0);
        contains($gone, $error->getMessage());
        contains('correct WS_SERVERS', $error->getMessage());
        same(false, $error->outcomeUnknown);
    });
});

test('an answer that is not one of ws-server is a failure', function (): void {
    withServer(function (PhpServer $server, Transport $transport): void {
        $base = "http://{$server->address}";
        throws('another program answers', fn () => (new Client("$base/html", KEY, $transport))->publish('a', [], 'all'));
        // The error is one line, without the page.
        foreach ([404, 405, 502] as $status) {
            $publish = fn () => (new Client("$base/nginx/$status", KEY, $transport))->publish('a', [], 'all');
            $error = throws("$status with a page of HTML", $publish, $status);
            same(false, strpbrk($error->getMessage(), "<\r\n"));
            contains($status < 500 ? 'another program answers' : 'was not carried out', $error->getMessage());
        }
        $publish = fn () => (new Client("$base/huge", KEY, $transport))->publish('a', [], 'all');
        throws('', $publish);
        same(true, memory_get_peak_usage() < 64 << 20);
    });
});

test('a setting that is missing or wrong is named', function (): void {
    throws('WS_SERVER_PUBLISH_KEY is not set', fn () => new Client('http://127.0.0.1:1'));
    throws('a line break', fn () => new Client('http://127.0.0.1:1', "a\nb"));
    throws('WS_SERVERS is not set', fn () => new Client(null, KEY));
    throws('the list of servers is empty', fn () => new Client(" \n", KEY));
    foreach (['127.0.0.1:9001', 'ws://127.0.0.1:1', 'http://', 'http://user@host', 'http://host?a'] as $url) {
        throws("$url is no address", fn () => new Client($url, KEY));
    }
    putenv("WS_SERVERS=\n http://127.0.0.1:1/,\n\thttp://127.0.0.1:2 \n");
    putenv('WS_SERVER_PUBLISH_KEY=' . KEY . "\n");
    new Client();
    putenv('WS_SERVERS');
    putenv('WS_SERVER_PUBLISH_KEY');
});
