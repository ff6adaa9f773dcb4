<?php

/**
 * Loads the classes of the package, for sites without Composer: `require 'clients/php/autoload.php';`.
 */

declare(strict_types=1);

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'WsCluster\\')) {
        $file = __DIR__ . '/src/' . strtr(substr($class, strlen('WsCluster\\')), '\\', '/') . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});
