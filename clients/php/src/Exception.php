<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Any failure of this package. The message says what is wrong and what to do. The code is the HTTP status of ws-server's
 * answer, or 0 if there was no answer.
 */
class Exception extends \RuntimeException
{
    /**
     * @param bool $outcomeUnknown True if the order may have been carried out nevertheless. The same call with the same
     *     idempotency key can then be repeated without a second delivery.
     */
    public function __construct(
        string $message,
        int $code = 0,
        ?\Throwable $previous = null,
        public readonly bool $outcomeUnknown = false,
    ) {
        parent::__construct($message, $code, $previous);
    }
}
