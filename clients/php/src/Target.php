<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * The connections that get a message. Ids may contain any character.
 *
 * ```php
 * Target::users('ann', 'bob');
 * Target::group('editors')->exceptUser('ann');
 * ```
 */
final class Target implements \JsonSerializable
{
    /** The id of a connection, as ws-server makes it. */
    private const CONNECTION = '/^[0-9a-f]{32}-0*[0-9a-f]{1,16}$/Di';
    /** A target as JSON has exactly one of these members. */
    private const KINDS = ['users', 'user', 'groups', 'group', 'session', 'property', 'connection'];

    /** @param string|array<string, mixed> $to The target as JSON. */
    private function __construct(
        private readonly string|array $to,
        private readonly string $text,
        private readonly ?string $exceptUser = null,
        private readonly ?string $exceptConnection = null,
    ) {
    }

    /** Every connection, guests included. */
    public static function all(): self
    {
        return new self('all', 'all');
    }

    /** Every connection with a user. */
    public static function registered(): self
    {
        return new self('registered', 'registered');
    }

    /** Every connection of this user. */
    public static function user(string|int $id): self
    {
        return self::users($id);
    }

    /** Every connection of any of these users. */
    public static function users(string|int ...$ids): self
    {
        return self::list('user', $ids);
    }

    /** Every connection in this group. */
    public static function group(string|int $name): self
    {
        return self::groups($name);
    }

    /** Every connection in any of these groups. */
    public static function groups(string|int ...$names): self
    {
        return self::list('group', $names);
    }

    /** Every connection of this session. */
    public static function session(string $id): self
    {
        return new self(['session' => self::id($id)], 'session:' . self::escape($id));
    }

    /** One connection, by the id that `Event` and `client.connectionId` have. */
    public static function connection(string $id): self
    {
        return new self(['connection' => self::id($id)], "connection:$id");
    }

    /** Every connection whose property has this value. Numbers and booleans compare as JSON: `7`, `true`. */
    public static function property(string $name, string|int|float|bool $value): self
    {
        $text = match (true) {
            is_string($value) => $value,
            is_float($value) => self::number($value),
            default => Json::encode($value),
        };
        $property = ['name' => $name, 'value' => $text];
        return new self(['property' => $property], 'property:' . self::escape($name) . '=' . self::escape($text));
    }

    /** The same without the connections of one user. */
    public function exceptUser(string|int $id): self
    {
        return new self($this->to, $this->text, self::id((string) $id), $this->exceptConnection);
    }

    /** The same without one connection: that of the client that sent something, say. */
    public function exceptConnection(string $id): self
    {
        return new self($this->to, $this->text, $this->exceptUser, self::id($id));
    }

    /** Returns the text form, as the column `target` of the outbox has it. */
    public function text(): string
    {
        return $this->text
            . ($this->exceptUser === null ? '' : ' except user:' . self::escape($this->exceptUser))
            . ($this->exceptConnection === null ? '' : " except connection:{$this->exceptConnection}");
    }

    /** @return string|array<string, mixed> The value of the member `to`. */
    public function jsonSerialize(): string|array
    {
        return $this->to;
    }

    /**
     * Returns the members `to` and `except` of a message.
     *
     * @param string|array<string, mixed>|self $to
     *
     * @return array<string, mixed>
     *
     * @throws Exception The target as JSON is malformed.
     *
     * @internal
     */
    public static function members(string|array|self $to): array
    {
        if (!$to instanceof self) {
            return ['to' => self::json($to) ?? $to];
        }
        $except = array_filter(
            ['connection' => $to->exceptConnection, 'user' => $to->exceptUser],
            static fn (?string $id): bool => $id !== null,
        );
        return ['to' => $to->to] + ($except === [] ? [] : ['except' => $except]);
    }

    /**
     * Returns the value of the column `target` of the outbox. It is ASCII, because a connection in Latin-1 would change
     * anything else on its way.
     *
     * @param string|array<string, mixed>|self $to
     *
     * @throws Exception ws-server does not know such a target.
     *
     * @internal
     */
    public static function column(string|array|self $to): string
    {
        $json = $to instanceof self ? null : self::json($to);
        if ($json !== null) {
            self::check((array) $json);
            return Json::encode($json, ascii: true);
        }
        $text = $to instanceof self ? $to->text() : $to;
        if (preg_match('//u', rawurldecode($text)) !== 1) {
            throw new Exception('the target is not UTF-8: convert it with mb_convert_encoding');
        }
        if (!self::isText($text)) {
            throw new Exception("unknown target $text: give one such as Target::all() or user:bob");
        }
        return preg_replace_callback('/[\x80-\xff]/', static fn (array $byte): string => rawurlencode($byte[0]), $text);
    }

    /** Returns true if ws-server reads this text form. */
    private static function isText(string $text): bool
    {
        $parts = explode(' except ', $text);
        [$kind, $ids] = explode(':', array_shift($parts), 2) + [1 => ''];
        $fits = match ($kind) {
            'all', 'registered' => $text === $kind || str_starts_with($text, "$kind except "),
            'user', 'group' => self::areIds(...explode(',', $ids)),
            'session' => self::areIds($ids),
            'connection' => preg_match(self::CONNECTION, $ids) === 1,
            'property' => self::areIds((string) strstr($ids, '=', true)),
            default => false,
        };
        $excepted = [];
        foreach ($parts as $part) {
            [$kind, $id] = explode(':', $part, 2) + [1 => ''];
            $known = match ($kind) {
                'user' => self::areIds($id),
                'connection' => preg_match(self::CONNECTION, $id) === 1,
                default => false,
            };
            $fits = $fits && $known && !isset($excepted[$kind]);
            $excepted[$kind] = true;
        }
        return $fits;
    }

    /** Returns true if no text is empty, or begins or ends with white space. */
    private static function areIds(string ...$texts): bool
    {
        foreach ($texts as $text) {
            if ($text === '' || trim($text, " \t\n\r\f\v") !== $text) {
                return false;
            }
        }
        return true;
    }

    /**
     * Returns the value of a target as JSON, or null for the text form.
     *
     * @param string|array<string, mixed> $to
     *
     * @return \stdClass|array<string, mixed>|null
     */
    private static function json(string|array $to): \stdClass|array|null
    {
        if (is_string($to)) {
            if (!str_starts_with(ltrim($to), '{')) {
                return null;
            }
            try {
                $to = json_decode($to, false, Json::DEPTH, JSON_THROW_ON_ERROR | JSON_BIGINT_AS_STRING);
            } catch (\JsonException $error) {
                $why = "the target begins with { but is no JSON ({$error->getMessage()})";
                throw new Exception("$why: give one such as Target::user('bob')", 0, $error);
            }
        }
        $kinds = array_keys((array) $to);
        if (count($kinds) !== 1 || !in_array($kinds[0], self::KINDS, true)) {
            throw new Exception('a target as JSON has exactly one of the members ' . implode(', ', self::KINDS));
        }
        return $to;
    }

    /**
     * Checks the value of a target as JSON, of which it is known that it has one member.
     *
     * @param array<string, mixed> $target
     *
     * @throws Exception ws-server would not take it.
     */
    private static function check(array $target): void
    {
        $kind = (string) array_key_first($target);
        $value = $target[$kind];
        $isId = static fn (mixed $id): bool => is_int($id) || (is_string($id) && $id !== '');
        $property = $value instanceof \stdClass ? (array) $value : $value;
        [$fits, $form] = match ($kind) {
            'users', 'groups' => [
                is_array($value) && array_is_list($value) && array_filter($value, $isId) === $value,
                'an array of ids: text that is not empty, or whole numbers',
            ],
            'connection' => [
                is_string($value) && preg_match(self::CONNECTION, $value) === 1,
                'the id of a connection, as Event and client.connectionId have it',
            ],
            'property' => [
                is_array($property) && count($property) === 2 && is_string($property['name'] ?? null)
                    && isset($property['value']),
                'an object with the members name (text) and value (not null)',
            ],
            default => [$isId($value), 'an id: text that is not empty, or a whole number'],
        };
        if (!$fits) {
            throw new Exception("the member $kind of a target must be $form");
        }
    }

    /** Returns a number as ws-server writes the value of a property: `1e+25`, where PHP writes `1.0e+25`. */
    private static function number(float $value): string
    {
        if (!is_finite($value) || $value === 0.0) {
            return Json::encode($value);
        }
        // The shortest text that is this number.
        for ($precision = 0; $precision < 17; $precision++) {
            $text = sprintf("%.{$precision}e", $value);
            if ((float) $text === $value) {
                break;
            }
        }
        [$mantissa, $exponent] = explode('e', $text);
        $sign = $value < 0 ? '-' : '';
        $digits = rtrim(str_replace(['-', '.'], '', $mantissa), '0');
        // The number of digits before the point.
        $point = (int) $exponent + 1;
        $count = strlen($digits);
        return $sign . match (true) {
            $point > 16 || $point <= -5 => $digits[0] . ($count > 1 ? '.' . substr($digits, 1) : '') . 'e'
                . sprintf('%+d', $point - 1),
            $point <= 0 => '0.' . str_repeat('0', -$point) . $digits,
            $point >= $count => $digits . str_repeat('0', $point - $count) . '.0',
            default => substr($digits, 0, $point) . '.' . substr($digits, $point),
        };
    }

    /** @param array<string|int> $ids */
    private static function list(string $kind, array $ids): self
    {
        if ($ids === []) {
            throw new Exception("a target of no {$kind}s reaches no connection: name at least one $kind");
        }
        $ids = array_map(static fn (string|int $id): string => self::id((string) $id), array_values($ids));
        $to = count($ids) === 1 ? [$kind => $ids[0]] : ["{$kind}s" => $ids];
        return new self($to, "$kind:" . implode(',', array_map(self::escape(...), $ids)));
    }

    private static function id(string $id): string
    {
        if ($id === '') {
            throw new Exception('an id in a target is empty: check that the user, group or session is known');
        }
        return $id;
    }

    /** Percent-encodes the characters that end a part of the text form. */
    private static function escape(string $text): string
    {
        return preg_replace_callback(
            '/[%,=\s\x00-\x1f\x7f]|\p{Z}|\p{Cc}/u',
            static fn (array $found): string => rawurlencode($found[0]),
            $text,
        ) ?? throw new Exception('an id in a target is not UTF-8: convert it with mb_convert_encoding');
    }
}
