<?php

declare(strict_types=1);

use WsCluster\Json;

test('details are arguments as the documentation says', function (): void {
    foreach ([
        [null, '[]'],
        [[], '[]'],
        [[1, 2], '[1,2]'],
        [array_filter([1, null, 3]), '[1,3]'],
        [['id' => 7, 'price' => 1.0], '[{"id":7,"price":1.0}]'],
        [7, '[7]'],
        ['a/b é', '["a/b é"]'],
        [false, '[false]'],
        [new ArrayObject(), '[{}]'],
    ] as [$details, $json]) {
        same($json, Json::encode(Json::arguments($details)));
    }
});

test('a value that is no JSON is named', function (): void {
    throws('a message is UTF-8 text', fn () => Json::encode("\xe9"));
    throws('a message is UTF-8 text', fn () => Json::encode(NAN));
    throws('a message is UTF-8 text', fn () => Json::encode(fopen('php://memory', 'r')));
    $deep = [];
    for ($level = 0; $level < 200; $level++) {
        $deep = [$deep];
    }
    throws('Maximum stack depth exceeded', fn () => Json::encode($deep));
});
