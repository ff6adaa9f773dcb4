<?php

// Counts the HMACs that the package computes, for WebhookTest.

declare(strict_types=1);

namespace WsCluster;

final class Hmacs
{
    public static int $computed = 0;
}

/** PHP looks for a function in the namespace of the caller first. */
function hash_hmac(string $algorithm, string $data, string $key, bool $binary = false): string
{
    Hmacs::$computed++;
    return \hash_hmac($algorithm, $data, $key, $binary);
}
