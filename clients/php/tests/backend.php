<?php

// A backend behind a web server, for BackendTest.

declare(strict_types=1);

require __DIR__ . '/../autoload.php';

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
    ->action('exhausts', function (): int {
        ini_set('memory_limit', '32M');
        return strlen(str_repeat('x', 1 << 26));
    })
    ->action('throws', fn () => throw new RuntimeException('a secret'))
    ->run();
