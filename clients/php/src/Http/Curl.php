<?php

declare(strict_types=1);

namespace WsCluster\Http;

/**
 * Requests with the extension curl, which keeps connections open between two of them.
 *
 * @internal
 */
final class Curl implements Transport
{
    /** Faults before anything was sent. */
    private const NOT_SENT = [CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_CONNECT, CURLE_SSL_CONNECT_ERROR];

    private ?\CurlHandle $handle = null;

    /** Returns true if PHP has the extension, and `disable_functions` does not name what is called here. */
    public static function isAllowed(): bool
    {
        return function_exists('curl_init') && function_exists('curl_exec');
    }

    public function send(
        string $method,
        string $url,
        array $headers,
        string $body,
        float $connectSeconds,
        float $seconds,
    ): Reply {
        $curl = $this->handle ??= curl_init();
        curl_reset($curl);
        // Without a value, curl would wait for "100 Continue" before it sends a large body.
        $lines = ['Expect:'];
        foreach ($headers as $name => $value) {
            $lines[] = "$name: $value";
        }
        $answer = '';
        curl_setopt_array($curl, [
            CURLOPT_URL => $url,
            CURLOPT_CUSTOMREQUEST => $method,
            CURLOPT_HTTPHEADER => $lines,
            CURLOPT_HTTP_VERSION => CURL_HTTP_VERSION_1_1,
            CURLOPT_PROTOCOLS => CURLPROTO_HTTP | CURLPROTO_HTTPS,
            CURLOPT_FOLLOWLOCATION => false,
            CURLOPT_PROXY => '',
            CURLOPT_NOSIGNAL => true,
            CURLOPT_CONNECTTIMEOUT_MS => (int) ($connectSeconds * 1000),
            CURLOPT_TIMEOUT_MS => (int) ($seconds * 1000),
            CURLOPT_WRITEFUNCTION => static function ($_, string $part) use (&$answer): int {
                $answer .= $part;
                return strlen($answer) > self::MAX_ANSWER ? 0 : strlen($part);
            },
        ]);
        if ($method === 'POST') {
            curl_setopt($curl, CURLOPT_POSTFIELDS, $body);
        }
        if (curl_exec($curl) === false) {
            $fault = curl_errno($curl);
            $connecting = $fault === CURLE_OPERATION_TIMEDOUT && curl_getinfo($curl, CURLINFO_PRETRANSFER_TIME_T) === 0;
            return new Reply(0, curl_error($curl), !$connecting && !in_array($fault, self::NOT_SENT, true));
        }
        return new Reply(curl_getinfo($curl, CURLINFO_RESPONSE_CODE), trim($answer));
    }
}
