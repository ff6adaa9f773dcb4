<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * An HTTP response to ws-server, for frameworks that send responses themselves.
 */
final class Response
{
    /** @param array<string, string> $headers */
    public function __construct(
        public readonly int $status,
        public readonly array $headers = [],
        public readonly string $body = '',
    ) {
    }

    /** @internal */
    public static function json(mixed $value): self
    {
        return new self(200, ['Content-Type' => 'application/json'], Json::encode($value));
    }

    /** @internal */
    public static function text(int $status, string $text): self
    {
        return new self($status, ['Content-Type' => 'text/plain; charset=utf-8'], "$text\n");
    }

    /** Sends it with PHP's own functions. */
    public function send(): void
    {
        http_response_code($this->status);
        if ($this->status === 204) {
            header_remove('Content-Type');
        }
        foreach ($this->headers as $name => $value) {
            header("$name: $value");
        }
        echo $this->body;
    }
}
