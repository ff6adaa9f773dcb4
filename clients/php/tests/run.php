<?php

/**
 * Runs the tests of the package: `php clients/php/tests/run.php`. A word as argument runs those whose name contains it.
 */

declare(strict_types=1);

require __DIR__ . '/../autoload.php';
require __DIR__ . '/harness.php';

foreach (glob(__DIR__ . '/*Test.php') as $file) {
    require $file;
}
exit(Tests::run($argv[1] ?? ''));
