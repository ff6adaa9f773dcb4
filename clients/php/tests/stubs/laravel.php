<?php

// Stands for Laravel: its encrypter and the prefix of cookies in their real format (AES-256-CBC), sessions, and the guard.

namespace Illuminate\Contracts\Encryption {
    class DecryptException extends \RuntimeException
    {
    }
}

namespace Illuminate\Cookie {
    class CookieValuePrefix
    {
        public static function create(string $name, string $key): string
        {
            return hash_hmac('sha1', $name . 'v2', $key) . '|';
        }
    }
}

namespace Illuminate\Http {
    class Request
    {
        public object $headers;

        public function __construct()
        {
            $this->headers = new class {
                public function all(): array
                {
                    return array_map(fn (string $value) => [$value], array_change_key_case(getallheaders()));
                }
            };
        }

        public function getContent(): string
        {
            return file_get_contents('php://input');
        }
    }
}

namespace Illuminate\Support\Facades {
    use Illuminate\Contracts\Encryption\DecryptException;

    class Crypt
    {
        public static function getKey(): string
        {
            return str_repeat('k', 32);
        }

        public static function encrypt(string $value): string
        {
            $iv = random_bytes(16);
            $cipher = openssl_encrypt($value, 'aes-256-cbc', self::getKey(), 0, $iv);
            $iv = base64_encode($iv);
            $mac = hash_hmac('sha256', $iv . $cipher, self::getKey());
            return base64_encode(json_encode(['iv' => $iv, 'value' => $cipher, 'mac' => $mac, 'tag' => '']));
        }

        public static function decrypt(string $payload, bool $unserialize): string
        {
            $parts = json_decode((string) base64_decode($payload, true), true);
            if (!is_array($parts) || !isset($parts['iv'], $parts['value'], $parts['mac'])) {
                throw new DecryptException('The payload is invalid.');
            }
            if (!hash_equals(hash_hmac('sha256', $parts['iv'] . $parts['value'], self::getKey()), $parts['mac'])) {
                throw new DecryptException('The MAC is invalid.');
            }
            return openssl_decrypt($parts['value'], 'aes-256-cbc', self::getKey(), 0, base64_decode($parts['iv']));
        }
    }

    class Session
    {
        private const STORED = ['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' => 7, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb' => null];
        private string $id = '';

        public static function driver(): self
        {
            return new self();
        }

        public function setId(string $id): void
        {
            $this->id = ctype_alnum($id) && strlen($id) === 40 ? $id : bin2hex(random_bytes(20));
        }

        public function getId(): string
        {
            return $this->id;
        }

        public function start(): bool
        {
            return true;
        }

        public function get(string $name): ?int
        {
            return $name === 'login_web_59ba36' ? self::STORED[$this->id] ?? null : null;
        }
    }

    class Auth
    {
        public static function guard(string $name): object
        {
            return new class {
                public function getName(): string
                {
                    return 'login_web_59ba36';
                }
            };
        }
    }

    class Route
    {
        private function __construct(private \Closure $action)
        {
        }

        public static function post(string $path, \Closure $action): self
        {
            return new self($action);
        }

        /** Answers only if the limit of 60 requests a minute does not hold. */
        public function withoutMiddleware(string $name): self
        {
            if ($name === 'throttle:api') {
                ($this->action)(new \Illuminate\Http\Request())->send();
            }
            return $this;
        }
    }
}

namespace {
    function config(string $key): string
    {
        return 'laravel_session';
    }

    function response(string $body, int $status, array $headers): \WsCluster\Response
    {
        return new \WsCluster\Response($status, $headers, $body);
    }

    require 'clients/php/autoload.php';
}
