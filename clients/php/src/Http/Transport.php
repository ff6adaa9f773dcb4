<?php

declare(strict_types=1);

namespace WsCluster\Http;

/**
 * Sends requests to a ws-server. No proxy and no redirect is followed: the request contains the publish key.
 *
 * @internal
 */
interface Transport
{
    /** Size of the longest answer, in bytes. That to a batch of 1,000 is the largest. */
    public const MAX_ANSWER = 4 << 20;

    /**
     * @param array<string, string> $headers
     * @param float $connectSeconds The time limit of the connection.
     * @param float $seconds The time limit of the whole request.
     */
    public function send(
        string $method,
        string $url,
        array $headers,
        string $body,
        float $connectSeconds,
        float $seconds,
    ): Reply;
}
