<?php

// Stands for a ws-server. The first part of the path says how it answers: /204/_publish, /503/_publish, /slow/..

declare(strict_types=1);

$path = explode('/', parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
$request = [
    'method' => $_SERVER['REQUEST_METHOD'],
    'path' => '/' . implode('/', array_slice($path, 2)),
    'authorization' => $_SERVER['HTTP_AUTHORIZATION'] ?? null,
    'type' => $_SERVER['CONTENT_TYPE'] ?? null,
    'body' => file_get_contents('php://input'),
];
file_put_contents(getenv('REQUESTS'), json_encode($request) . "\n", FILE_APPEND);
if (getenv('BATCHES') && str_starts_with($request['body'], '[')) {
    $path[1] = 'batch';
}
switch ($path[1]) {
    case 'batch':
        header('Content-Type: application/json');
        echo getenv('BATCH');
        break;
    case 'html':
        header('Content-Type: text/html');
        echo '<h1>Welcome to nginx!</h1>';
        break;
    case 'nginx':
        http_response_code((int) $path[2]);
        echo "<html>\r\n<head><title>$path[2]</title></head>\r\n<body>\r\n<hr><center>nginx</center>\r\n</html>\r\n";
        break;
    case 'redirect':
        header('Location: /204/_publish', true, 307);
        break;
    case 'huge':
        for ($part = 0; $part < 100; $part++) {
            echo str_repeat('x', 1 << 20);
        }
        break;
    default:
        http_response_code((int) $path[1]);
        echo $path[1] === '204' ? '' : "told {$path[1]}\n";
}
