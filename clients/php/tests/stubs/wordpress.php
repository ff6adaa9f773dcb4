<?php

// Stands for WordPress: its functions for the cookie, as wp-includes/pluggable.php has them, with two users.

const LOGGED_IN_COOKIE = 'wordpress_logged_in_0123';
const USERS = ['ann' => [7, ['editor', 'author'], '$P$BhashOfAnnsPassword'], 'o,b%' => [8, [], '$P$BhashOfBobsPassword']];
const TOKENS = ['token-of-ann', 'token-of-bob'];

function wp_hash(string $data): string
{
    return hash_hmac('md5', $data, 'the salts of the site');
}

function wp_parse_auth_cookie(string $cookie, string $scheme): array|false
{
    $parts = explode('|', $cookie);
    return count($parts) !== 4 ? false
        : array_combine(['username', 'expiration', 'token', 'hmac'], $parts) + ['scheme' => $scheme];
}

function wp_generate_auth_cookie(string $name, int $expiration, string $token): string
{
    $key = wp_hash($name . '|' . substr(USERS[$name][2], 8, 4) . "|$expiration|$token");
    return "$name|$expiration|$token|" . hash_hmac('sha256', "$name|$expiration|$token", $key);
}

function wp_validate_auth_cookie(string $cookie, string $scheme): int|false
{
    $parts = wp_parse_auth_cookie($cookie, $scheme);
    if ($parts === false || (int) $parts['expiration'] < time() || !isset(USERS[$parts['username']])) {
        return false;
    }
    $expected = wp_generate_auth_cookie($parts['username'], (int) $parts['expiration'], $parts['token']);
    return hash_equals($expected, $cookie) && in_array($parts['token'], TOKENS, true) ? USERS[$parts['username']][0] : false;
}

function get_userdata(int $id): object
{
    return (object) ['roles' => array_column(USERS, 1, 0)[$id]];
}
