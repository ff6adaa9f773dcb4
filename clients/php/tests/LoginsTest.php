<?php

// The hooks of docs/logins.md, each with a stand-in for its framework.

declare(strict_types=1);

const LOGINS = __DIR__ . '/../../../docs/logins.md';

/** Runs the hook below a heading with a stub before it. Returns what each cookie header gives: a status and the identity. */
function hook(string $heading, string $stub, array $cookies, array $environment = []): array
{
    $page = file_get_contents(LOGINS);
    same(1, preg_match("/^## $heading\n.*?^```php\n(.*?)^```/ms", $page, $found), $heading);
    // The stub stands for the files that the recipe loads.
    $code = preg_replace('/^require (?!\'clients\/).*\n/m', '', $found[1]);
    $directory = sys_get_temp_dir() . '/ws-cluster-logins-' . bin2hex(random_bytes(8));
    mkdir($directory);
    $key = 'a key of the backend of the recipes';
    try {
        $file = "$directory/hook.php";
        // A `use` must be at the top of its file.
        file_put_contents("$directory/recipe.php", "<?php\n$code");
        file_put_contents($file, "<?php\nrequire '" . __DIR__ . "/stubs/$stub.php';\nrequire __DIR__ . '/recipe.php';\n");
        $environment += ['WS_SERVER_BACKEND_KEY' => $key, 'SESSIONS' => $directory];
        $server = new PhpServer($file, $environment, dirname(__DIR__, 3));
        $answers = [];
        foreach ($cookies as $cookie) {
            foreach (['connect', 'refresh'] as $name) {
                $body = json_encode(['event' => $name, 'headers' => ['cookie' => $cookie], 'user' => null]);
                $headers = ['Content-Type: application/json'];
                foreach (signed($key, $body) as $header => $value) {
                    $headers[] = "$header: $value";
                }
                [$status, $text] = $server->post('/', $headers, $body);
                $answer = [$status, json_decode($text, true) ?? $text . $server->log()];
                if (isset($answer[1]['expires'])) {
                    same(true, abs($answer[1]['expires'] - time() - 300) < 60, 'expires in five minutes');
                    unset($answer[1]['expires']);
                }
                $name === 'connect' || same(end($answers), $answer, $cookie);
                $name === 'connect' && $answers[] = $answer;
            }
        }
        same(400, $server->post('/', ['Content-Type: application/json', 'webhook-id: a', 'webhook-timestamp: 1', 'webhook-signature: v1,x'], '{}')[0]);
        return $answers;
    } finally {
        array_map(unlink(...), glob("$directory/*"));
        rmdir($directory);
    }
}

/** Writes a session as PHP does, with the user and what a visitor typed. */
function storedSession(string $id, ?string $user): string
{
    $directory = sys_get_temp_dir() . '/ws-cluster-sessions-' . getmypid();
    is_dir($directory) || mkdir($directory);
    $search = '";user|s:5:"admin";';
    $data = 'search|s:' . strlen($search) . ":\"$search\";" . ($user === null ? '' : 'user|s:' . strlen($user) . ":\"$user\";");
    file_put_contents("$directory/sess_$id", $data);
    return $directory;
}

function sessionsGone(string $directory): void
{
    array_map(unlink(...), glob("$directory/*"));
    rmdir($directory);
}

foreach (["PHP's own sessions" => 'sessions', 'Symfony' => 'symfony'] as $heading => $stub) {
    test("the hook of $heading finds the user of a session in a file", function () use ($heading, $stub): void {
        [$ann, $guest] = [str_repeat('a', 26), str_repeat('b', 26)];
        storedSession($ann, 'ann');
        $directory = storedSession($guest, null);
        $cookies = [
            "PHPSESSID=$ann",
            "other=1; PHPSESSID=$ann",
            "PHPSESSID=$guest",
            'PHPSESSID=' . str_repeat('c', 26),
            'PHPSESSID=../../etc/passwd',
            "PHPSESSID=$ann%00",
            "PHPSESSID=" . str_repeat('a', 10_000),
            "phpsessid=$ann",
            'PHPSESSID=',
            '',
        ];
        try {
            $answers = hook($heading, $stub, $cookies, ['SESSIONS' => $directory]);
        } finally {
            sessionsGone($directory);
        }
        foreach ($answers as $index => [$status, $identity]) {
            same(200, $status, $cookies[$index] . json_encode($identity));
            $user = $index < 2 ? ['ann', $ann] : [null, null];
            same($user, [$identity['user'] ?? null, $identity['session'] ?? null], $cookies[$index]);
        }
    });
}

test('the hook of Laravel finds the user of an encrypted cookie', function (): void {
    // Made as the stub makes them; the class is only loaded for this.
    $key = str_repeat('k', 32);
    $cookie = function (string $value, string $name = 'laravel_session', ?string $mac = null) use ($key): string {
        $bytes = str_repeat("\x07", 16);
        $cipher = openssl_encrypt(hash_hmac('sha1', "{$name}v2", $key) . "|$value", 'aes-256-cbc', $key, 0, $bytes);
        $iv = base64_encode($bytes);
        $mac ??= hash_hmac('sha256', $iv . $cipher, $key);
        return 'laravel_session=' . rawurlencode(base64_encode(json_encode(['iv' => $iv, 'value' => $cipher, 'mac' => $mac, 'tag' => ''])));
    };
    [$ann, $guest] = [str_repeat('a', 40), str_repeat('b', 40)];
    $cookies = [
        $cookie($ann),
        $cookie($guest),
        $cookie(str_repeat('c', 40)),
        $cookie('../etc/passwd'),
        // A value of another cookie, which the site may let a visitor choose.
        $cookie($ann, 'XSRF-TOKEN'),
        $cookie($ann, mac: str_repeat('0', 64)),
        "laravel_session=$ann",
        'laravel_session=e30%3D',
        'laravel_session=',
        '',
    ];
    // Longer than what is looked up in SQL.
    same(true, strlen($cookies[0]) > 300);
    $answers = hook('Laravel', 'laravel', $cookies);
    same(['7', $ann], [$answers[0][1]['user'] ?? $answers[0][1], $answers[0][1]['session']]);
    same(array_fill(0, 9, [200, []]), array_slice($answers, 1));
});

test('the hook of WordPress finds the user of a signed cookie', function (): void {
    require_once __DIR__ . '/stubs/wordpress.php';
    $cookie = fn (string $value): string => 'a=b; ' . LOGGED_IN_COOKIE . '=' . rawurlencode($value);
    $later = time() + 86400;
    $ann = wp_generate_auth_cookie('ann', $later, 'token-of-ann');
    $cookies = [
        $cookie($ann),
        $cookie(wp_generate_auth_cookie('o,b%', $later, 'token-of-bob')),
        $cookie(wp_generate_auth_cookie('ann', time() - 1, 'token-of-ann')),
        $cookie(wp_generate_auth_cookie('ann', $later, 'token-of-nobody')),
        $cookie(str_replace('ann|', 'o,b%|', $ann)),
        $cookie(str_replace((string) $later, (string) ($later + 1), $ann)),
        $cookie("ann|$later|token-of-ann"),
        $cookie("ann|$later|token-of-ann|"),
        $cookie("' OR 1 = 1 -- |1|2|3"),
        $cookie(''),
        '',
    ];
    $answers = hook('WordPress', 'wordpress', $cookies);
    same(['7', hash('sha256', 'token-of-ann'), ['editor', 'author']], [$answers[0][1]['user'], $answers[0][1]['session'], $answers[0][1]['groups']]);
    same('8', $answers[1][1]['user']);
    same(array_fill(0, 9, [200, []]), array_slice($answers, 2));
});

test('the token of other sites is one', function (): void {
    same(1, preg_match('/^## Others\n.*?^```php\n(.*?)^```/ms', file_get_contents(LOGINS), $found));
    $token = block($found[1], ['WS_SERVER_JWT_SECRET' => str_repeat('x', 32)], '$user = 7;');
    same(3, count(explode('.', $token)), $token);
});
