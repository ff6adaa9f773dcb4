<?php

declare(strict_types=1);

error_reporting(E_ALL);
set_error_handler(static function (int $level, string $text, string $file, int $line): bool {
    // Those that the code silences with @.
    if ((error_reporting() & $level) === 0) {
        return false;
    }
    throw new ErrorException($text, 0, $level, $file, $line);
});

/** What a test expects is not so. */
final class Failure extends Exception
{
}

final class Tests
{
    /** @var array<string, Closure> */
    public static array $all = [];

    public static function run(string $filter): int
    {
        $failed = $ran = 0;
        foreach (self::$all as $name => $test) {
            if ($filter !== '' && !str_contains($name, $filter)) {
                continue;
            }
            $ran++;
            try {
                $test();
                echo "ok      $name\n";
            } catch (Throwable $error) {
                $failed++;
                echo "FAILED  $name\n        ", $error::class, ': ', $error->getMessage(), "\n", $error->getTraceAsString(), "\n";
            }
        }
        echo "$ran tests, $failed failed\n";
        return $failed === 0 && $ran > 0 ? 0 : 1;
    }
}

function test(string $name, Closure $test): void
{
    isset(Tests::$all[$name]) && throw new LogicException("two tests are called: $name");
    Tests::$all[$name] = $test;
}

function same(mixed $expected, mixed $got, string $about = ''): void
{
    if ($expected !== $got) {
        throw new Failure("$about: expected " . var_export($expected, true) . ', got ' . var_export($got, true));
    }
}

function contains(string $part, string $text, string $about = ''): void
{
    str_contains($text, $part) || throw new Failure("$about: no " . var_export($part, true) . ' in ' . var_export($text, true));
}

/** Expects the package's exception with this text and code. Returns it. */
function throws(string $text, Closure $call, ?int $code = null): WsCluster\Exception
{
    try {
        $call();
    } catch (WsCluster\Exception $error) {
        contains($text, $error->getMessage());
        $code === null || same($code, $error->getCode(), $text);
        return $error;
    }
    throw new Failure("nothing was thrown: $text");
}

/** A PHP server at a free port. It ends with the process. */
final class PhpServer
{
    /** @var resource */
    private $process;
    /** @var resource */
    private $log;
    public readonly string $address;
    public readonly string $directory;

    /** @param array<string, string> $environment */
    public function __construct(string $script, array $environment = [], string $current = __DIR__)
    {
        $this->directory = sys_get_temp_dir() . '/ws-cluster-php-' . bin2hex(random_bytes(8));
        mkdir($this->directory, 0700);
        $log = fopen("{$this->directory}/log", 'w+');
        $environment += ['REQUESTS' => "{$this->directory}/requests", 'TMPDIR' => $this->directory] + getenv();
        $command = [PHP_BINARY, '-d', 'display_errors=1', '-S', '127.0.0.1:0', $script];
        $this->process = proc_open($command, [['file', '/dev/null', 'r'], $log, $log], $pipes, $current, $environment);
        $this->log = $log;
        for ($end = microtime(true) + 20; microtime(true) < $end; usleep(10_000)) {
            if (preg_match('~\(http://(127\.0\.0\.1:\d+)\)~', $this->log(), $found) === 1) {
                $this->address = $found[1];
                return;
            }
        }
        throw new Failure('PHP does not start: ' . $this->log());
    }

    public function log(): string
    {
        return (string) file_get_contents("{$this->directory}/log");
    }

    /** @return list<array<string, mixed>> What `server.php` got until now. */
    public function requests(): array
    {
        $lines = @file("{$this->directory}/requests", FILE_IGNORE_NEW_LINES) ?: [];
        return array_map(static fn (string $line): array => json_decode($line, true), $lines);
    }

    /** @param list<string> $headers */
    public function post(string $path, array $headers, string $body): array
    {
        $context = stream_context_create(['http' => [
            'method' => 'POST', 'header' => $headers, 'content' => $body, 'ignore_errors' => true, 'timeout' => 20,
        ]]);
        $text = file_get_contents("http://{$this->address}$path", false, $context);
        return [(int) explode(' ', $http_response_header[0])[1], (string) $text, implode("\n", $http_response_header)];
    }

    public function __destruct()
    {
        proc_terminate($this->process, 9);
        proc_close($this->process);
        array_map(unlink(...), glob("{$this->directory}/*") ?: []);
        @rmdir($this->directory);
    }
}

/** Headers of a signed request. */
function signed(string $key, string $body, ?int $time = null, string $id = 'msg_1'): array
{
    $time ??= time();
    return [
        'webhook-id' => $id,
        'webhook-timestamp' => (string) $time,
        'webhook-signature' => (new WsCluster\Webhook($key))->sign($id, $time, $body),
    ];
}
