<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * A refusal that a callable of `Backend` throws. The client that asked gets its code and its text, unlike those of any
 * other exception.
 *
 * ```php
 * throw new WsCluster\Refusal(403, 'Sign in first');
 * ```
 */
final class Refusal extends Exception
{
    /**
     * @param int $code 400 to 599; any other code counts as 400. For the event `connect`, 401 and 403 refuse the client,
     *     and any other code counts as 403.
     */
    public function __construct(int $code, string $text)
    {
        parent::__construct($text, $code >= 400 && $code <= 599 ? $code : 400);
    }
}
