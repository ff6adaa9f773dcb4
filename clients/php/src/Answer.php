<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * The answer to an action. Its parts take effect in this order: properties, joins and leaves, publishes, then the reply.
 *
 * ```php
 * return WsCluster\Answer::reply(['id' => 7])
 *     ->join('room/7')
 *     ->publish('room/joined', [$event->user], WsCluster\Target::group('room/7'));
 * ```
 */
final class Answer implements \JsonSerializable
{
    /** @var array<string, mixed> */
    private array $members = [];

    private function __construct()
    {
    }

    /** An answer without a reply. A client that waits for one gets an empty one. */
    public static function none(): self
    {
        return new self();
    }

    /**
     * An answer with arguments for the client that sent the action.
     *
     * @param mixed $details As those of `Client::publish`.
     */
    public static function reply(mixed $details): self
    {
        $answer = new self();
        $answer->members['reply'] = Json::arguments($details);
        return $answer;
    }

    /**
     * An error for the client that sent the action.
     *
     * @param int $code 400 to 599, as the statuses of HTTP.
     */
    public static function error(int $code, string $text): self
    {
        $answer = new self();
        $answer->members['error'] = [$code, $text];
        return $answer;
    }

    /**
     * Publishes a message.
     *
     * @param string $action 1 to 255 bytes that do not begin with `Server/`, `Client/` or `Presence/`.
     * @param string|array<string, mixed>|Target $to The target, as for `Client::publish`.
     *
     * @throws Exception The action or the target is none that a message may have.
     */
    public function publish(string $action, mixed $details, string|array|Target $to): self
    {
        $message = ['action' => Action::checked($action), 'details' => Json::arguments($details)];
        $message += Target::members($to);
        $answer = clone $this;
        $answer->members['publish'][] = $message;
        return $answer;
    }

    /** Adds the connection to groups. */
    public function join(string ...$groups): self
    {
        return $this->with('join', $groups);
    }

    /** Removes the connection from groups. */
    public function leave(string ...$groups): self
    {
        return $this->with('leave', $groups);
    }

    /** Sets a property of the connection. Null removes it. */
    public function property(string $name, mixed $value): self
    {
        $answer = clone $this;
        // PHP makes a number of a name of digits, so the key counts here and not the order.
        $answer->members['properties'] = [$name => $value] + ($this->members['properties'] ?? []);
        return $answer;
    }

    /** @return array<string, mixed> Without the members that do not apply. */
    public function jsonSerialize(): array
    {
        $members = array_filter($this->members, static fn (mixed $value): bool => $value !== []);
        // An empty reply is a reply.
        $members += array_intersect_key($this->members, ['reply' => true]);
        if (isset($members['properties'])) {
            $members['properties'] = (object) $members['properties'];
        }
        return $members;
    }

    /** @param array<string> $groups */
    private function with(string $member, array $groups): self
    {
        $answer = clone $this;
        $answer->members[$member] = [...($this->members[$member] ?? []), ...array_values($groups)];
        return $answer;
    }
}
