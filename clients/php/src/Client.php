<?php

declare(strict_types=1);

namespace WsCluster;

use WsCluster\Http\Curl;
use WsCluster\Http\Reply;
use WsCluster\Http\Streams;
use WsCluster\Http\Transport;

/**
 * Publishes messages, and changes the connections of users and sessions. It posts to the nodes' own ports, past nginx
 * and any proxy, with the key that only the site and its ws-servers have.
 *
 * If a node does not answer within 2 s, the next one is asked. For the next 10 s the failed node is asked last.
 *
 * ```php
 * $client = new WsCluster\Client();
 * $client->publish('news/new', ['ann', 'Hello'], WsCluster\Target::user('bob'));
 * ```
 */
final class Client
{
    /** The number of messages in one request, and their bytes if there are several. */
    private const BATCH = 1000;
    private const BATCH_BYTES = 1 << 20;
    private const REPEAT = 'It may still be carried out. Repeat it with the same key, or leave it';

    private readonly Servers $servers;
    private readonly string $key;
    private readonly Transport $transport;

    /**
     * @param string|list<string>|null $servers The nodes, as `http://127.0.0.1:9001`. Default: the variable WS_SERVERS.
     * @param ?string $key The publish key. Default: the variable WS_SERVER_PUBLISH_KEY.
     * @param ?Transport $transport Default: curl if PHP has it and may use it, else PHP's streams.
     *
     * @throws Exception A setting is missing or wrong.
     */
    public function __construct(string|array|null $servers = null, ?string $key = null, ?Transport $transport = null)
    {
        $this->key = trim($key ?? Environment::get('WS_SERVER_PUBLISH_KEY'));
        if ($this->key === '') {
            throw new Exception('WS_SERVER_PUBLISH_KEY is not set: give the publish key of the ws-servers');
        }
        if (preg_match('/[\x00-\x1f\x7f]/', $this->key) === 1) {
            throw new Exception('the publish key contains a line break or another control character: give one key');
        }
        $this->servers = Servers::of($servers);
        $this->transport = $transport ?? (Curl::isAllowed() ? new Curl() : new Streams());
    }

    /**
     * Publishes a message. When this returns, the message is accepted: it is delivered even if a node is lost.
     *
     * @param string $action 1 to 255 bytes that do not begin with `Server/`, `Client/` or `Presence/`.
     * @param mixed $details The arguments: an array without text as keys has one for each element, null means none, and
     *     any other value is one argument. An array inside of another follows the rules of json_encode: if keys are
     *     missing in it, it becomes an object; use array_values.
     * @param string|array<string, mixed>|Target $to The target, its text form such as `user:bob`, or JSON such as
     *     `{"user":"bob"}`, as text or as an array.
     * @param string|int|null $key An idempotency key of 1 to 64 bytes: of several publishes with the same key, only one
     *     is delivered. Default: a random one, so that a message that several nodes take is delivered once.
     * @param bool $volatile True if connections that are behind may miss the message.
     *
     * @throws Exception It was not accepted. If `outcomeUnknown` is true, it may still be delivered.
     */
    public function publish(
        string $action,
        mixed $details,
        string|array|Target $to,
        string|int|null $key = null,
        bool $volatile = false,
    ): void {
        $message = new Message($action, $details, $to, $key, $volatile);
        $this->post('/_publish', Json::encode($message));
    }

    /**
     * Publishes messages in as few requests as possible, in their order. A message that is refused does not keep the
     * others from being published.
     *
     * @param iterable<Message> $messages
     *
     * @return list<?Exception> For each message null, or why it was not accepted.
     *
     * @throws Exception No node answers, or it refuses a whole request. Of more than 1,000 messages, or more than 1 MiB,
     *     the first may have been published.
     */
    public function batch(iterable $messages): array
    {
        $outcomes = $part = [];
        $bytes = 0;
        foreach ($messages as $message) {
            $json = Json::encode($message);
            if (count($part) === self::BATCH || ($part !== [] && $bytes + strlen($json) > self::BATCH_BYTES)) {
                array_push($outcomes, ...$this->postAll($part));
                [$part, $bytes] = [[], 0];
            }
            $part[] = $json;
            $bytes += strlen($json);
        }
        if ($part !== []) {
            array_push($outcomes, ...$this->postAll($part));
        }
        return $outcomes;
    }

    /**
     * Lets connections join and leave groups. Give exactly one of user, session and connection.
     *
     * @param list<string> $join
     * @param list<string> $leave
     *
     * @throws Exception As `publish`.
     */
    public function groups(
        string|int|null $user = null,
        ?string $session = null,
        ?string $connection = null,
        array $join = [],
        array $leave = [],
    ): void {
        $command = self::one('groups', ['user' => $user, 'session' => $session, 'connection' => $connection]);
        $command += array_filter(['join' => array_values($join), 'leave' => array_values($leave)]);
        $this->post('/_groups', Json::encode($command));
    }

    /**
     * Closes connections, in every tab and on every node. Give exactly one of user, session and connection.
     *
     * The pages do not connect again by themselves. With `reconnect` they do, and are identified anew: after
     * `session_regenerate_id`, for example. With `user`, `exceptSession` leaves out the connections of one session.
     *
     * @throws Exception As `publish`.
     */
    public function close(
        string|int|null $user = null,
        ?string $session = null,
        ?string $connection = null,
        ?string $exceptSession = null,
        bool $reconnect = false,
    ): void {
        $command = self::one('close', ['user' => $user, 'session' => $session, 'connection' => $connection]);
        $command += $exceptSession === null ? [] : ['except_session' => $exceptSession];
        $this->post('/_close', Json::encode($command + ($reconnect ? ['reconnect' => true] : [])));
    }

    /**
     * Makes the nodes look up a user's or a session's identity and groups again at once, instead of within 30 s. Give
     * exactly one of both.
     *
     * @throws Exception As `publish`.
     */
    public function refresh(string|int|null $user = null, ?string $session = null): void
    {
        $this->post('/_refresh', Json::encode(self::one('refresh', ['user' => $user, 'session' => $session])));
    }

    /**
     * Returns where the order of messages stands, for the page that is being rendered. Ask before reading the database,
     * and give the answer to the browser's client: `new WsCluster(null, { position })`. The page then gets what is
     * published between now and its connection.
     *
     * @param float $seconds The time limit for each node. It is short, because the page waits.
     *
     * @throws Exception No node answers. A page can do without a position.
     */
    public function position(float $seconds = 1.0): string
    {
        $answer = json_decode($this->ask('GET', '/_position', '', 200, $seconds), true);
        $position = is_array($answer) ? $answer['position'] ?? null : null;
        return is_string($position) ? $position
            : throw new Exception('the answer is not that of a ws-server to /_position: check WS_SERVERS');
    }

    /**
     * Returns the one subject that is given.
     *
     * @param array<string, string|int|null> $subjects
     *
     * @return array<string, string>
     */
    private static function one(string $method, array $subjects): array
    {
        $given = array_filter($subjects, static fn (string|int|null $id): bool => $id !== null);
        if (count($given) !== 1 || in_array('', $given, true)) {
            $names = implode(', ', array_keys($subjects));
            throw new Exception("$method needs exactly one of $names, as in \$client->$method(user: 'ann', ..)");
        }
        return array_map(strval(...), $given);
    }

    /**
     * @param non-empty-list<string> $messages As JSON.
     *
     * @return list<?Exception>
     */
    private function postAll(array $messages): array
    {
        $unknown = false;
        try {
            $answer = $this->ask('POST', '/_publish', '[' . implode(',', $messages) . ']', 200, unknown: $unknown);
        } catch (Exception $error) {
            // A message that is too large fails alone.
            return $error->getCode() === 413 && count($messages) === 1 ? [$error] : throw $error;
        }
        $outcomes = json_decode($answer, true);
        if (!is_array($outcomes) || count($outcomes) !== count($messages)) {
            throw new Exception('the answer is not that of a ws-server to a batch: check WS_SERVERS', 0, null, true);
        }
        return array_map(static function (mixed $outcome) use ($unknown): ?Exception {
            $status = is_array($outcome) ? (int) ($outcome['status'] ?? 0) : 0;
            $told = is_array($outcome) && is_string($outcome['error'] ?? null) ? $outcome['error'] : 'no outcome';
            $unknown = $status === 504 || ($unknown && !self::isFinal($status));
            return $status === 204 ? null : new Exception("$status $told", $status, null, $unknown);
        }, array_values($outcomes));
    }

    private function post(string $path, string $body): void
    {
        $this->ask('POST', $path, $body, 204);
    }

    /** Returns true if every node would refuse a message of a batch with this status. */
    private static function isFinal(int $status): bool
    {
        return $status === 400 || $status === 413;
    }

    /**
     * Asks one node after the other, until one carries the command out.
     *
     * @param int $success The status of success.
     * @param ?float $limit The time limit for each node. Default: that of `Servers`.
     * @param bool $unknown Becomes true if a node before the one that answered may have carried the command out.
     *
     * @return string The text of the answer.
     */
    private function ask(
        string $method,
        string $path,
        string $body,
        int $success,
        ?float $limit = null,
        bool &$unknown = false,
    ): string {
        $headers = ['Authorization' => "Bearer {$this->key}", 'Content-Type' => 'application/json'];
        $failures = [];
        $unknown = false;
        foreach ($this->servers->order() as [$server, $seconds]) {
            $reply = $this->transport->send(
                $method,
                $server . $path,
                $headers,
                $body,
                min(Servers::CONNECT_SECONDS, $limit ?? $seconds),
                $limit ?? $seconds,
            );
            $this->servers->remember($server, $reply->status === 0);
            if ($reply->status === $success) {
                return $reply->text;
            }
            if ($reply->status !== 0 && $reply->status < 500) {
                // The next node would say the same. A node before this one may have carried the command out nevertheless,
                // since another program may have answered here.
                $advice = $unknown ? '. ' . self::REPEAT : '';
                throw new Exception(self::refusal($reply, $server . $path) . $advice, $reply->status, null, $unknown);
            }
            $unknown = $unknown || ($reply->status === 0 && $reply->sent) || $reply->status === 504;
            $failures[] = [$server, $reply];
        }
        throw self::failure($failures, $unknown);
    }

    /** @param non-empty-list<array{string, Reply}> $failures */
    private static function failure(array $failures, bool $unknown): Exception
    {
        $answers = array_filter($failures, static fn (array $failure): bool => $failure[1]->status !== 0);
        $told = implode('; ', array_map(static function (array $failure): string {
            [$server, $reply] = $failure;
            return "$server: " . ($reply->status === 0 ? $reply->text : self::told($reply));
        }, $failures));
        $advice = match (true) {
            $unknown => self::REPEAT,
            $answers !== [] => 'It was not carried out. Try again in a few seconds',
            default => 'Start them, or correct WS_SERVERS; `curl ADDRESS/health` shows whether one answers',
        };
        $what = $answers === [] ? 'no ws-server answers' : 'no ws-server carried the command out';
        $last = end($answers);
        return new Exception("$what ($told). $advice", $last === false ? 0 : $last[1]->status, null, $unknown);
    }

    private static function refusal(Reply $reply, string $url): string
    {
        $told = self::told($reply);
        return match (true) {
            $reply->status < 400 || self::isPage($reply) => "$told: another program answers at $url, check WS_SERVERS",
            $reply->status === 401 => "$told: give PHP the publish key of the ws-servers (WS_SERVER_PUBLISH_KEY)",
            $reply->status === 404 => "$told: give ws-server a publish key (WS_SERVER_PUBLISH_KEY), or check $url",
            $reply->status === 413 => "$told: send less in one message",
            default => $told,
        };
    }

    /** Returns the status and the text of an answer in one line. */
    private static function told(Reply $reply): string
    {
        $line = self::isPage($reply) ? 'with a page of HTML' : strtok($reply->text, "\r\n");
        return trim("{$reply->status} " . substr((string) $line, 0, 500));
    }

    /** Returns true if another program has answered with a page for people. No node does that. */
    private static function isPage(Reply $reply): bool
    {
        return str_starts_with(ltrim($reply->text), '<');
    }
}
