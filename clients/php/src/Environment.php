<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Settings in environment variables.
 *
 * @internal
 */
final class Environment
{
    /** Returns the variable without white space around it. php-fpm has it in `$_SERVER` as well. */
    public static function get(string $name): string
    {
        $value = getenv($name);
        return trim(is_string($value) && $value !== '' ? $value : (string) ($_SERVER[$name] ?? ''));
    }
}
