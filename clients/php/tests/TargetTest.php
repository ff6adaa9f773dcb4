<?php

declare(strict_types=1);

use WsCluster\Target;

test('a target has a form as text and as JSON', function (): void {
    foreach ([
        [Target::all(), 'all', '{"to":"all"}'],
        [Target::registered(), 'registered', '{"to":"registered"}'],
        [Target::user(7), 'user:7', '{"to":{"user":"7"}}'],
        [Target::user('doe, john'), 'user:doe%2C%20john', '{"to":{"user":"doe, john"}}'],
        [Target::users('a,b', 'c'), 'user:a%2Cb,c', '{"to":{"users":["a,b","c"]}}'],
        [Target::group('room/7'), 'group:room/7', '{"to":{"group":"room/7"}}'],
        [Target::groups('é', '50%'), 'group:é,50%25', '{"to":{"groups":["é","50%"]}}'],
        [Target::session("a\u{a0}b"), 'session:a%C2%A0b', "{\"to\":{\"session\":\"a\u{a0}b\"}}"],
        [Target::connection('ab-1'), 'connection:ab-1', '{"to":{"connection":"ab-1"}}'],
        [Target::property('a=b', 1.0), 'property:a%3Db=1.0', '{"to":{"property":{"name":"a=b","value":"1.0"}}}'],
        [Target::property('on', true), 'property:on=true', '{"to":{"property":{"name":"on","value":"true"}}}'],
        [
            Target::all()->exceptUser('a b')->exceptConnection('ab-1'),
            'all except user:a%20b except connection:ab-1',
            '{"to":"all","except":{"connection":"ab-1","user":"a b"}}',
        ],
    ] as [$target, $text, $json]) {
        same($text, $target->text());
        same($json, WsCluster\Json::encode(Target::members($target)), $text);
    }
    same(['to' => 'user:a,b'], Target::members('user:a,b'));
    // ws-server would take JSON in a text for the text form.
    foreach (['{"user":"jürgen"}', ['user' => 'jürgen']] as $target) {
        same('{"to":{"user":"jürgen"}}', WsCluster\Json::encode(Target::members($target)));
        $answer = WsCluster\Answer::none()->publish('a', null, $target);
        same('{"publish":[{"action":"a","details":[],"to":{"user":"jürgen"}}]}', WsCluster\Json::encode($answer));
        contains('"to":{"user":"jürgen"}', WsCluster\Json::encode(new WsCluster\Message('a', null, $target)));
    }
    throws('exactly one of the members', fn () => Target::members('{"name":"ann"}'));
});

test('a number is written as ws-server writes that of a property', function (): void {
    foreach ([
        [1e25, '1e+25'], [-1e25, '-1e+25'], [1.5e300, '1.5e+300'], [0.0, '0.0'], [1.0, '1.0'], [-2.5, '-2.5'], [0.1, '0.1'],
        [1e15, '1000000000000000.0'], [1e16, '1e+16'], [123456789012345680.0, '1.2345678901234568e+17'],
        [0.00001, '0.00001'], [0.000001, '1e-6'], [1.25e-7, '1.25e-7'], [5e-324, '5e-324'], [1 / 3, '0.3333333333333333'],
        [1.7976931348623157e308, '1.7976931348623157e+308'], [100.0, '100.0'],
    ] as [$number, $text]) {
        same("property:p=$text", Target::property('p', $number)->text());
    }
    throws('a message is UTF-8', fn () => Target::property('p', INF));
});

test('a target without an id is refused', function (): void {
    throws('an id in a target is empty', fn () => Target::user(''));
    throws('an id in a target is empty', fn () => Target::all()->exceptUser(''));
    throws('reaches no connection', fn () => Target::users());
    throws('reaches no connection', fn () => Target::groups());
    throws('not UTF-8', fn () => Target::user("\xe9"));
});
