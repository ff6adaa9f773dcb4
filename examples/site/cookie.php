<?php
// Encrypted cookies, in the format of Laravel: AES-256-CBC, the parts as JSON in base64, with a MAC over both. Inside,
// before the value and a `|`, is a digest of the cookie's name, so that one cookie cannot stand for another. SQL cannot
// read such a cookie, so ws-server asks the site (public/backend.php).
declare(strict_types=1);

/** The key of the site: 32 bytes, as `openssl rand -base64 32` makes them. */
function cookie_key(): string
{
    $key = base64_decode(substr((string) getenv('SITE_KEY'), strlen('base64:')), true);
    if ($key === false || strlen($key) !== 32) {
        throw new RuntimeException('SITE_KEY is not set: give base64: and the output of openssl rand -base64 32');
    }
    return $key;
}

function encrypted(string $name, string $value): string
{
    $key = cookie_key();
    $plain = hash_hmac('sha1', "{$name}v2", $key) . "|$value";
    $bytes = random_bytes(16);
    $cipher = openssl_encrypt($plain, 'aes-256-cbc', $key, 0, $bytes);
    $iv = base64_encode($bytes);
    $mac = hash_hmac('sha256', $iv . $cipher, $key);
    return base64_encode(json_encode(['iv' => $iv, 'value' => $cipher, 'mac' => $mac, 'tag' => ''], JSON_THROW_ON_ERROR));
}

/** Null if this site has not made the cookie. */
function decrypted(string $name, string $cookie): ?string
{
    $key = cookie_key();
    $parts = json_decode((string) base64_decode($cookie, true), true);
    foreach (['iv', 'value', 'mac'] as $part) {
        if (!is_string($parts[$part] ?? null)) {
            return null;
        }
    }
    $iv = (string) base64_decode($parts['iv'], true);
    if (strlen($iv) !== 16 || !hash_equals(hash_hmac('sha256', $parts['iv'] . $parts['value'], $key), $parts['mac'])) {
        return null;
    }
    $plain = (string) openssl_decrypt($parts['value'], 'aes-256-cbc', $key, 0, $iv);
    $prefix = hash_hmac('sha1', "{$name}v2", $key) . '|';
    return str_starts_with($plain, $prefix) ? substr($plain, strlen($prefix)) : null;
}
