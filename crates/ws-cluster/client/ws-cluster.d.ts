/** The details of each action: the arguments of its callback. The default admits everything. */
export type Actions = Record<string, any[]>;

/**
 * What the client itself reports, to be heard with {@link WsCluster.on} like the actions of the server. They never
 * travel.
 */
export interface ClientEvents {
  /** An attempt to connect to this URL begins. */
  "Client/connecting": [url: string];
  /** The connection is open; the client authenticates next. `Client/authentication ["ok"]` says that it succeeded. */
  "Client/open": [url: string];
  /**
   * The connection is lost, or an attempt failed. `code` and `reason` are those of the WebSocket, 1006 where it
   * had none. With `willReconnect`, the next attempt comes in `delay` milliseconds, sooner when the browser goes
   * online; without it, this client is done.
   */
  "Client/close": [code: number, reason: string, willReconnect: boolean, delay: number];
  /** Back on the cluster, nothing was missed: the next `count` messages are those of the meantime. */
  "Client/recovered": [count: number];
  /**
   * Messages may have been missed or may come twice, and why: load anew what must be complete. Usually on a new
   * connection, but faults of the cluster can bring it at any time.
   */
  "Client/reset": [why: string];
}

/** Who the server says the client is. Members that do not apply are left out. */
export interface Authentication {
  /** The connection's id, as handlers and `except` on the server know it. A client that resumes keeps it. */
  connection?: string;
  /** The user's id. */
  user?: string;
  /** Seconds until the authentication expires. The client renews it before that, see {@link Options.credentials}. */
  expires_in?: number;
}

/** What the server says about the connection itself. */
export interface ServerActions {
  /**
   * Authenticated, on a new connection or anew on an open one. Its error callback: not authenticated; a guest keeps the
   * connection where guests are welcome, and so does a user whose fresh credentials are refused.
   */
  "Client/authentication": [outcome: string, about?: Authentication];
  /** The connection is about to be closed for good: the session ended, or the user is blocked. */
  "Server/close": [];
  /** Where this client is in the cluster's order. The client deals with it and reports what matters. */
  "Server/position": [kind: "new" | "recovered" | "reset" | "now", value?: number | string];
}

type Known = ClientEvents & ServerActions;

type Details<Received, A> =
  A extends keyof Known ? Known[A] : A extends keyof Received ? Extract<Received[A], any[]> : never;

/**
 * A code as in HTTP, and its text. Two codes are also the client's own, and say that the message was not sent: 503
 * (queue full, or client closed) and 413 (larger than {@link Options.messageSize}).
 */
export type ErrorCallback = (code: number, text: string) => void;

export interface Options {
  /**
   * Details of `Client/authentication`, sent on every new connection: an array, one value, or a function that
   * returns (a promise of) either and is asked each time. When it fails, the connection is tried again. Default
   * none: the session cookie says who this is.
   *
   * If the server says when the authentication expires, they are sent again before that, on the open connection: one or
   * two minutes before, or in the last half of a time under four minutes. A failure (no credentials, 429, 503) is tried
   * again while time remains. Refused credentials (403) change nothing; at the expiry the server then closes the
   * connection, and the client authenticates on a new one.
   */
  credentials?: unknown | (() => unknown);
  /** Whether to get what was missed when a connection is made again. Default true; servers may ignore it. */
  resume?: boolean;
  /** Messages that may wait for a connection; one more is refused with 503. Default 100. */
  queueSize?: number;
  /**
   * Largest message that the server takes, in bytes of its JSON in UTF-8. A larger one, for which the server would
   * close the connection for good, is refused with 413. Default 65,536, as the server's.
   */
  messageSize?: number;
  /** Milliseconds for a connection to open; then the next URL gets its turn. Default 10,000. */
  connectTimeout?: number;
  /**
   * Milliseconds within which the server lets the client hear from it, in whole seconds from 5 s to 300 s; 0 or false
   * for never. Default 25,000. After silence for twice that the connection counts as dead, and the next URL gets its
   * turn.
   *
   * Only a server that promises it is held to it: `Server/position` with a member `heartbeat`, the seconds that it
   * grants. A server that does not know heartbeats may be silent for as long as it likes, once it has answered the
   * authentication. It is part of resuming, so there is none with `resume: false`.
   */
  heartbeat?: number | false;
  /** Most milliseconds before the first new attempt; doubles with each further one. Default 500. */
  reconnectDelay?: number;
  /** Most milliseconds before any new attempt. Default 30,000. */
  reconnectDelayMax?: number;
  /** The WebSocket class, for places that have none: the one of the `ws` package. Default the global one. */
  WebSocket?: new (url: string) => any;
}

/**
 * A lasting connection to a cluster.
 *
 * It connects and authenticates by itself, and does so again whenever the connection is lost, each time after a
 * random part of a growing delay, for as long as it takes. It ends on {@link close}, on `Server/close`, and on the
 * close codes 1000, 1002, 1003, 1007–1010 and 4400–4999, after which the same client would meet the same end.
 *
 * It also comes again if the server is silent for too long (see {@link Options.heartbeat}), and at once if the
 * browser was offline and is back online. In a page that comes back to the front, silence for one heartbeat is enough.
 *
 * An exception in a callback is reported like an uncaught one (`reportError`) and stops nothing.
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
   * @param url - Where the cluster is, relative to the page or worker; `http` stands for `ws`. Default `/WebSockets`
   * on its own host; a `srcdoc` frame has the host of the page around it. Of several, each new attempt takes the next
   * one, beginning with the first.
   * @throws TypeError for a URL that is none or not of a WebSocket, for a relative one if no host is known (a file, a
   * program outside of browsers), for an empty list, and where there is no WebSocket.
   */
  constructor(url?: string | URL | readonly (string | URL)[] | null, options?: Options);

  /** The URL of the connection or of the last attempt. */
  readonly url: string;

  /**
   * All URLs, absolute. May be set at any time and leaves the connection alone: the next attempt takes the URL
   * behind the present one, or the first where that is no longer in the list. Don't change the array it returns.
   */
  get urls(): string[];
  set urls(urls: string | URL | readonly (string | URL)[]);

  /**
   * The connection's id and the user's id in the last answer to `Client/authentication`; null if that had none, and
   * before the first. They stay while the connection is lost.
   */
  readonly connectionId: string | null;
  readonly user: string | null;

  /** Whether messages go out at once: the connection is open and authentication is answered. */
  readonly connected: boolean;

  /**
   * Calls `callback` with the details of each message `action`, and `error` with those of each `action:error`.
   * Either may be left out. What is registered twice is called twice.
   */
  on<A extends keyof Known | (keyof Received & string)>(
    action: A, callback?: ((...details: Details<Received, A>) => void) | null, error?: ErrorCallback | null,
  ): this;

  /** The same for one message: the first of the two that is called removes both. */
  once<A extends keyof Known | (keyof Received & string)>(
    action: A, callback?: ((...details: Details<Received, A>) => void) | null, error?: ErrorCallback | null,
  ): this;

  /**
   * Removes what `on` and `once` registered for `action`, always both callbacks of a registration together. Each
   * callback that is given must be that of the registration; one that is left out (or null) matches any:
   *
   * - `off(action)` removes all registrations of the action;
   * - `off(action, callback)` removes those with this callback, whatever their error callback;
   * - `off(action, null, error)` removes those with this error callback;
   * - `off(action, callback, error)` removes those of exactly these two.
   *
   * What matches nothing is left alone. It takes effect at once, also for callbacks of the message being delivered.
   */
  off(action: string, callback?: ((...details: any[]) => void) | null, error?: ErrorCallback | null): this;

  /**
   * Sends a message. Details that are no array are sent as the only argument, none as no argument.
   *
   * Until the connection is authenticated, messages wait in a queue and go out in their order afterwards. One that
   * finds the queue full, or the client closed, is refused: the error callbacks of its action get 503, and so they
   * do for messages that still wait when the client closes. One that is too large is refused with 413. A message is
   * handed to a connection once: if that is lost on the way, so is the message, silently. Ask for an answer where it
   * matters.
   *
   * Details are written as `JSON.stringify` does: a hole in an array, `undefined` and a function become `null`. Half of
   * a character (a lone surrogate) becomes U+FFFD.
   *
   * @throws TypeError for an action that is no string of 1 to 255 bytes, and for details that JSON can't express
   * (a circle, a BigInt).
   */
  send<A extends keyof Sent & string>(action: A, details?: Sent[A] | Extract<Sent[A], any[]>[0] | null): this;

  /** Ends the connection and its attempts for good. To come back, make a new client. */
  close(): this;
}

export default WsCluster;

type WsClusterClass = typeof WsCluster;

declare global {
  /** Defined by `<script src="/ws-cluster.js">`. */
  var WsCluster: WsClusterClass;
}
