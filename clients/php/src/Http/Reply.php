<?php

declare(strict_types=1);

namespace WsCluster\Http;

/**
 * What became of one request.
 *
 * @internal
 */
final class Reply
{
    /**
     * @param int $status The HTTP status, or 0 if there was no answer.
     * @param string $text The body of the answer, or why there was none.
     * @param bool $sent False if the server cannot have got the request.
     */
    public function __construct(
        public readonly int $status,
        public readonly string $text,
        public readonly bool $sent = true,
    ) {
    }
}
