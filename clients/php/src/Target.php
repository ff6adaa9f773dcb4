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
        $text = is_string($value) ? $value : Json::encode($value);
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
     * @return array<string, mixed>
     *
     * @internal
     */
    public static function members(string|self $to): array
    {
        if (is_string($to)) {
            return ['to' => $to];
        }
        $except = array_filter(
            ['connection' => $to->exceptConnection, 'user' => $to->exceptUser],
            static fn (?string $id): bool => $id !== null,
        );
        return ['to' => $to->to] + ($except === [] ? [] : ['except' => $except]);
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
