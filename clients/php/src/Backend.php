<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Answers the requests of `ws-server --backend URL`: who a client is, and what an action does.
 *
 * ```php
 * (new WsCluster\Backend())
 *     ->connect(fn (WsCluster\Event $event) => $users->bySession($event->cookie('sid')))
 *     ->action('vote', fn (WsCluster\Event $event) => ['votes' => $votes->add($event->signedIn(), $event->int(0))])
 *     ->run();
 * ```
 *
 * A callable gets the `Event`. A `Refusal` that it throws reaches the client. Any other exception is logged, and the
 * client gets 500 without its text.
 */
final class Backend
{
    /** Bytes of the largest request that is read, unless the constructor is given another number. */
    private const MAX_BODY = 4 << 20;

    private readonly Webhook $webhook;
    private readonly \Closure $log;
    private readonly ?\Closure $isNew;
    /** @var array<string, \Closure> The callables of actions, by name or pattern. */
    private array $actions = [];
    /** @var array<string, \Closure> The callables of other events. */
    private array $events = [];

    /**
     * @param string|list<string>|null $key The key of `--backend-key`; several while it is changed. Default: the variable
     *     WS_SERVER_BACKEND_KEY.
     * @param ?callable(string): void $log Gets a line for each exception. Default: `error_log`.
     * @param ?callable(string): bool $isNew Returns false if it was called with this id in the last ten minutes. An action
     *     whose id is not new is refused, because ws-server never sends an action twice. With APCu:
     *     `fn (string $id) => apcu_add("ws-$id", 1, 600)`. Without it, a request that somebody copied can be repeated
     *     for five minutes.
     * @param int $maxBody Bytes of the largest request.
     *
     * @throws Exception The key is missing or malformed.
     */
    public function __construct(
        #[\SensitiveParameter] string|array|null $key = null,
        ?callable $log = null,
        ?callable $isNew = null,
        private readonly int $maxBody = self::MAX_BODY,
    ) {
        $this->webhook = new Webhook($key ?? Environment::get('WS_SERVER_BACKEND_KEY'));
        $this->log = $log === null ? static fn (string $line) => error_log($line) : $log(...);
        $this->isNew = $isNew === null ? null : $isNew(...);
    }

    /**
     * Says who a client is that connects (`--backend-connect`).
     *
     * @param callable(Event): mixed $callable Returns an `Identity` or its members as an array, a user's id, or null for a
     *     guest. It refuses the client with a `Refusal` of code 401 or 403.
     */
    public function connect(callable $callable): self
    {
        return $this->on('connect', $callable);
    }

    /**
     * Says who a client is whose identity ends. Without it, the callable of `connect` is asked.
     *
     * @param callable(Event): mixed $callable As that of `connect`.
     */
    public function refresh(callable $callable): self
    {
        return $this->on('refresh', $callable);
    }

    /**
     * Is told that a connection has ended.
     *
     * @param callable(Event): mixed $callable
     */
    public function disconnect(callable $callable): self
    {
        return $this->on('disconnect', $callable);
    }

    /**
     * Is told or asked any event by its name.
     *
     * @param callable(Event): mixed $callable
     */
    public function on(string $event, callable $callable): self
    {
        $this->events[$event] = $callable(...);
        return $this;
    }

    /**
     * Does what clients ask for.
     *
     * @param string $name The action, or a pattern in which `*` stands for any text, such as `comment/*`. An exact name
     *     counts before patterns, and an earlier pattern before a later one.
     * @param callable(Event): mixed $callable Returns an `Answer`, the details of the reply, or null for no reply.
     */
    public function action(string $name, callable $callable): self
    {
        $this->actions[$name] = $callable(...);
        return $this;
    }

    /**
     * Answers the present HTTP request. What callables print is logged instead of sent, as are PHP's own errors. If a
     * callable ends the script, by `exit` or a fatal error, ws-server gets 500.
     */
    public function run(): void
    {
        ini_set('display_errors', '0');
        ini_set('log_errors', '1');
        $level = ob_get_level();
        ob_start();
        $response = null;
        register_shutdown_function(function () use (&$response, $level): void {
            if ($response === null) {
                $error = error_get_last();
                $this->logPrinted($level);
                ($this->log)('ws-cluster: a callable ended the script' . ($error === null ? '' : ": {$error['message']}"));
                Response::text(500, 'Internal Server Error')->send();
            }
        });
        $response = $this->received();
        $this->logPrinted($level);
        $response->send();
    }

    /**
     * Answers a request that a framework has read.
     *
     * @param array<string, string|list<string>> $headers By name in any case.
     */
    public function handle(array $headers, string $body, string $method = 'POST'): Response
    {
        if ($method !== 'POST') {
            return new Response(405, ['Allow' => 'POST', 'Content-Type' => 'text/plain'], "only ws-server posts here\n");
        }
        if (strlen($body) > $this->maxBody) {
            return $this->tooLong();
        }
        try {
            $event = $this->event($this->webhook->verify($headers, $body), $body);
        } catch (Exception $refused) {
            if ($refused->getCode() === 401) {
                // For ws-server, 401 would refuse the visitor and not the signature, and nobody would learn of it.
                ($this->log)("ws-cluster: a request is refused: {$refused->getMessage()}");
                return Response::text(400, $refused->getMessage());
            }
            return Response::text($refused->getCode(), $refused->getMessage());
        }
        return match ($event->name) {
            'action' => $this->act($event),
            'connect', 'refresh' => $this->identify($event),
            default => $this->tell($event),
        };
    }

    private function received(): Response
    {
        if ((int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > $this->maxBody) {
            return $this->tooLong();
        }
        $body = (string) file_get_contents('php://input', false, null, 0, $this->maxBody + 1);
        $headers = [];
        foreach (['webhook-id', 'webhook-timestamp', 'webhook-signature'] as $name) {
            $headers[$name] = (string) ($_SERVER['HTTP_' . strtoupper(strtr($name, '-', '_'))] ?? '');
        }
        return $this->handle($headers, $body, (string) ($_SERVER['REQUEST_METHOD'] ?? 'POST'));
    }

    /**
     * Ends the output buffer that `run` has begun, and those that callables have. Buffers of the script that calls `run`
     * stay.
     *
     * @param int $level The number of buffers before that of `run`.
     */
    private function logPrinted(int $level): void
    {
        $printed = '';
        while (ob_get_level() > $level) {
            $printed = ob_get_contents() . $printed;
            $flags = ob_get_status()['flags'];
            if (($flags & PHP_OUTPUT_HANDLER_REMOVABLE) !== 0 && ob_end_clean()) {
                continue;
            }
            // A callable has begun a buffer that PHP ends only with the script. The response goes through it.
            if (($flags & PHP_OUTPUT_HANDLER_CLEANABLE) !== 0) {
                ob_clean();
            }
            break;
        }
        if (trim($printed) !== '') {
            ($this->log)('ws-cluster: a callable printed: ' . substr(trim($printed), 0, 2000));
        }
    }

    private function tooLong(): Response
    {
        return Response::text(413, "the request is longer than {$this->maxBody} bytes");
    }

    private function event(string $id, string $body): Event
    {
        if (str_starts_with($body, "\xef\xbb\xbf")) {
            throw new Exception('the body begins with a byte order mark: something between ws-server and PHP adds it', 400);
        }
        try {
            $data = json_decode($body, true, Json::DEPTH, JSON_THROW_ON_ERROR | JSON_BIGINT_AS_STRING);
        } catch (\JsonException $error) {
            throw new Exception("the body is not JSON: {$error->getMessage()}", 400, $error);
        }
        if (!is_array($data) || array_is_list($data)) {
            throw new Exception('the body is no JSON object', 400);
        }
        return new Event($id, $data);
    }

    private function act(Event $event): Response
    {
        $callable = $this->actionNamed((string) $event->action);
        try {
            if ($this->isNew !== null && !($this->isNew)($event->id)) {
                return Response::text(409, 'this action came before: it is a replay');
            }
            if ($callable === null) {
                return Response::json(Answer::error(404, 'Not Found'));
            }
            $returned = $callable($event);
            if ($returned === null) {
                return new Response(204);
            }
            $answer = $returned instanceof Answer ? $returned : Answer::reply($returned);
            return $answer->jsonSerialize() === [] ? new Response(204) : Response::json($answer);
        } catch (Refusal $refusal) {
            return Response::json(Answer::error($refusal->getCode(), Json::scrubbed($refusal->getMessage())));
        } catch (\Throwable $error) {
            $this->report($error, "the action {$event->action}", $event);
            return Response::json(Answer::error(500, 'Internal Server Error'));
        }
    }

    private function identify(Event $event): Response
    {
        $callable = $this->events[$event->name] ?? $this->events['connect'] ?? null;
        try {
            if ($callable === null) {
                throw new Exception('there is no callable for connect: add one, or leave out --backend-connect');
            }
            $members = Identity::of($callable($event))->jsonSerialize();
            return Response::json($members === [] ? new \stdClass() : $members);
        } catch (Refusal $refusal) {
            return Response::text($refusal->getCode() === 401 ? 401 : 403, Json::scrubbed($refusal->getMessage()));
        } catch (\Throwable $error) {
            $this->report($error, $event->name, $event);
            return Response::text(500, 'Internal Server Error');
        }
    }

    private function tell(Event $event): Response
    {
        try {
            $callable = $this->events[$event->name] ?? null;
            if ($callable !== null) {
                $callable($event);
            }
            return new Response(204);
        } catch (\Throwable $error) {
            $this->report($error, $event->name, $event);
            // An event is sent again.
            return Response::text(500, 'Internal Server Error');
        }
    }

    private function actionNamed(string $name): ?\Closure
    {
        if (isset($this->actions[$name])) {
            return $this->actions[$name];
        }
        foreach ($this->actions as $pattern => $callable) {
            $pattern = str_replace('\*', '.*', preg_quote((string) $pattern, '~'));
            if (preg_match("~^$pattern\$~Ds", $name) === 1) {
                return $callable;
            }
        }
        return null;
    }

    private function report(\Throwable $error, string $what, Event $event): void
    {
        // The action is the client's text.
        $what = preg_replace('/[\x00-\x1f\x7f]/', '?', substr($what, 0, 300));
        ($this->log)(sprintf(
            'ws-cluster: %s failed (request %s): %s: %s in %s:%d',
            $what,
            $event->id,
            $error::class,
            $error->getMessage(),
            $error->getFile(),
            $error->getLine(),
        ));
    }
}
