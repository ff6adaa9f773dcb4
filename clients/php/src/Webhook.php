<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Signatures as Standard Webhooks defines them: HMAC-SHA256 over `ID.TIMESTAMP.BODY`.
 */
final class Webhook
{
    /** Seconds that the clocks of ws-server and PHP may differ, and so the age of a request that is repeated. */
    public const TOLERANCE = 300;

    /** Bytes of the shortest key, as for ws-server. */
    private const MIN_KEY = 24;

    /** The number of signatures of one request that are looked at. */
    private const MAX_SIGNATURES = 16;

    /** @var non-empty-list<string> The keys as bytes. */
    private readonly array $keys;

    /**
     * @param string|list<string> $keys The key of `--backend-key`; several while the key is changed, of which the first
     *     one signs. `whsec_` and base64 stand for bytes, any other text for itself.
     *
     * @throws Exception A key is shorter than 24 bytes or malformed.
     */
    public function __construct(#[\SensitiveParameter] string|array $keys)
    {
        $this->keys = array_map(self::key(...), array_values((array) $keys))
            ?: throw new Exception('there is no key: give that of ws-server (WS_SERVER_BACKEND_KEY)');
    }

    /**
     * Verifies a request.
     *
     * @param array<string, string|list<string>> $headers By name in any case. A value may be a list, as in PSR-7.
     * @param ?int $now The present Unix time, for tests.
     *
     * @return string The id of the request. A request that is sent again has the same one.
     *
     * @throws Exception With the code 401: the request is not from ws-server, or too old.
     */
    public function verify(array $headers, string $body, ?int $now = null): string
    {
        $headers = array_change_key_case($headers);
        $given = [];
        foreach (['webhook-id', 'webhook-timestamp', 'webhook-signature'] as $name) {
            $value = $headers[$name] ?? '';
            $given[] = $value = is_array($value) ? (count($value) === 1 ? (string) reset($value) : '') : (string) $value;
            if ($value === '') {
                throw new Exception("the header $name is missing, empty or there twice: only ws-server posts here", 401);
            }
        }
        [$id, $timestamp, $signatures] = $given;
        if (preg_match('/^[0-9]{1,12}$/D', $timestamp) !== 1) {
            throw new Exception('webhook-timestamp is no Unix time', 401);
        }
        $age = ($now ?? time()) - (int) $timestamp;
        if (abs($age) > self::TOLERANCE) {
            $off = $age > 0 ? "$age s old" : -$age . ' s ahead';
            $limit = self::TOLERANCE;
            throw new Exception("the request is $off, of at most $limit: it is a replay, or a clock is wrong", 401);
        }
        // The last element is what follows the signatures that are looked at.
        $presented = array_slice(explode(' ', $signatures, self::MAX_SIGNATURES + 1), 0, self::MAX_SIGNATURES);
        foreach ($this->keys as $key) {
            // Once for each key: a sender without the key decides how many signatures and how long a body there are.
            $expected = self::signature($key, $id, (int) $timestamp, $body);
            foreach ($presented as $signature) {
                if (hash_equals($expected, $signature)) {
                    return $id;
                }
            }
        }
        throw new Exception('the signature does not fit: give ws-server and PHP the same WS_SERVER_BACKEND_KEY', 401);
    }

    /** Returns the value of `webhook-signature` for a request. Tests of a site use it. */
    public function sign(string $id, int $timestamp, string $body): string
    {
        return self::signature($this->keys[0], $id, $timestamp, $body);
    }

    private static function signature(string $key, string $id, int $timestamp, string $body): string
    {
        return 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
    }

    private static function key(string $text): string
    {
        $text = trim($text);
        $key = str_starts_with($text, 'whsec_') ? base64_decode(substr($text, strlen('whsec_')), true) : $text;
        if ($key === false || strlen($key) < self::MIN_KEY) {
            $why = match (true) {
                $text === '' => 'is empty',
                $key === false => 'begins with whsec_, but what follows is no base64',
                default => 'has ' . strlen($key) . ' bytes, of at least ' . self::MIN_KEY,
            };
            throw new Exception("the key of the backend $why: give that of ws-server (WS_SERVER_BACKEND_KEY)");
        }
        return $key;
    }
}
