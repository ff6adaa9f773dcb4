<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Settings in environment variables, and the user of the process.
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

    /** Returns the number of the user who owns what this process makes. `getmyuid` is the owner of the script. */
    public static function user(): ?int
    {
        if (function_exists('posix_geteuid')) {
            return posix_geteuid();
        }
        $file = @tmpfile();
        return $file === false ? null : fstat($file)['uid'];
    }
}
