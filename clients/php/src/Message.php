<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * A message of `Client::batch`.
 */
final class Message implements \JsonSerializable
{
    public readonly string $action;
    public readonly string $key;

    /**
     * @param string $action 1 to 255 bytes that do not begin with `Server/`, `Client/` or `Presence/`.
     * @param mixed $details The arguments: an array without text as keys has one for each element, null means none, and
     *     any other value is one argument.
     * @param string|array<string, mixed>|Target $to The target, its text form such as `user:bob`, or JSON such as
     *     `{"user":"bob"}`, as text or as an array.
     * @param string|int|null $key An idempotency key of 1 to 64 bytes. Without it, the message gets a random one.
     * @param bool $volatile True if connections that are behind may miss the message.
     *
     * @throws Exception The action is none that a message may have.
     */
    public function __construct(
        string $action,
        public readonly mixed $details,
        public readonly string|array|Target $to,
        string|int|null $key = null,
        public readonly bool $volatile = false,
    ) {
        $this->action = Action::checked($action);
        $this->key = $key === null ? bin2hex(random_bytes(16)) : (string) $key;
    }

    /** @return array<string, mixed> */
    public function jsonSerialize(): array
    {
        return ['action' => $this->action, 'details' => Json::arguments($this->details)]
            + Target::members($this->to)
            + ['key' => $this->key]
            + ($this->volatile ? ['volatile' => true] : []);
    }
}
