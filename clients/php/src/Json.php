<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * The JSON of the package.
 *
 * @internal
 */
final class Json
{
    private const FLAGS = JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION | JSON_UNESCAPED_SLASHES;

    /** Levels of arrays and objects, as many as ws-server accepts in details, and a few for what is around them. */
    public const DEPTH = 136;
    /** Levels of arrays and objects in details, with the array of the arguments. */
    public const DETAILS_DEPTH = 128;

    /**
     * @param bool $ascii True if other characters become `\uXXXX`.
     * @param int $depth The levels of arrays and objects that are allowed.
     *
     * @throws Exception The value has text that is not UTF-8, a number that is not finite, or a resource.
     */
    public static function encode(mixed $value, bool $ascii = false, int $depth = self::DEPTH): string
    {
        try {
            return json_encode($value, $ascii ? self::FLAGS : self::FLAGS | JSON_UNESCAPED_UNICODE, $depth);
        } catch (\JsonException $error) {
            $advice = match ($error->getCode()) {
                JSON_ERROR_DEPTH => "It may have $depth levels of arrays and objects",
                default => "Convert text with mb_convert_encoding(\$text, 'UTF-8', 'ISO-8859-1')",
            };
            $why = "a message is UTF-8 text, finite numbers and arrays: {$error->getMessage()}. $advice";
            throw new Exception($why, 0, $error);
        }
    }

    /** Returns text as UTF-8: what is not becomes U+FFFD. For texts of exceptions, which may quote anything. */
    public static function scrubbed(string $text): string
    {
        return json_decode(json_encode($text, JSON_INVALID_UTF8_SUBSTITUTE));
    }

    /**
     * Returns the arguments of a message: an array without text as keys has one for each element, null means none, and
     * any other value is one argument.
     *
     * @return list<mixed>
     */
    public static function arguments(mixed $details): array
    {
        if ($details === null) {
            return [];
        }
        if (is_array($details) && array_filter(array_keys($details), is_string(...)) === []) {
            return array_values($details);
        }
        return [$details];
    }
}
