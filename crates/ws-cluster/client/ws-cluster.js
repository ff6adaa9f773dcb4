/*
 * The browser client of ws-cluster: keeps one connection to a cluster and passes messages both ways. What each
 * member does, and what an application may rely on, stands in ws-cluster.d.ts.
 *
 * This file is a plain script, so that `<script src="/ws-cluster.js"></script>` is all a page needs; the class
 * becomes the global `WsCluster`. It exports nothing, hence it loads as a module as well, and index.mjs gives
 * `import { WsCluster } from "ws-cluster"` the same class.
 */
globalThis.WsCluster = class WsCluster {
  /** Milliseconds after which an open connection counts as good even if authentication was never answered. */
  static #provenAfter = 5_000;

  #options;
  #urls;
  #url;

  /** The connection that is being made or is open. Whatever an earlier one still reports is ignored. */
  #socket = null;
  /** Authentication is answered: messages go out, behind those that waited. */
  #ready = false;
  /** The server said `Server/close`: the next close is the last. */
  #dismissed = false;
  #closed = false;
  /**
   * The one thing that time brings next: the end of an attempt, the proof of an open connection, or the next
   * attempt. A client is in only one of these phases.
   */
  #timer;
  /** Connections lost since one proved itself. */
  #attempts = 0;

  /** Messages that wait for a connection, encoded when they were sent: later changes to details don't matter. */
  #queue = [];
  #registrations = new Map();
  #listening = new AbortController();

  /** Where this client is in the cluster's order, and what belongs to its connection. Opaque, given back on return. */
  #at = "";
  #state;

  constructor(url, options = {}) {
    const {
      credentials,
      resume = true,
      queueSize = 100,
      connectTimeout = 10_000,
      reconnectDelay = 500,
      reconnectDelayMax = 30_000,
      WebSocket = globalThis.WebSocket,
    } = options;
    if (typeof WebSocket !== "function") throw new TypeError("No WebSocket here: give one as options.WebSocket");
    this.#options = { credentials, resume, queueSize, connectTimeout, reconnectDelay, reconnectDelayMax, WebSocket };
    this.urls = url ?? "/WebSockets";

    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.#connect(), { signal });
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && this.#awake(), { signal });
    // Later than the caller's chain of on(), so that it hears of the first attempt.
    queueMicrotask(() => this.#connect());
  }

  get url() {
    return this.#url ?? this.#urls[0];
  }

  get urls() {
    return [...this.#urls];
  }

  set urls(urls) {
    const absolute = [urls].flat().map((url) => {
      const { href } = new URL(url, globalThis.location?.href);
      return href.replace(/^http/, "ws").replace(/#.*/, "");
    });
    if (absolute.length === 0) throw new TypeError("No URL to connect to");
    this.#urls = [...new Set(absolute)];
  }

  get connected() {
    return this.#ready && this.#socket.readyState === 1;
  }

  on(action, callback, error) {
    return this.#register({ action, callback, error, once: false });
  }

  once(action, callback, error) {
    return this.#register({ action, callback, error, once: true });
  }

  off(action, callback, error) {
    for (const registration of this.#registrations.get(action) ?? []) {
      const meant = (callback ?? registration.callback) === registration.callback
        && (error ?? registration.error) === registration.error;
      if (meant) this.#unregister(registration);
    }
    return this;
  }

  send(action, details) {
    const frame = WsCluster.#encode(action, details);
    if (this.connected) this.#socket.send(frame);
    else if (this.#closed) this.#refuse(action, "Closed");
    else if (this.#queue.length >= this.#options.queueSize) this.#refuse(action, "Queue is full");
    else this.#queue.push({ action, frame });
    return this;
  }

  close() {
    if (!this.#closed) this.#finish(1000, "");
    return this;
  }

  // ---- the connection, from attempt to loss

  #connect() {
    if (this.#closed || this.#socket) return;
    // From a URL that has left the list, this goes on with the first.
    this.#url = this.#urls[(this.#urls.indexOf(this.#url) + 1) % this.#urls.length];
    this.#after(this.#options.connectTimeout, () => this.#lost(1006, "No answer in time"));

    let socket;
    try {
      socket = new this.#options.WebSocket(this.#target());
    } catch (error) {
      // A page may not open this URL (ws: from https:, say). Another one of the list may do.
      WsCluster.#report(error);
      this.#lost(1006, "Not allowed");
      return;
    }
    const current = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onopen = current(() => this.#opened());
    socket.onmessage = current(({ data }) => this.#received(data));
    socket.onclose = current(({ code, reason }) => this.#lost(code, reason));
    // Says nothing that the close event behind it doesn't; but the `ws` package throws when nobody listens.
    socket.onerror = () => {};
    this.#socket = socket;
    this.#dispatch("Client/connecting", [this.#url]);
  }

  #target() {
    const url = new URL(this.#url);
    if (this.#options.resume) {
      url.searchParams.set("resume", this.#at);
      if (this.#state) url.searchParams.set("state", this.#state);
    }
    return url.href;
  }

  async #opened() {
    const socket = this.#socket;
    this.#after(WsCluster.#provenAfter, () => { this.#attempts = 0; });
    this.#dispatch("Client/open", [this.#url]);
    try {
      let { credentials } = this.#options;
      if (typeof credentials === "function") credentials = await credentials();
      // A callback or the wait for credentials may have outlived the connection.
      if (socket === this.#socket) socket.send(WsCluster.#encode("Client/authentication", credentials));
    } catch (error) {
      WsCluster.#report(error);
      if (socket === this.#socket) this.#lost(1006, "No credentials");
    }
  }

  #received(data) {
    let message;
    try {
      message = JSON.parse(data);
    } catch (error) {
      WsCluster.#report(error);
      return;
    }
    const { action, at, state } = message ?? {};
    if (typeof action !== "string") return;
    const details = WsCluster.#asArray(message.details);
    if (at !== undefined) this.#at = at;
    switch (action) {
      case "Client/authentication":
        this.#attempts = 0;
        this.#flush();
        break;
      // A guest who is welcome keeps the connection; one who is not is closed by the server.
      case "Client/authentication:error":
        this.#flush();
        break;
      case "Server/position":
        this.#positioned(details, at, state);
        break;
      case "Server/close":
        this.#dismissed = true;
        break;
    }
    this.#dispatch(action, details);
  }

  #positioned([kind, value], at, state) {
    // A new beginning: nothing of the old one is true any more.
    if (kind === "new" || kind === "reset") this.#at = at ?? "";
    if (state !== undefined) this.#state = state;
    if (kind === "recovered") this.#dispatch("Client/recovered", [value]);
    if (kind === "reset") this.#dispatch("Client/reset", [value]);
  }

  #flush() {
    this.#ready = true;
    // Taken from the queue before it is handed over: what a dying socket swallowed must not be sent twice.
    while (this.connected && this.#queue.length > 0) this.#socket.send(this.#queue.shift().frame);
  }

  #lost(code, reason) {
    if (this.#dismissed || WsCluster.#isFinal(code)) {
      this.#finish(code, reason);
      return;
    }
    this.#abandon();
    // Full jitter keeps the clients of a lost node from coming back in step. A round of all URLs is one attempt.
    const { reconnectDelay, reconnectDelayMax } = this.#options;
    const round = Math.floor(this.#attempts++ / this.#urls.length);
    const delay = Math.random() * Math.min(reconnectDelayMax, reconnectDelay * 2 ** round);
    this.#after(delay, () => this.#connect());
    this.#dispatch("Client/close", [code, reason, true, delay]);
  }

  /** The page comes out of the back/forward cache. Its connection didn't, whatever the socket says. */
  #awake() {
    if (this.#socket) this.#lost(1006, "The page was away");
    this.#connect();
  }

  #finish(code, reason) {
    this.#closed = true;
    this.#abandon();
    this.#listening.abort();
    for (const { action } of this.#queue.splice(0)) this.#refuse(action, "Closed");
    this.#later("Client/close", [code, reason, false, 0]);
  }

  #abandon() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    socket?.close(1000);
  }

  #after(delay, act) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, delay);
  }

  // ---- callbacks

  #register(registration) {
    const { action } = registration;
    if (!this.#registrations.has(action)) this.#registrations.set(action, new Set());
    this.#registrations.get(action).add(registration);
    return this;
  }

  #unregister(registration) {
    const registered = this.#registrations.get(registration.action);
    registered?.delete(registration);
    if (registered?.size === 0) this.#registrations.delete(registration.action);
  }

  #dispatch(message, details) {
    const failed = message.endsWith(":error");
    const action = failed ? message.slice(0, -":error".length) : message;
    const registered = this.#registrations.get(action) ?? new Set();
    // A copy, since a callback that registers itself again must wait for the next message.
    for (const registration of [...registered]) {
      const callback = failed ? registration.error : registration.callback;
      if (!callback || !registered.has(registration)) continue;
      if (registration.once) this.#unregister(registration);
      try {
        callback(...details);
      } catch (error) {
        WsCluster.#report(error);
      }
    }
  }

  /** For what happens within a call of the application: its callbacks never run before that call returns. */
  #later(action, details) {
    queueMicrotask(() => this.#dispatch(action, details));
  }

  #refuse(action, why) {
    this.#later(`${action}:error`, [503, why]);
  }

  // ---- pure

  static #encode(action, details) {
    if (typeof action !== "string") throw new TypeError("An action is a string");
    return JSON.stringify({ action, details: WsCluster.#asArray(details) });
  }

  /** Nothing is no argument, an array is its elements, anything else is one argument. */
  static #asArray(details) {
    return [details ?? []].flat();
  }

  /** Close codes after which the same client would meet the same end. */
  static #isFinal(code) {
    return [1000, 1002, 1003].includes(code) || (code >= 1007 && code <= 1010) || (code >= 4400 && code <= 4999);
  }

  /** As an uncaught error would be shown, without stopping anything. Node has no reportError. */
  static #report(error) {
    (globalThis.reportError ?? console.error)(error);
  }
};
