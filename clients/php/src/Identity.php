<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Who a client is: the answer to the events `connect` and `refresh`.
 *
 * ```php
 * return new WsCluster\Identity('7', session: $id, expires: time() + 600, groups: ['editors']);
 * ```
 */
final class Identity implements \JsonSerializable
{
    /** What sites and frameworks have instead of the id of a user for a guest. Databases return numbers as text. */
    private const GUESTS = [null, false, 0, '0', ''];

    /** The user's id. Null for a guest. */
    public readonly string|int|null $user;

    /**
     * @param string|int|null $user The user's id; null, 0, '0' and '' for a guest.
     * @param ?string $session The session, which `Client::close` can name.
     * @param int|\DateTimeInterface|null $expires The end of the identity, as Unix time or date. Some
     *     time before it, ws-server asks again with the event `refresh`. Null: it does not end.
     * @param list<string> $groups The groups in which the connection starts.
     * @param array<string, mixed> $properties The connection's properties.
     */
    public function __construct(
        string|int|null $user,
        public readonly ?string $session = null,
        public readonly int|\DateTimeInterface|null $expires = null,
        public readonly array $groups = [],
        public readonly array $properties = [],
    ) {
        $this->user = in_array($user, self::GUESTS, true) ? null : $user;
    }

    /** A client without a user. */
    public static function guest(): self
    {
        return new self(null);
    }

    /**
     * Reads what a callable returned: an identity, its members as an array, a user's id, or null, false, 0, '0' and ''
     * for a guest. So `return $_SESSION['user'] ?? null` does, as does the answer of a framework that has 0 for guests.
     * The member `user` of an array means the same.
     *
     * @throws Exception It is none of these.
     *
     * @internal
     */
    public static function of(mixed $returned): self
    {
        if (is_array($returned) && in_array($returned['user'] ?? null, self::GUESTS, true)) {
            $returned['user'] = null;
        }
        try {
            return match (true) {
                $returned instanceof self => $returned,
                in_array($returned, self::GUESTS, true) => self::guest(),
                is_string($returned), is_int($returned) => new self($returned),
                is_array($returned) => new self(...$returned),
                default => throw new Exception('a callable of connect returned ' . get_debug_type($returned)
                    . ': return a user id, null for a guest, or a WsCluster\Identity'),
            };
        } catch (\Error $error) {
            throw new Exception("a callable of connect returned an array that is no identity: {$error->getMessage()}");
        }
    }

    /** @return array<string, mixed> Without the members that do not apply. */
    public function jsonSerialize(): array
    {
        $expires = $this->expires instanceof \DateTimeInterface ? $this->expires->getTimestamp() : $this->expires;
        $members = [
            'user' => $this->user === null ? null : (string) $this->user,
            'session' => $this->session,
            'expires' => $expires,
            'groups' => $this->groups === [] ? null : array_values($this->groups),
            'properties' => $this->properties === [] ? null : (object) $this->properties,
        ];
        return array_filter($members, static fn (mixed $value): bool => $value !== null);
    }
}
