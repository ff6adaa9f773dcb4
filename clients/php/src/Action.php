<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * The rules for the action of a message that is published.
 *
 * @internal
 */
final class Action
{
    private const MAX_BYTES = 255;

    /** Names that begin so are those of ws-server. Pages would take such a message for one of the server's. */
    private const RESERVED = ['Server/', 'Client/', 'Presence/'];

    /**
     * Returns the action if a message may have it.
     *
     * @throws Exception It is empty, too long, not UTF-8 or reserved.
     */
    public static function checked(string $action): string
    {
        if ($action === '' || strlen($action) > self::MAX_BYTES) {
            throw new Exception('an action has 1 to ' . self::MAX_BYTES . ' bytes: ' . strlen($action) . ' were given');
        }
        if (preg_match('//u', $action) !== 1) {
            throw new Exception('the action is not UTF-8: convert it with mb_convert_encoding');
        }
        foreach (self::RESERVED as $reserved) {
            if (str_starts_with($action, $reserved)) {
                $why = "the action $action begins with $reserved, which is reserved for ws-server";
                throw new Exception("$why: choose another");
            }
        }
        return $action;
    }
}
