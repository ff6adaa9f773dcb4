<?php

declare(strict_types=1);

namespace WsCluster\Http;

/**
 * Requests without an extension, and without `allow_url_fopen`. Each has a connection of its own.
 *
 * @internal
 */
final class Streams implements Transport
{
    public function send(
        string $method,
        string $url,
        array $headers,
        string $body,
        float $connectSeconds,
        float $seconds,
    ): Reply {
        if (!function_exists('stream_socket_client')) {
            return new Reply(0, 'disable_functions forbids both curl_exec and stream_socket_client: allow one', false);
        }
        $parts = parse_url($url);
        $tls = ($parts['scheme'] ?? '') === 'https';
        $host = $parts['host'] ?? '';
        $port = $parts['port'] ?? ($tls ? 443 : 80);
        $address = ($tls ? 'tls' : 'tcp') . "://$host:$port";
        $stream = @stream_socket_client($address, $code, $why, $connectSeconds);
        if ($stream === false) {
            return new Reply(0, $why === '' ? 'no connection' : $why, false);
        }
        $path = ($parts['path'] ?? '/') . (isset($parts['query']) ? "?{$parts['query']}" : '');
        $rest = "$method $path HTTP/1.0\r\nHost: $host:$port\r\n";
        foreach ($headers as $name => $value) {
            $rest .= "$name: $value\r\n";
        }
        $rest .= 'Content-Length: ' . strlen($body) . "\r\n\r\n$body";
        $deadline = microtime(true) + $seconds;
        $answer = '';
        while (($left = $deadline - microtime(true)) > 0) {
            stream_set_timeout($stream, (int) $left, (int) (fmod($left, 1) * 1_000_000));
            if ($rest !== '') {
                $written = @fwrite($stream, $rest);
                // A server that refuses does not read to the end, but answers.
                $rest = $written === false || $written === 0 ? '' : substr($rest, $written);
                continue;
            }
            $part = @fread($stream, 65536);
            $answer .= (string) $part;
            if ($part === false || feof($stream) || strlen($answer) > self::MAX_ANSWER) {
                break;
            }
        }
        fclose($stream);
        if ($left <= 0) {
            return new Reply(0, sprintf('no answer within %g s', $seconds));
        }
        if (preg_match('~^HTTP/1\.[01] (\d{3})[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n(.*)~s', $answer, $found) !== 1) {
            return new Reply(0, $answer === '' ? 'the connection ended without an answer' : 'the answer is not HTTP');
        }
        return new Reply((int) $found[1], trim($found[2]));
    }
}
