<?php

declare(strict_types=1);

/** @return list<string> The blocks of PHP of the README that contain this text. */
function blocks(string $text): array
{
    preg_match_all('/^```php\n(.*?)^```/ms', file_get_contents(__DIR__ . '/../README.md'), $found);
    same(true, count($found[1]) >= 8, 'the blocks are found');
    return array_values(array_filter($found[1], fn (string $block): bool => str_contains($block, $text)));
}

/** Runs a block from the top of the repository. Returns what it prints. */
function block(string $block, array $environment, string $before = ''): string
{
    $file = tempnam(sys_get_temp_dir(), 'block');
    // Composer would have loaded the package.
    $code = str_contains($block, 'autoload.php') ? '' : "require 'clients/php/autoload.php';\n";
    file_put_contents($file, "<?php\nerror_reporting(E_ALL);\n$before\n$code$block");
    $command = [PHP_BINARY, '-d', 'display_errors=1', '-d', 'include_path=' . dirname(__DIR__, 3), $file];
    $process = proc_open($command, [1 => ['pipe', 'w'], 2 => ['redirect', 1]], $pipes, dirname(__DIR__, 3), $environment + getenv());
    $printed = stream_get_contents($pipes[1]);
    $status = proc_close($process);
    unlink($file);
    same(0, $status, $printed);
    return $printed;
}

test('the blocks of the README publish and change connections', function (): void {
    $batch = '[{"status":204},{"status":400,"error":"told"}]';
    $server = new PhpServer(__DIR__ . '/server.php', ['BATCH' => $batch, 'BATCHES' => '1']);
    $environment = ['WS_SERVERS' => "http://{$server->address}/204", 'WS_SERVER_PUBLISH_KEY' => 'a key'];
    $blocks = blocks('new Client()');
    same(3, count($blocks));
    $printed = implode('', array_map(fn (string $block) => block($block, $environment), $blocks));
    same(1, preg_match('/message 1 was not accepted: 400 told\n$/', $printed), $printed);
    $paths = array_count_values(array_column($server->requests(), 'path'));
    same(['/_publish' => 7, '/_close' => 3, '/_groups' => 1, '/_refresh' => 1], $paths);
});

test('the README and the documentation of ws-server say the same about the end of an identity', function (): void {
    contains('Before that time comes', file_get_contents(__DIR__ . '/../../../docs/site.md'));
    foreach (['README.md', 'src/Identity.php'] as $file) {
        $text = preg_replace('/\n(\s*\*)?\s*/', ' ', file_get_contents(__DIR__ . "/../$file"));
        same(1, preg_match('/[Bb]efore (it|`expires` comes), ws-server asks again with the event `refresh`/', $text), $file);
    }
});

test('the block of the README about positions has one, or null', function (): void {
    $server = new PhpServer(__DIR__ . '/server.php', ['BATCH' => '{"position":"p.vD0m"}']);
    [$block] = blocks('->position()');
    foreach (['batch' => '"p.vD0m"', '404' => 'null'] as $path => $expected) {
        $environment = ['WS_SERVERS' => "http://{$server->address}/$path", 'WS_SERVER_PUBLISH_KEY' => 'a key'];
        same($expected, block("{$block}echo json_encode(\$position);", $environment));
    }
});

test('the block of the README about failures runs', function (): void {
    [$block] = blocks('catch (Exception');
    contains('no ws-server answers (http://127.0.0.1:1: ', block($block, []));
});

test('the block of the README about tokens prints one', function (): void {
    [$block] = blocks('Jwt::token');
    $token = block($block, ['WS_SERVER_JWT_SECRET' => str_repeat('x', 32)]);
    same(3, count(explode('.', $token)), $token);
});

test('the block of the README about the outbox commits a row', function (): void {
    [$block] = blocks('beginTransaction');
    $before = '$database = new PDO("sqlite::memory:");'
        . '$database->exec("CREATE TABLE news (id INTEGER PRIMARY KEY, text TEXT)");'
        . '$database->exec("CREATE TABLE ws_outbox (id INTEGER PRIMARY KEY, action TEXT, details TEXT, target TEXT)");';
    $after = 'echo implode(" ", $database->query("SELECT action, details, target FROM ws_outbox")->fetch(PDO::FETCH_NUM));';
    same('news/new [1,"Hello"] all', block($block . $after, [], $before));
});

test('the backends of the README answer', function (): void {
    $key = 'a key of the backend of the README';
    $answers = function (string $block, array $events) use ($key): array {
        $directory = sys_get_temp_dir() . '/ws-cluster-readme-' . bin2hex(random_bytes(8));
        mkdir($directory);
        $sessions = '$sessions = ["s1" => ["user" => 7, "banned" => false], "s2" => ["user" => 8, "banned" => true]];';
        file_put_contents("$directory/block.php", "<?php\n$sessions\n$block");
        try {
            $server = new PhpServer("$directory/block.php", ['WS_SERVER_BACKEND_KEY' => $key], dirname(__DIR__, 3));
            return array_map(function (array $event) use ($server, $key): array {
                $body = json_encode($event);
                $headers = array_map(fn ($name, $value) => "$name: $value", array_keys(signed($key, $body)), signed($key, $body));
                return array_slice($server->post('/', ['Content-Type: application/json', ...$headers], $body), 0, 2);
            }, $events);
        } finally {
            unlink("$directory/block.php");
            rmdir($directory);
        }
    };
    $action = fn (string $name, array $details, ?string $user) => [
        'event' => 'action', 'action' => $name, 'details' => $details, 'user' => $user, 'connection' => 'ab-1',
    ];
    [$actions] = blocks("->action('sum'");
    same([
        [200, '{"reply":[3]}'],
        [200, '{"error":[400,"argument 1 must be a whole number"]}'],
        [200, '{"error":[403,"sign in first"]}'],
        [200, '{"error":[403,"only for administrators"]}'],
        [200, '{"reply":["welcome"],"join":["room/7"],"publish":[{"action":"room/joined","details":["bob"],'
            . '"to":{"group":"room/7"},"except":{"connection":"ab-1"}}]}'],
    ], $answers($actions, [
        $action('sum', [1, 2], null),
        $action('sum', [1], null),
        $action('room/7', [], null),
        $action('room/admins', [], 'bob'),
        $action('room/7', [], 'bob'),
    ]));
    [$connect] = blocks('->connect(');
    $event = fn (string $name, string $cookie) => ['event' => $name, 'headers' => ['cookie' => $cookie], 'user' => '7'];
    $found = $answers($connect, [
        $event('connect', 'sid=s1'), $event('refresh', 'sid=s1'), $event('connect', 'sid=s2'),
        $event('connect', 'other=s1'), $event('disconnect', ''),
    ]);
    $identity = '{"user":"7","session":"s1","expires":TIME,"groups":["editors"]}';
    $texts = array_map(fn (array $answer) => preg_replace('/"expires":\d+/', '"expires":TIME', $answer[1]), $found);
    same([200, 200, 403, 200, 204], array_column($found, 0));
    same([$identity, $identity, "banned\n", '{}', ''], $texts);
});
