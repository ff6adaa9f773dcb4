<?php

declare(strict_types=1);

namespace WsCluster;

/**
 * Publishes inside a transaction of the site: the message is delivered exactly once if the transaction commits, and never
 * if it rolls back. The nodes run with `--outbox`. `ws-server pool --schema` prints the SQL of the table.
 *
 * ```php
 * $database->beginTransaction();
 * $database->prepare('INSERT INTO news (text) VALUES (?)')->execute([$text]);
 * (new WsCluster\Outbox($database))->publish('news/new', [$text], WsCluster\Target::all());
 * $database->commit();
 * ```
 */
final class Outbox
{
    /** The limit of ws-server for action and details, in bytes. A larger message would never be delivered. */
    private const MAX_BYTES = 1 << 20;

    /**
     * @param \PDO $database The connection on which the transaction runs: MySQL, MariaDB or SQLite.
     * @param string $table The name of the table.
     */
    public function __construct(private readonly \PDO $database, private readonly string $table = 'ws_outbox')
    {
        if (preg_match('/^\w+(\.\w+)?$/', $table) !== 1) {
            throw new Exception("$table cannot be the name of the outbox: use letters, digits and _");
        }
    }

    /**
     * Adds a message to the present transaction. Without a transaction it is published at once.
     *
     * @param string $action 1 to 255 bytes that do not begin with `Server/`, `Client/` or `Presence/`. If it is not
     *     ASCII, the connection's character set must be utf8mb4.
     * @param mixed $details The arguments, as for `Client::publish`.
     * @param string|array<string, mixed>|Target $to The target, its text form such as `user:bob`, or JSON such as
     *     `{"user":"bob"}`, as text or as an array.
     *
     * @throws Exception The message cannot be published, or the database refuses the row. A transaction that runs goes
     *     on: roll it back.
     */
    public function publish(string $action, mixed $details, string|array|Target $to): void
    {
        // A row that cannot be published would only be found in ws_outbox_failed.
        $action = Action::checked($action);
        $target = Target::column($to);
        $arguments = Json::arguments($details);
        if (strlen($action) + strlen(Json::encode($arguments, depth: Json::DETAILS_DEPTH)) > self::MAX_BYTES) {
            $advice = 'publish less, such as an id, and let pages fetch it';
            throw new Exception("the action and the details are longer than 1 MiB: $advice");
        }
        // In ASCII, because a connection in Latin-1 would change anything else on its way.
        $details = Json::encode($arguments, ascii: true);
        try {
            $insert = $this->database->prepare("INSERT INTO {$this->table} (action, details, target) VALUES (?, ?, ?)");
            if ($insert === false || !$insert->execute([$action, $details, $target])) {
                $why = ($insert ?: $this->database)->errorInfo();
                throw $this->refused((string) ($why[2] ?? 'unknown error'), null);
            }
        } catch (\PDOException $error) {
            throw $this->refused($error->getMessage(), $error);
        }
    }

    private function refused(string $why, ?\PDOException $error): Exception
    {
        $advice = "create the table {$this->table} with the SQL that `ws-server pool --schema` prints, and grant INSERT";
        return new Exception("the outbox takes no message ($why): $advice", 0, $error);
    }
}
