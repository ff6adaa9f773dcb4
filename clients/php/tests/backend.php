<?php

// A backend behind a web server, for BackendTest.

declare(strict_types=1);

require __DIR__ . '/../autoload.php';

if (isset($_GET['cookies'])) {
    echo base64_encode(serialize($_COOKIE));
    return;
}

// As a script does that embeds the backend.
if (isset($_GET['buffered'])) {
    ob_start(static fn (string $text): string => "<$text>");
}

(new WsCluster\Backend(maxBody: 100_000))
    ->action('echo', fn (WsCluster\Event $event) => $event->details)
    ->action('prints', function (): void {
        echo 'hello';
    })
    ->action('warns', fn () => @$undefined + $undefined2 + 1)
    ->action('exits', function (): void {
        ob_start();
        echo 'bye';
        exit;
    })
    ->action('buffers', function (): int {
        ob_start(null, 0, PHP_OUTPUT_HANDLER_CLEANABLE);
        echo 'one ';
        ob_start();
        echo 'two';
        return 1;
    })
    ->action('keeps', function (): int {
        ob_start(null, 0, 0);
        return 1;
    })
    ->action('exhausts', function (): int {
        ini_set('memory_limit', '32M');
        return strlen(str_repeat('x', 1 << 26));
    })
    ->action('throws', fn () => throw new RuntimeException('a secret'))
    ->run();
