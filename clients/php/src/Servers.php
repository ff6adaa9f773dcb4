<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * The addresses of the ws-servers, and which of them failed lately.
 */
final class Servers
{
    /** Seconds for a connection, and for an answer if another server can be asked instead. */
    public const CONNECT_SECONDS = 1.0;
    private const ANSWER_SECONDS = 2.0;
    /** Seconds for the answer of the last server: one that waits for a new master answers within 5. */
    private const LAST_ANSWER_SECONDS = 6.0;
    /** Seconds in which a server that did not answer is asked only after the others. */
    private const FAILED_SECONDS = 10;

    private const EXAMPLE = 'http://127.0.0.1:9001 http://127.0.0.1:9002';

    /** @param non-empty-list<string> $urls Without a slash at the end. */
    private function __construct(private readonly array $urls)
    {
    }

    /**
     * Reads addresses that are separated by spaces or commas.
     *
     * @param string|list<string>|null $given Default: the variable WS_SERVERS.
     *
     * @throws Exception There is none, or one that is no address.
     */
    public static function of(string|array|null $given = null): self
    {
        $from = $given === null ? 'WS_SERVERS' : 'the list of servers';
        $text = is_array($given) ? implode(' ', $given) : $given ?? Environment::get('WS_SERVERS');
        $urls = preg_split('/[\s,]+/', $text, -1, PREG_SPLIT_NO_EMPTY) ?: [];
        if ($urls === []) {
            $why = $given === null ? 'is not set' : 'is empty';
            throw new Exception("$from $why: give the addresses of the ws-servers, as " . self::EXAMPLE);
        }
        foreach ($urls as $url) {
            $parts = parse_url($url);
            $fits = in_array($parts['scheme'] ?? '', ['http', 'https'], true) && ($parts['host'] ?? '') !== '';
            if (!$fits || isset($parts['user']) || isset($parts['query'])) {
                throw new Exception("$from: $url is no address of a ws-server: give addresses as " . self::EXAMPLE);
            }
        }
        return new self(array_map(static fn (string $url): string => rtrim($url, '/'), $urls));
    }

    /** @return non-empty-list<string> */
    public function urls(): array
    {
        return $this->urls;
    }

    /**
     * Returns the order in which servers are asked, and how long each may take. Servers that answered lately are first,
     * and the last of them has the time that a change of the master takes.
     *
     * @return non-empty-list<array{string, float}>
     *
     * @internal
     */
    public function order(): array
    {
        $failed = array_values(array_filter($this->urls, self::failedLately(...)));
        $first = array_values(array_diff($this->urls, $failed));
        if ($first === []) {
            [$first, $failed] = [$failed, []];
        }
        $order = [];
        foreach ($first as $index => $url) {
            $order[] = [$url, $index === count($first) - 1 ? self::LAST_ANSWER_SECONDS : self::ANSWER_SECONDS];
        }
        foreach ($failed as $url) {
            $order[] = [$url, self::ANSWER_SECONDS];
        }
        return $order;
    }

    /**
     * Notes for this and other requests whether a server failed. Without a writable directory, each finds out itself.
     *
     * @internal
     */
    public function remember(string $url, bool $failed): void
    {
        $file = self::failureFile($url);
        if ($failed) {
            @touch($file);
        } elseif (self::failedLately($url)) {
            @unlink($file);
        }
    }

    private static function failedLately(string $url): bool
    {
        $file = self::failureFile($url);
        clearstatcache(true, $file);
        $time = @filemtime($file);
        return $time !== false && abs(time() - $time) < self::FAILED_SECONDS;
    }

    /** The file whose time says when a server failed last; one for each user, who cannot touch that of another. */
    private static function failureFile(string $url): string
    {
        static $user = null;
        $user ??= (string) Environment::user();
        return sys_get_temp_dir() . '/ws-server-failed-' . md5("$user " . __DIR__ . " $url");
    }
}
