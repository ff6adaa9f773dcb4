<?php

declare(strict_types=1);

use WsCluster\Hmacs;
use WsCluster\Webhook;

require __DIR__ . '/stubs/hmac.php';

const WEBHOOK_KEY = 'a key that has enough bytes';
const NOW = 1_700_000_000;
const BODY = '{"event":"connect"}';

/** Verifies a signed request with other headers. */
function verified(array $headers, string|array $keys = WEBHOOK_KEY, int $now = NOW, string $body = BODY): string
{
    return (new Webhook($keys))->verify($headers + signed(WEBHOOK_KEY, BODY, NOW), $body, $now);
}

test('a signature of the specification is verified', function (): void {
    // The example of the specification's libraries.
    $webhook = new Webhook('whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
    $headers = [
        'webhook-id' => 'msg_p5jXN8AQM9LWM0D4loKWxJek',
        'webhook-timestamp' => '1614265330',
        'webhook-signature' => 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
    ];
    same('msg_p5jXN8AQM9LWM0D4loKWxJek', $webhook->verify($headers, '{"test": 2432232314}', 1_614_265_331));
    same($headers['webhook-signature'], $webhook->sign($headers['webhook-id'], 1_614_265_330, '{"test": 2432232314}'));
});

test('headers are found in any case and as lists', function (): void {
    $headers = [];
    foreach (signed(WEBHOOK_KEY, BODY, NOW) as $name => $value) {
        $headers[strtoupper($name)] = [$value];
    }
    same('msg_1', (new Webhook(" " . WEBHOOK_KEY . "\n"))->verify($headers, BODY, NOW));
});

test('while a key is changed, several keys and signatures count', function (): void {
    same('msg_1', verified([], [str_repeat('new', 8), WEBHOOK_KEY]));
    $old = signed(WEBHOOK_KEY, BODY, NOW)['webhook-signature'];
    same('msg_1', verified(['webhook-signature' => "v1,bm90 v1a,xyz v2,$old $old"]));
    throws('does not fit', fn () => verified(['webhook-signature' => str_repeat('v1,bm90 ', 16) . $old]), 401);
});

test('an HMAC is computed once for each key', function (): void {
    $webhook = new Webhook([str_repeat('new', 8), WEBHOOK_KEY]);
    $headers = signed(WEBHOOK_KEY, BODY, NOW);
    $old = $headers['webhook-signature'];
    Hmacs::$computed = 0;
    $many = ['webhook-signature' => str_repeat('v1,bm90 ', 10_000)] + $headers;
    throws('does not fit', fn () => $webhook->verify($many, BODY, NOW), 401);
    same(2, Hmacs::$computed);
    // The 16th signature counts, the 17th does not.
    same('msg_1', $webhook->verify(['webhook-signature' => str_repeat('v1,bm90 ', 15) . "$old v1,bm90"] + $headers, BODY, NOW));
    same(4, Hmacs::$computed);
    $last = ['webhook-signature' => str_repeat('v1,bm90 ', 16) . $old] + $headers;
    throws('does not fit', fn () => $webhook->verify($last, BODY, NOW), 401);
});

test('a forged signature is refused', function (): void {
    $signature = signed(WEBHOOK_KEY, BODY, NOW)['webhook-signature'];
    foreach (['v1,', 'v1', 'v0', ' ', "v2" . substr($signature, 2), substr($signature, 3), "$signature\n", strtolower($signature)] as $forged) {
        throws('does not fit', fn () => verified(['webhook-signature' => $forged]), 401);
    }
    throws('does not fit', fn () => verified([], 'another key that has enough bytes'), 401);
    throws('does not fit', fn () => verified([], body: BODY . ' '), 401);
    throws('does not fit', fn () => verified(['webhook-id' => 'msg_2']), 401);
    throws('does not fit', fn () => verified(['webhook-timestamp' => (string) (NOW + 1)]), 401);
    throws('does not fit', fn () => verified(signed(WEBHOOK_KEY, BODY . ' ', NOW)), 401);
});

test('a request is refused outside of five minutes', function (): void {
    same('msg_1', verified([], now: NOW + 300));
    same('msg_1', verified([], now: NOW - 300));
    throws('301 s old, of at most 300', fn () => verified([], now: NOW + 301), 401);
    throws('301 s ahead, of at most 300', fn () => verified([], now: NOW - 301), 401);
});

test('a timestamp is a number', function (): void {
    foreach (['soon', '-1', '1e9', ' 1700000000', "1700000000\n", '1700000000.5', str_repeat('9', 30), '0x1'] as $timestamp) {
        throws('webhook-timestamp is no Unix time', fn () => verified(['webhook-timestamp' => $timestamp]), 401);
    }
});

test('a missing header is refused', function (): void {
    foreach (['webhook-id', 'webhook-timestamp', 'webhook-signature'] as $name) {
        throws("the header $name is missing", fn () => verified([$name => '']), 401);
        throws("the header $name is missing", fn () => verified([$name => []]), 401);
        throws("the header $name is missing", fn () => verified([$name => ['a', 'b']]), 401);
        $headers = signed(WEBHOOK_KEY, BODY, NOW);
        unset($headers[$name]);
        throws("the header $name is missing", fn () => (new Webhook(WEBHOOK_KEY))->verify($headers, BODY, NOW), 401);
    }
});

test('a key is text or base64 after whsec_', function (): void {
    same('msg_1', verified([], 'whsec_' . base64_encode(WEBHOOK_KEY)));
    same('msg_1', verified([], 'whsec_' . rtrim(base64_encode(WEBHOOK_KEY), '=') . "\n"));
    throws('is no base64', fn () => new Webhook('whsec_not base64!'));
    throws('the key of the backend is empty', fn () => new Webhook(" \n"));
    throws('has 0 bytes, of at least 24', fn () => new Webhook('whsec_'));
    throws('has 23 bytes, of at least 24', fn () => new Webhook(str_repeat('x', 23)));
    throws('has 23 bytes, of at least 24', fn () => new Webhook('whsec_' . base64_encode(str_repeat('x', 23))));
    throws('there is no key', fn () => new Webhook([]));
});
