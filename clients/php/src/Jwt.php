<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Signs tokens with which pages tell ws-server who their user is (`--jwt-secret`), for sites without a library for JSON
 * Web Tokens.
 *
 * ```php
 * echo WsCluster\Jwt::token($user, 60);
 * ```
 */
final class Jwt
{
    /** Bytes of the shortest secret, as many as the hash has. */
    private const MIN_SECRET = 32;

    /**
     * Returns a token signed with HS256.
     *
     * @param string|int $user The user's id (`sub`).
     * @param int $ttl Seconds until the token ends (`exp`). The page fetches a fresh one before that.
     * @param ?string $session The session (`sid`), which `Client::close` can name.
     * @param list<string> $groups The groups in which the user's connections start.
     * @param array<string, mixed> $claims More claims, such as `aud`.
     * @param ?string $secret At least 32 bytes. Default: the variable WS_SERVER_JWT_SECRET.
     *
     * @throws Exception The secret is missing, too short, or a key in PEM; the user is '', 0 or '0'; the session or a
     *     group is empty.
     */
    public static function token(
        string|int $user,
        int $ttl,
        ?string $session = null,
        array $groups = [],
        array $claims = [],
        ?string $secret = null,
    ): string {
        $secret = trim($secret ?? Environment::get('WS_SERVER_JWT_SECRET'));
        if (strlen($secret) < self::MIN_SECRET) {
            $why = $secret === '' ? 'is not set' : 'has ' . strlen($secret) . ' bytes';
            $advice = 'give ws-server and PHP the same one of at least 32 bytes, as from `openssl rand -hex 32`';
            throw new Exception("the secret of the tokens (WS_SERVER_JWT_SECRET) $why: $advice");
        }
        if (str_contains($secret, '-----BEGIN ')) {
            throw new Exception('the secret of the tokens (WS_SERVER_JWT_SECRET) is a key in PEM: use random text');
        }
        if (in_array((string) $user, ['', '0'], true)) {
            throw new Exception('a token needs a user: give guests no token');
        }
        // ws-server refuses a token with an empty id.
        if ($session === '') {
            throw new Exception('the session of a token is empty: leave it out');
        }
        foreach ($groups as $group) {
            if ((!is_string($group) && !is_int($group)) || $group === '') {
                throw new Exception('a group of a token is empty or no text: check that each group is known');
            }
        }
        if ($ttl < 1) {
            throw new Exception("a token of $ttl s has ended already: give it 30 s or more");
        }
        $own = ['sub' => (string) $user, 'exp' => time() + $ttl]
            + ($session === null ? [] : ['sid' => $session])
            + ($groups === [] ? [] : ['groups' => array_values($groups)]);
        $text = self::encode(Json::encode(['alg' => 'HS256', 'typ' => 'JWT'])) . '.'
            . self::encode(Json::encode($own + $claims));
        return $text . '.' . self::encode(hash_hmac('sha256', $text, $secret, true));
    }

    private static function encode(string $bytes): string
    {
        return rtrim(strtr(base64_encode($bytes), '+/', '-_'), '=');
    }
}
