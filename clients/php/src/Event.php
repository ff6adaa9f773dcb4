<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * What ws-server asks or tells the site.
 */
final class Event
{
    /** `connect`, `action`, `refresh`, `disconnect`, and others that the documentation of ws-server names. */
    public readonly string $name;
    /** The connection's id. */
    public readonly ?string $connection;
    public readonly ?string $user;
    public readonly ?string $session;
    /** @var list<string> */
    public readonly array $groups;
    /** @var array<string, mixed> */
    public readonly array $properties;
    public readonly ?string $action;
    /** @var list<mixed> The arguments of the action. Objects are arrays with text as keys. */
    public readonly array $details;
    /** The id of the client's request. The reply answers it. */
    public readonly string|int|null $request;
    public readonly ?string $language;
    public readonly ?string $remoteAddress;
    /** @var list<mixed> What the client sent to identify itself: the details of `Client/authentication`. */
    public readonly array $credentials;
    /** The code and the reason with which the connection was closed, for `disconnect`. */
    public readonly ?int $closeCode;
    public readonly ?string $closeReason;
    /** True for `disconnect` if the client has come back to the same node, and so is connected under the same id. */
    public readonly bool $resumed;
    /** @var array<string, string> The headers of the client's handshake, by names in lower case. */
    public readonly array $headers;
    /** @var array<string, string> The query of the client's URL. */
    public readonly array $query;

    /**
     * @param string $id The id of ws-server's request. An event that is sent again has the same one.
     * @param array<string, mixed> $data All members, also those that this class does not know.
     *
     * @throws Exception With the code 400: a member is missing or of the wrong type.
     */
    public function __construct(public readonly string $id, public readonly array $data)
    {
        $this->name = $this->string('event') ?? throw new Exception('the member event is missing', 400);
        $this->connection = $this->string('connection');
        $this->user = $this->string('user');
        $this->session = $this->string('session');
        $this->groups = array_values($this->array('groups'));
        $this->properties = $this->array('properties');
        $this->action = $this->string('action');
        if ($this->name === 'action' && $this->action === null) {
            throw new Exception('the member action is missing', 400);
        }
        $this->details = array_key_exists('details', $data) ? Json::arguments($data['details']) : [];
        $request = $data['request'] ?? null;
        $this->request = is_int($request) ? $request : $this->string('request');
        $this->language = $this->string('language');
        $this->credentials = array_values($this->array('credentials'));
        $code = $data['code'] ?? null;
        $this->closeCode = is_int($code) ? $code : null;
        $this->closeReason = $this->string('reason');
        $this->resumed = ($data['resumed'] ?? null) === true;
        $this->remoteAddress = $this->string('remote_addr');
        $this->headers = array_change_key_case(array_filter($this->array('headers'), is_string(...)));
        $this->query = array_filter($this->array('query'), is_string(...));
    }

    /** Returns a header of the client's handshake. */
    public function header(string $name): ?string
    {
        return $this->headers[strtolower($name)] ?? null;
    }

    /**
     * Returns the cookies of the client as PHP has them in `$_COOKIE`, for code that reads them there:
     * `$_COOKIE = $event->cookies();`. In names, `_` stands for a dot and a space, and `a[b]` is the element `b` of an
     * array. Of several cookies with one name, the first counts.
     *
     * @return array<string, string|array<mixed>>
     */
    public function cookies(): array
    {
        $query = $seen = [];
        foreach ($this->sent() as [$name, $value]) {
            // Names of cookies are not decoded, and those of a query are.
            $pair = rawurlencode($name) . '=' . rawurlencode($value);
            parse_str($pair, $one);
            $key = array_key_first($one);
            if ($key === null || (isset($seen[$key]) && is_string($one[$key]))) {
                continue;
            }
            $seen[$key] = true;
            $query[] = $pair;
        }
        $separator = ini_get('arg_separator.input')[0] ?? '&';
        parse_str(implode($separator, array_slice($query, 0, (int) ini_get('max_input_vars'))), $cookies);
        return $cookies;
    }

    /** Returns a cookie of the client, decoded, by the name that it was sent with or that it has in `$_COOKIE`. */
    public function cookie(string $name): ?string
    {
        foreach ($this->sent() as [$sent, $value]) {
            if ($sent === $name) {
                return $value;
            }
        }
        $cookie = $this->cookies()[$name] ?? null;
        return is_string($cookie) ? $cookie : null;
    }

    /**
     * Returns the cookies in their order, with names as sent and decoded values. PHP takes one without `=` for an empty
     * one.
     *
     * @return list<array{string, string}>
     */
    private function sent(): array
    {
        $cookies = [];
        foreach (explode(';', $this->header('cookie') ?? '') as $pair) {
            [$name, $value] = explode('=', ltrim($pair), 2) + [1 => ''];
            if ($name !== '') {
                $cookies[] = [$name, rawurldecode($value)];
            }
        }
        return $cookies;
    }

    /**
     * Returns an argument that must be text, without white space around it.
     *
     * @param int $index The argument, from 0.
     * @param int $max The number of characters of the longest text.
     * @param string $what The name of the argument, for the client's error.
     *
     * @throws Refusal With the code 400: it is missing, empty, too long, or no text.
     */
    public function text(int $index, int $max = 1000, string $what = ''): string
    {
        $what = $what === '' ? "argument $index" : $what;
        $text = $this->details[$index] ?? null;
        if (!is_string($text) || trim($text) === '') {
            throw new Refusal(400, "$what must be text that is not empty");
        }
        $text = trim($text);
        // JSON in UTF-8 was decoded, so the text is valid: its characters are its bytes without continuation bytes.
        if (strlen($text) > $max && preg_match_all('/[^\x80-\xbf]/', $text) > $max) {
            throw new Refusal(400, "$what is longer than $max characters");
        }
        return $text;
    }

    /**
     * Returns an argument that must be a whole number.
     *
     * @throws Refusal With the code 400: it is missing or no whole number.
     */
    public function int(int $index, string $what = ''): int
    {
        $number = $this->details[$index] ?? null;
        return is_int($number) ? $number
            : throw new Refusal(400, ($what === '' ? "argument $index" : $what) . ' must be a whole number');
    }

    /**
     * Returns the user, for actions that guests may not call.
     *
     * @throws Refusal With the code 403: the client is a guest.
     */
    public function signedIn(): string
    {
        return $this->user ?? throw new Refusal(403, 'sign in first');
    }

    private function string(string $name): ?string
    {
        $value = $this->data[$name] ?? null;
        return $value === null || is_string($value) ? $value : throw new Exception("the member $name is no text", 400);
    }

    /** @return array<mixed> */
    private function array(string $name): array
    {
        $value = $this->data[$name] ?? [];
        return is_array($value) ? $value : throw new Exception("the member $name is no array or object", 400);
    }
}
