<?php
// The button of the site's own admin page: shows whether each ws-server answers, and starts one. public/admin.php is the
// page; a shell has the same: `php admin.php` shows, `php admin.php start` starts. Needs no PHP extension.
//
// Settings, as environment variables:
//   WS_SERVERS    the addresses to look at, as for WsCluster\Client
//   WS_PATH       the path of the clients (default: /WebSockets)
//   WS_SUPERVISE  what starts a server (default: ws-server supervise), as
//                 /usr/local/bin/ws-server supervise --config /etc/ws-server.toml
//   WS_LOG        the file for its log (default: ws-server.log in the system's temporary directory)
declare(strict_types=1);

require_once __DIR__ . '/../../clients/php/autoload.php';

/** Seconds for a test connection. */
const WS_TEST_SECONDS = 3.0;
/** Seconds for a server to answer after its start. */
const WS_START_SECONDS = 10.0;
/** Seconds for another start of the same server to end: longer than one takes. */
const WS_LOCK_SECONDS = 15.0;
/** What every client is answered to, guests included. */
const WS_QUESTION = '{"action":"Client/authentication","details":[]}';

/**
 * Connects as a client does, and waits for the first answer.
 *
 * @return ?string What is wrong; null if it answers.
 */
function ws_test(string $server, float $seconds = WS_TEST_SECONDS): ?string
{
    $parts = parse_url($server);
    $secure = ($parts['scheme'] ?? 'http') === 'https';
    [$host, $port] = [$parts['host'] ?? '', $parts['port'] ?? ($secure ? 443 : 80)];
    $deadline = microtime(true) + $seconds;
    $stream = @stream_socket_client(($secure ? 'tls' : 'tcp') . "://$host:$port", $code, $why, $seconds);
    if ($stream === false) {
        return "no connection ($why)";
    }
    $key = base64_encode(random_bytes(16));
    $path = ($parts['path'] ?? '') . (getenv('WS_PATH') ?: '/WebSockets');
    fwrite($stream, "GET $path HTTP/1.1\r\nHost: $host:$port\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        . "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: $key\r\n\r\n");
    $head = ws_read($stream, $deadline, fn (string $read) => str_contains($read, "\r\n\r\n"));
    if ($head === null) {
        return 'it takes connections and does not answer: it hangs';
    }
    [$head, $frames] = explode("\r\n\r\n", $head, 2);
    [, $status, $text] = explode(' ', strtok($head, "\r\n"), 3) + [1 => '?', 2 => ''];
    if ($status !== '101') {
        fclose($stream);
        return "it refuses clients ($status $text)";
    }
    $accept = base64_encode(sha1($key . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11', true));
    if (preg_match('~^Sec-WebSocket-Accept:\s*' . preg_quote($accept, '~') . '\s*$~mi', $head) !== 1) {
        return 'another program answers there';
    }
    // A final text frame under a mask of zeros, which leaves the text as it is.
    fwrite($stream, "\x81" . chr(0x80 | strlen(WS_QUESTION)) . "\0\0\0\0" . WS_QUESTION);
    $answer = $frames !== '' ? $frames : ws_read($stream, $deadline, fn (string $read) => $read !== '');
    // A close frame with the code 1000.
    @fwrite($stream, "\x88\x82\0\0\0\0\x03\xe8");
    fclose($stream);
    return $answer === null ? 'it takes clients and does not answer them: it hangs' : null;
}

/** Reads until it is enough. Null if the time is over or the connection ends before. */
function ws_read($stream, float $deadline, callable $enough): ?string
{
    $read = '';
    while (!$enough($read)) {
        $left = $deadline - microtime(true);
        if ($left <= 0) {
            return null;
        }
        stream_set_timeout($stream, (int) $left, (int) (fmod($left, 1) * 1_000_000));
        $part = @fread($stream, 8192);
        if ($part === false || $part === '') {
            return null;
        }
        $read .= $part;
    }
    return $read;
}

/** @return array<string, ?string> What is wrong with each server, null if it answers. */
function ws_states(): array
{
    $servers = WsCluster\Servers::of()->urls();
    return array_combine($servers, array_map(ws_test(...), $servers));
}

/** What starts a server. */
function ws_command(): string
{
    return trim((string) getenv('WS_SUPERVISE')) ?: 'ws-server supervise';
}

/** Why PHP may not start programs, with what to do instead; null if it may. */
function ws_start_hindrance(): ?string
{
    if (function_exists('exec')) {
        return null;
    }
    return 'PHP may not start programs here (exec is in disable_functions). Start the server on its machine: '
        . ws_command() . ' -- or let systemd do it: docs/site.md has a unit.';
}

/** The user of this process; null if it cannot be known. `getmyuid` would be the owner of the script. */
function ws_user(): ?int
{
    if (function_exists('posix_geteuid')) {
        return posix_geteuid();
    }
    $file = @tmpfile();
    return $file === false ? null : fstat($file)['uid'];
}

/**
 * Opens a file of this user in a directory where others make files too, and makes it if it is missing.
 *
 * @return ?resource Null if it is not this user's, or cannot be opened.
 */
function ws_own_file(string $path)
{
    // To open a FIFO blocks.
    if (is_link($path) || (file_exists($path) && !is_file($path))) {
        return null;
    }
    $mask = umask(0077);
    $file = @fopen($path, 'a');
    umask($mask);
    clearstatcache();
    $found = $file === false ? false : @lstat($path);
    if ($found === false) {
        return null;
    }
    $opened = fstat($file);
    $is_same = [$found['dev'], $found['ino']] === [$opened['dev'], $opened['ino']];
    return $is_same && $opened['uid'] === ws_user() ? $file : null;
}

/**
 * Starts a supervisor with its server in the background, and waits until the server answers.
 *
 * @return ?string What went wrong, with what to do; null if it answers.
 */
function ws_start(string $server): ?string
{
    $hindrance = ws_start_hindrance();
    if ($hindrance !== null) {
        return $hindrance;
    }
    // Two clicks start one server.
    $name = sys_get_temp_dir() . '/ws-server-start-' . md5(ws_user() . ' ' . $server);
    $lock = ws_own_file($name);
    if ($lock === null) {
        return "the lock of the start cannot be taken: $name is a link or of another user, or its directory is not writable";
    }
    for ($end = microtime(true) + WS_LOCK_SECONDS; !flock($lock, LOCK_EX | LOCK_NB); usleep(100_000)) {
        if (microtime(true) > $end) {
            return "another process holds $name: end it, or start the server on its machine: " . ws_command();
        }
    }
    if (ws_test($server) === null) {
        return null;
    }
    $log = getenv('WS_LOG') ?: '';
    if ($log === '') {
        // Every user may make files there.
        $log = sys_get_temp_dir() . '/ws-server.log';
        if (ws_own_file($log) === null) {
            return "the log $log is a link or of another user, or cannot be written: name another one in WS_LOG";
        }
    }
    $before = is_file($log) ? (int) filesize($log) : 0;
    // A session of its own: it outlives the PHP worker and its terminal. The supervisor closes what it inherited.
    $shell = 'setsid ' . ws_command() . ' </dev/null >>' . escapeshellarg($log) . ' 2>&1 & echo $!';
    exec($shell, $output, $status);
    $process = (int) ($output[0] ?? 0);
    if ($status !== 0 || $process === 0) {
        return 'the shell did not start ' . ws_command();
    }
    $deadline = microtime(true) + WS_START_SECONDS;
    do {
        if (ws_test($server, 1.0) === null) {
            return null;
        }
        $runs = !is_dir('/proc') || is_dir("/proc/$process");
        usleep(100_000);
    } while ($runs && microtime(true) < $deadline);
    $said = trim((string) @file_get_contents($log, false, null, $before));
    $lines = $said === '' ? [] : explode("\n", $said);
    $last = $lines === [] ? "its log $log is empty" : 'its log says: ' . end($lines);
    return ($runs ? "the server does not answer at $server: " : 'the server ended: ') . $last;
}

// From a shell.
if (PHP_SAPI === 'cli' && realpath($_SERVER['SCRIPT_FILENAME']) === __FILE__) {
    try {
        if (($argv[1] ?? '') === 'start') {
            $why = ws_start(WsCluster\Servers::of()->urls()[0]);
            echo $why === null ? 'it answers' : $why, "\n";
            exit($why === null ? 0 : 1);
        }
        $states = ws_states();
    } catch (WsCluster\Exception $error) {
        fwrite(STDERR, $error->getMessage() . "\n");
        exit(2);
    }
    foreach ($states as $server => $why) {
        echo $server, ' ', $why ?? 'answers', "\n";
    }
    exit(in_array(null, $states, true) ? 0 : 1);
}
