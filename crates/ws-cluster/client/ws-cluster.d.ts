/** The details of each action, which are the arguments of its callback. The default allows everything. */
export type Actions = Record<string, any[]>;

/**
 * The client's own events. {@link WsCluster.on} registers callbacks for them as for the server's actions. They are
 * never sent over the connection.
 */
export interface ClientEvents {
  /** An attempt to connect to this URL begins. */
  "Client/connecting": [url: string];
  /** The connection is open, and the client authenticates next. `Client/authentication ["ok"]` reports success. */
  "Client/open": [url: string];
  /**
   * The connection is lost, or an attempt failed. `code` and `reason` are those of the WebSocket, or 1006 if it had
   * none. If `willReconnect` is true, the next attempt begins in `delay` milliseconds, or earlier if the browser goes
   * online or the page comes to the front. If it is false, this client is closed for good.
   */
  "Client/close": [code: number, reason: string, willReconnect: boolean, delay: number];
  /** The client has resumed without a loss. The next `count` messages are those that it missed. */
  "Client/recovered": [count: number];
  /**
   * Messages may have been missed or may come twice, with the reason. Reload everything that must be complete. This
   * usually comes on a new connection, but faults of the cluster can cause it at any time.
   */
  "Client/reset": [why: string];
}

/** The server's answer about the client's identity. Members that do not apply are left out. */
export interface Authentication {
  /** The connection's id, as handlers and `except` on the server know it. A client that resumes keeps it. */
  connection?: string;
  /** The user's id. */
  user?: string;
  /** Seconds until the authentication expires. The client renews it before that, see {@link Options.credentials}. */
  expires_in?: number;
}

/** The server's messages about the connection itself. */
export interface ServerActions {
  /**
   * The client is authenticated, on a new connection or again on an open one. The error callback means that it is
   * not. The connection stays open if guests are allowed, and if fresh credentials of a user are refused. If the client
   * has no user yet, it is closed after wrong credentials (403), and after credentials that the server cannot look up
   * now (503). After a 503 the client connects again, and messages that wait are sent on that connection.
   */
  "Client/authentication": [outcome: string, about?: Authentication];
  /** The connection is about to be closed for good: the session ended, or the user is blocked. */
  "Server/close": [];
  /** The client's position. The client handles it, and reports what matters as events. */
  "Server/position": [kind: "new" | "recovered" | "reset" | "now", value?: number | string];
}

type Known = ClientEvents & ServerActions;

type Details<Received, A> =
  A extends keyof Known ? Known[A] : A extends keyof Received ? Extract<Received[A], any[]> : never;

/**
 * Gets a code as in HTTP, and its text. The client itself uses two codes for messages that were not sent: 503 (queue
 * full, or client closed) and 413 (larger than {@link Options.messageSize}).
 */
export type ErrorCallback = (code: number, text: string) => void;

export interface RequestOptions {
  /**
   * Milliseconds for the answer, the wait for a connection included. Default 30,000. 0 and `Infinity` set no limit.
   */
  timeout?: number;
  /** Ends the request: it rejects with the signal's reason, as `fetch` does. The server may carry it out nevertheless. */
  signal?: AbortSignal;
}

/**
 * The error with which {@link WsCluster.request} rejects. The server's handlers use codes as in HTTP; the codes of the
 * client itself are:
 *
 * | code | cause | has it been carried out? |
 * |---|---|---|
 * | 413 | larger than {@link Options.messageSize} | no |
 * | 499 | the connection was lost, or the client closed, before the answer | unknown |
 * | 503 | the queue was full, there was no connection in time, or the client is closed | no |
 * | 504 | no answer in time | unknown |
 *
 * 503 and 504 may also come from the server.
 */
export interface RequestError extends Error {
  name: "RequestError";
  code: number;
  text: string;
}

export interface Options {
  /**
   * Details of `Client/authentication`, sent on every new connection: an array, one value, or a function that
   * returns either (or a promise of it) and is called each time. If the function fails, the client connects again. If
   * it takes longer than 10 s, a server that has no guests closes the connection, and the client connects and calls it
   * again; a server with guests treats the client as a guest until then. Default none: the session cookie identifies
   * the user.
   *
   * If the server says when the authentication expires, the credentials are sent again before that on the open
   * connection: one or two minutes before, or in the last half of a time under four minutes. Credentials that last less
   * than 3 s may expire before that. After a failure (no credentials, 429, 503) the client tries again while time
   * remains, after 1 s at the soonest. Refused credentials (403) change nothing. At the
   * expiry the server closes the connection, and the client authenticates on a new one.
   */
  credentials?: unknown | (() => unknown);
  /** True to get the missed messages on a new connection. Default true. Servers may ignore it. */
  resume?: boolean;
  /**
   * Where the order of messages stood when the page was rendered, as `GET /_position` told the site. The client then gets
   * what was published for it between the rendering and its connection; a message that the page shows already may come as
   * well. The position is valid for two minutes. If it is older, `Client/reset` comes, so the page must not be kept in a
   * cache (`Cache-Control: no-store`). Part of resuming, so it has no effect with `resume: false`. Default none: the
   * client gets what is published after it has connected.
   */
  position?: string;
  /** Maximum number of messages that wait for a connection. Further ones are refused with 503. Default 100. */
  queueSize?: number;
  /**
   * Maximum size of a message that the server accepts, in bytes of its JSON in UTF-8. A larger message is refused with
   * 413, because the server would close the connection for good. Default 65,536, as the server's.
   */
  messageSize?: number;
  /** Milliseconds for a connection to open. After that the next URL is tried. Default 10,000. */
  connectTimeout?: number;
  /**
   * The longest interval between two messages from the server, in milliseconds: whole seconds from 5 s to 300 s, or 0
   * or false for no heartbeat. Default 25,000. After silence for twice that time the connection counts as dead, and the
   * next URL is tried.
   *
   * It only applies if the server grants it: `Server/position` then has a member `heartbeat`, in seconds. A server that
   * does not know heartbeats may be silent without a limit once it has answered the authentication. The heartbeat is
   * part of resuming, so there is none with `resume: false`.
   */
  heartbeat?: number | false;
  /** Maximum delay before the first new attempt, in milliseconds. It doubles with each attempt. Default 500. */
  reconnectDelay?: number;
  /** Maximum delay before any new attempt, in milliseconds. Default 30,000. */
  reconnectDelayMax?: number;
  /** The WebSocket class, such as that of the `ws` package, if there is no global one. Default the global one. */
  WebSocket?: new (url: string) => any;
  /**
   * The function that asks a server which refused a connection when to come again (`Retry-After`), since a WebSocket does
   * not show it. Only used with a single URL. Default the global one if the WebSocket class is the global one, too.
   */
  fetch?: typeof fetch;
}

/**
 * A lasting connection to a cluster.
 *
 * The client connects and authenticates by itself. Whenever the connection is lost, it does so again after a random
 * part of a growing delay, without a limit on attempts. It ends on {@link close}, on `Server/close`, and on the close
 * codes 1000, 1002, 1003, 1007–1010 and 4400–4999, after which another attempt would be closed in the same way.
 *
 * It also reconnects if the server is silent for too long (see {@link Options.heartbeat}), and at once if the browser
 * was offline and is back online. If a page comes back to the front, silence for one heartbeat is enough, and a client
 * without a connection makes an attempt within a second, unless the server asked it to wait (`Retry-After`).
 *
 * An exception in a callback is reported like an uncaught one (`reportError`). The other callbacks are still called.
 *
 * ```js
 * const client = new WsCluster()
 *   .on("hello", (text) => console.log(text), (code, why) => console.warn(code, why))
 *   .send("hello", ["world"]);
 * ```
 *
 * @typeParam Received - The actions that the server sends, with their details.
 * @typeParam Sent - The actions that the application sends, with their details.
 */
export class WsCluster<Received = Actions, Sent = Actions> {
  /**
   * @param url - The cluster's URL, which may be relative to the page or worker; `http` stands for `ws`. Default
   * `/WebSockets` on its own host; a `srcdoc` frame has the host of the page around it. If there are several URLs, each
   * new attempt takes the next one, beginning with the first.
   * @throws TypeError if a URL is malformed or not of a WebSocket, if it is relative and no host is known (a file, a
   * program outside of browsers), if the list is empty, and if there is no WebSocket class.
   */
  constructor(url?: string | URL | readonly (string | URL)[] | null, options?: Options);

  /** The URL of the connection or of the last attempt. */
  readonly url: string;

  /**
   * All URLs, absolute. They may be set at any time, which does not change the present connection: the next attempt
   * takes the URL after the present one, or the first if that is no longer in the list. Don't change the array that it
   * returns.
   */
  get urls(): string[];
  set urls(urls: string | URL | readonly (string | URL)[]);

  /**
   * The connection's id and the user's id in the last answer to `Client/authentication`, or null if it had none or
   * there was no answer yet. They stay while the connection is lost.
   */
  readonly connectionId: string | null;
  readonly user: string | null;

  /** True if messages are sent at once: the connection is open and authentication is answered. */
  readonly connected: boolean;

  /**
   * Calls `callback` with the details of each message `action`, and `error` with those of each `action:error`.
   * Either may be left out. A callback that is registered twice is called twice.
   */
  on<A extends keyof Known | (keyof Received & string)>(
    action: A, callback?: ((...details: Details<Received, A>) => void) | null, error?: ErrorCallback | null,
  ): this;

  /** Registers callbacks like {@link on}, for one message: the first of the two that is called removes both. */
  once<A extends keyof Known | (keyof Received & string)>(
    action: A, callback?: ((...details: Details<Received, A>) => void) | null, error?: ErrorCallback | null,
  ): this;

  /**
   * Removes registrations of `on` and `once` for `action`, always with both of their callbacks. Each given callback
   * must be that of the registration. A callback that is left out (or null) matches any:
   *
   * - `off(action)` removes all registrations of the action;
   * - `off(action, callback)` removes those with this callback and any error callback;
   * - `off(action, null, error)` removes those with this error callback;
   * - `off(action, callback, error)` removes those of exactly these two.
   *
   * A call that matches no registration does nothing. A removal takes effect at once, even for the message that is
   * being delivered.
   */
  off(action: string, callback?: ((...details: any[]) => void) | null, error?: ErrorCallback | null): this;

  /**
   * Sends a message. Details that are not an array are sent as the only argument; without details there is no
   * argument.
   *
   * Until the connection is authenticated, messages wait in a queue and are sent in their order afterwards. If the
   * queue is full or the client is closed, the message is refused: the error callbacks of its action get 503. Messages
   * that still wait when the client is closed are refused in the same way. A message that is too large is refused with
   * 413. A message is given to a connection once: if the connection is lost meanwhile, the message is lost without a
   * report. Ask the server for an answer if that matters.
   *
   * Details are encoded as `JSON.stringify` does: a hole in an array, `undefined` and a function become `null`. Half of
   * a character (a lone surrogate) becomes U+FFFD.
   *
   * @throws TypeError if the action is not a string of 1 to 255 bytes, or if JSON cannot express the details (a cycle,
   * a BigInt).
   */
  send<A extends keyof Sent & string>(action: A, details?: Sent[A] | Extract<Sent[A], any[]>[0] | null): this;

  /**
   * Sends a message and waits for its one answer. Resolves with the details of the answer, an array, which is empty if
   * the handler gives no answer of its own. Rejects with a {@link RequestError} if the action fails.
   *
   * Until the connection is authenticated, requests wait in the same queue as the messages of {@link send}, and are
   * sent in one order with them. A request is sent once. If the connection is lost before the answer, it rejects with
   * 499: the server may have carried it out or not.
   *
   * The answer of a request goes to the promise alone: callbacks of {@link on} for the action are not called. Further
   * messages of the handler, and what it publishes, go to the callbacks as ever.
   *
   * ```js
   * const [id] = await client.request("comment/add", ["Nice!"], { timeout: 5_000 });
   * ```
   *
   * Rejects with a TypeError where {@link send} throws one.
   */
  request<A extends keyof Sent & string>(
    action: A, details?: Sent[A] | Extract<Sent[A], any[]>[0] | null, options?: RequestOptions,
  ): Promise<A extends keyof Received ? Extract<Received[A], any[]> : any[]>;

  /** Closes the connection and makes no further attempts. To connect again, make a new client. */
  close(): this;
}

export default WsCluster;

type WsClusterClass = typeof WsCluster;

declare global {
  /** Defined by `<script src="/ws-cluster.js">`. */
  var WsCluster: WsClusterClass;
}
