<?php

// Stands for Symfony: a kernel whose controller of /ws/user reads PHP's session as NativeSessionStorage does.

namespace Symfony\Component\Dotenv {
    class Dotenv
    {
        public function bootEnv(string $path): void
        {
            $_SERVER['APP_ENV'] = 'prod';
            $_SERVER['APP_DEBUG'] = '0';
        }
    }
}

namespace Symfony\Component\HttpFoundation {
    class Request
    {
        public static function create(string $uri, string $method, array $parameters, array $cookies): self
        {
            return new self($uri, $cookies);
        }

        private function __construct(public string $uri, public array $cookies)
        {
        }
    }

    class Response
    {
        public function __construct(private string $content, private int $status = 200)
        {
        }

        public function getContent(): string
        {
            return $this->content;
        }

        public function getStatusCode(): int
        {
            return $this->status;
        }
    }
}

namespace App {
    use Symfony\Component\HttpFoundation\{Request, Response};

    class Kernel
    {
        public function __construct(string $environment, bool $debug)
        {
        }

        public function handle(Request $request): Response
        {
            if ($request->uri !== '/ws/user' || $request->cookies !== $_COOKIE) {
                return new Response('<h1>Not Found</h1>', 404);
            }
            ini_set('session.save_path', getenv('SESSIONS'));
            $id = $_COOKIE[session_name()] ?? '';
            if (preg_match('/^[a-zA-Z0-9,-]{22,250}$/D', $id) !== 1) {
                return new Response('');
            }
            session_id($id);
            session_start(['use_strict_mode' => true]);
            return new Response((string) ($_SESSION['user'] ?? ''));
        }
    }
}

namespace {
    require 'clients/php/autoload.php';
}
