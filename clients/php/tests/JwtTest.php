<?php

declare(strict_types=1);

use WsCluster\Jwt;

const SECRET = 'a secret of the tokens with 32 bytes or more';

function claims(string $token): array
{
    [$head, $claims, $signature] = explode('.', $token);
    $decode = fn (string $part): string => base64_decode(strtr($part, '-_', '+/'), true);
    same('{"alg":"HS256","typ":"JWT"}', $decode($head));
    same(hash_hmac('sha256', "$head.$claims", SECRET, true), $decode($signature));
    same(1, preg_match('/^[A-Za-z0-9_.-]+$/', $token), $token);
    return json_decode($decode($claims), true);
}

test('a token has the claims that ws-server reads', function (): void {
    $before = time();
    $claims = claims(Jwt::token(7, 60, secret: SECRET));
    same(['sub', 'exp'], array_keys($claims));
    same('7', $claims['sub']);
    same(true, $claims['exp'] >= $before + 60 && $claims['exp'] <= time() + 60);
    $claims = claims(Jwt::token('é', 60, session: 's', groups: [3 => 'a'], claims: ['aud' => 'ws', 'sub' => 'other'], secret: SECRET));
    same(['é', 's', ['a'], 'ws'], [$claims['sub'], $claims['sid'], $claims['groups'], $claims['aud']]);
});

test('a token needs a secret, a user and a time', function (): void {
    throws('WS_SERVER_JWT_SECRET) is not set', fn () => Jwt::token('ann', 60));
    throws('has 5 bytes', fn () => Jwt::token('ann', 60, secret: 'short'));
    foreach (['', 0, '0'] as $guest) {
        throws('a token needs a user', fn () => Jwt::token($guest, 60, secret: SECRET));
    }
    throws('the session of a token is empty', fn () => Jwt::token('ann', 60, session: '', secret: SECRET));
    foreach ([[''], ['a', ''], [null], [1.5], [['a']]] as $groups) {
        throws('a group of a token is empty', fn () => Jwt::token('ann', 60, groups: $groups, secret: SECRET));
    }
    $pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS\n-----END PUBLIC KEY-----\n";
    throws('is a key in PEM', fn () => Jwt::token('ann', 60, secret: $pem));
    throws('has ended already', fn () => Jwt::token('ann', 0, secret: SECRET));
    putenv('WS_SERVER_JWT_SECRET= ' . SECRET . "\n");
    same('ann', claims(Jwt::token('ann', 60))['sub']);
    putenv('WS_SERVER_JWT_SECRET');
});
