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

  /** Milliseconds within which a message comes that is due or already waits for the page. */
  static #grace = 3_000;

  /** A timer that is late by more milliseconds says that the page slept, or that its thread was busy. */
  static #late = 1_000;

  /** The shortest time in milliseconds after which credentials are asked for again. */
  static #soonest = 5_000;

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
  /** When something was last heard of the present connection, or its attempt began. */
  #heard = 0;
  /** Milliseconds within which this connection's server lets the client hear from it. 0: it has not promised that. */
  #heartbeat = 0;
  /** Gives up a connection of which nothing is heard. */
  #watchdog;
  /** When the browser went offline, if that is so. */
  #offlineSince;
  /** When the credentials of this connection expire; NaN if they do not. */
  #expiry = NaN;
  /** Asks for credentials again before that. */
  #renewal;
  /** Fresh credentials are being asked for, or wait for the server's answer. */
  #renewing = false;
  #connectionId = null;
  #user = null;
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
      messageSize = 65_536,
      connectTimeout = 10_000,
      heartbeat = 25_000,
      reconnectDelay = 500,
      reconnectDelayMax = 30_000,
      WebSocket = globalThis.WebSocket,
    } = options;
    if (typeof WebSocket !== "function") {
      throw new TypeError("No WebSocket here: give one as options.WebSocket, such as that of the package ws");
    }
    this.#options = {
      credentials, resume, queueSize, messageSize, connectTimeout, reconnectDelay, reconnectDelayMax, WebSocket,
      // In seconds from here on.
      heartbeat: heartbeat > 0 ? WsCluster.#granted(Math.round(heartbeat / 1_000)) : 0,
    };
    this.urls = url ?? "/WebSockets";

    const { signal } = this.#listening;
    const listen = (target, event, act) => target?.addEventListener?.(event, act, { signal });
    listen(globalThis, "offline", () => { this.#offlineSince ??= Date.now(); });
    listen(globalThis, "online", () => this.#online());
    listen(globalThis, "pageshow", ({ persisted }) => persisted && this.#replace("The page was away"));
    const { document } = globalThis;
    listen(document, "visibilitychange", () => document.visibilityState === "visible" && this.#check());
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
    const absolute = [urls].flat().map(WsCluster.#absolute);
    if (absolute.length === 0) throw new TypeError("No URL to connect to");
    this.#urls = [...new Set(absolute)];
  }

  get connectionId() {
    return this.#connectionId;
  }

  get user() {
    return this.#user;
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
    if (this.#isTooLarge(frame)) this.#refuse(action, 413, `Larger than ${this.#options.messageSize} bytes`);
    else if (this.connected) this.#socket.send(frame);
    else if (this.#closed) this.#refuse(action, 503, "Closed");
    else if (this.#queue.length >= this.#options.queueSize) this.#refuse(action, 503, "Queue is full");
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
    this.#heard = Date.now();

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
      if (this.#options.heartbeat) url.searchParams.set("heartbeat", this.#options.heartbeat);
      if (this.#state) url.searchParams.set("state", this.#state);
    }
    return url.href;
  }

  async #opened() {
    const socket = this.#socket;
    this.#after(WsCluster.#provenAfter, () => { this.#attempts = 0; });
    this.#dispatch("Client/open", [this.#url]);
    try {
      let credentials = this.#credentials();
      if (typeof this.#options.credentials === "function") credentials = await credentials;
      // A callback or the wait for credentials may have outlived the connection.
      if (socket === this.#socket) this.#authenticate(credentials);
    } catch (error) {
      WsCluster.#report(error);
      if (socket === this.#socket) this.#lost(1006, "No credentials");
    }
  }

  #authenticate(credentials) {
    const frame = WsCluster.#encode("Client/authentication", credentials);
    if (this.#isTooLarge(frame)) throw new RangeError(`Credentials larger than ${this.#options.messageSize} bytes`);
    this.#socket.send(frame);
    // Every server answers the first one, whatever it knows of heartbeats.
    if (!this.#ready) this.#watchFrom(Date.now());
  }

  #received(data) {
    this.#heard = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch (error) {
      WsCluster.#report(error);
      return;
    }
    const { action, at, state, heartbeat } = message ?? {};
    if (typeof action !== "string") return;
    const details = WsCluster.#asArray(message.details);
    if (at !== undefined) this.#at = at;
    switch (action) {
      case "Client/authentication":
        this.#attempts = 0;
        this.#identified(details[1] ?? {});
        this.#flush();
        break;
      // A guest who is welcome keeps the connection; one who is not is closed by the server.
      case "Client/authentication:error":
        this.#refused(details[0]);
        this.#flush();
        break;
      case "Server/position":
        this.#positioned(details, at, state);
        if (heartbeat > 0) this.#promised(heartbeat);
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
    // What silence means from here on is up to the server's promise.
    if (!this.#heartbeat) clearTimeout(this.#watchdog);
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

  /** Connects at once. The present connection is dead, whatever its socket says. */
  #replace(why) {
    if (this.#socket) this.#lost(1006, why);
    this.#connect();
  }

  #finish(code, reason) {
    this.#closed = true;
    this.#abandon();
    this.#listening.abort();
    for (const { action } of this.#queue.splice(0)) this.#refuse(action, 503, "Closed");
    this.#later("Client/close", [code, reason, false, 0]);
  }

  #abandon() {
    for (const timer of [this.#timer, this.#watchdog, this.#renewal]) clearTimeout(timer);
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    this.#renewing = false;
    this.#heartbeat = 0;
    socket?.close(1000);
  }

  #after(delay, act) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, delay);
  }

  // ---- silence: a browser sees no pings, and a host that vanished closes nothing

  /** The server promises a message at least every so many seconds. One that knows no heartbeats never does. */
  #promised(seconds) {
    this.#heartbeat = WsCluster.#granted(seconds) * 1_000;
    this.#watchFrom(this.#heard);
  }

  /** Gives the connection up after silence for twice the heartbeat. The time before it gives up is the last look's. */
  #watchFrom(heard) {
    const silence = 2 * (this.#heartbeat || this.#options.heartbeat * 1_000);
    this.#watch(Math.min(heard, Date.now()) + silence - WsCluster.#grace, 0);
  }

  /**
   * Looks at `due` whether anything came meanwhile. Times are those of the clock, since the timers of a page that is
   * in the background, or slept, are late. What came while it slept may run behind the timers. So the connection is
   * given up at a second look only, and at a fourth if the page slept on.
   */
  #watch(due, looks) {
    clearTimeout(this.#watchdog);
    if (!this.#options.heartbeat) return;
    const since = Date.now();
    this.#watchdog = setTimeout(() => {
      const late = Date.now() - due;
      // A clock that was set back proves nothing.
      if (this.#heard >= since || late < -WsCluster.#late) this.#watchFrom(this.#heard);
      else if (looks < (late > WsCluster.#late ? 3 : 1)) this.#watch(Date.now() + WsCluster.#grace, looks + 1);
      else this.#lost(1006, "Nothing was heard from the server");
    }, Math.max(0, due - since));
  }

  /** Looks soon if the server should have been heard by now. */
  #check() {
    const now = Date.now();
    if (this.#heartbeat && now - this.#heard > this.#heartbeat) this.#watch(now + WsCluster.#grace, 1);
  }

  #online() {
    const since = this.#offlineSince;
    this.#offlineSince = undefined;
    // Few connections survive the loss of their network, and those that do cannot be told from the others in time.
    if (!this.#socket || this.#heard <= since) this.#replace("The network was away");
    else this.#check();
  }

  // ---- who this is, and for how long

  /** The server's word on an authenticated connection. A server of another version says less. */
  #identified({ connection, user, expires_in: seconds }) {
    this.#connectionId = connection ?? null;
    this.#user = user ?? null;
    this.#renewing = false;
    clearTimeout(this.#renewal);
    this.#expiry = Date.now() + seconds * 1_000;
    if (this.#options.credentials !== undefined) this.#renewInTime();
  }

  /** Refused credentials change nothing on a connection that has others. */
  #refused(code) {
    if (!this.#ready) {
      this.#connectionId = null;
      this.#user = null;
    } else if (this.#renewing && code !== 403) {
      this.#renewInTime();
    }
    this.#renewing = false;
  }

  /** Asks for credentials before those of now expire: early enough to try again, and not all clients at once. */
  #renewInTime() {
    clearTimeout(this.#renewal);
    const left = this.#expiry - Date.now();
    const wait = left - Math.min(left / 4, 60_000) * (2 - Math.random());
    // What is all but over is left to the next connection. Without an expiry this compares with NaN.
    if (!(wait >= WsCluster.#soonest)) return;
    const longest = 2 ** 31 - 1;
    this.#renewal = setTimeout(() => (wait > longest ? this.#renewInTime() : this.#renew()), Math.min(wait, longest));
  }

  async #renew() {
    const socket = this.#socket;
    try {
      this.#renewing = true;
      const credentials = await this.#credentials();
      if (socket === this.#socket && this.connected) this.#authenticate(credentials);
    } catch (error) {
      WsCluster.#report(error);
      if (socket !== this.#socket) return;
      this.#renewing = false;
      this.#renewInTime();
    }
  }

  /** The details that authenticate, or a promise of them. */
  #credentials() {
    const { credentials } = this.#options;
    return typeof credentials === "function" ? credentials() : credentials;
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

  #refuse(action, code, why) {
    this.#later(`${action}:error`, [code, why]);
  }

  /** Whether the server would close the connection for a message of this size. */
  #isTooLarge(frame) {
    const { messageSize } = this.#options;
    // A unit of UTF-16 has one to three bytes in UTF-8, so most messages need no count.
    if (frame.length * 3 <= messageSize) return false;
    return frame.length > messageSize || WsCluster.#bytes(frame) > messageSize;
  }

  // ---- pure

  /** The absolute URL of a WebSocket. */
  static #absolute(url) {
    const base = WsCluster.#base();
    let absolute;
    try {
      absolute = new URL(url, base);
    } catch (cause) {
      const why = base ? "is not a URL" : "is relative, and this page or program has no address on a host";
      throw new TypeError(`${url} ${why}: pass an absolute URL, such as wss://live.example.org/WebSockets`, { cause });
    }
    const href = absolute.href.replace(/^http/, "ws").replace(/#.*/, "");
    if (!/^wss?:/.test(href)) throw new TypeError(`${url} begins with neither ws: nor wss: (nor http: nor https:)`);
    return href;
  }

  /**
   * What a relative URL is relative to: the address of the page or worker. A `srcdoc` frame has that of the page
   * around it; what was made from a blob knows only the origin of its maker. Undefined if no host is known.
   */
  static #base() {
    const { location, document, origin } = globalThis;
    return [location?.href, document?.baseURI, origin].find((base) => /^https?:/.test(base));
  }

  /** The text of a message. Throws if the caller's values have none. */
  static #encode(action, details) {
    if (typeof action !== "string") throw new TypeError("An action is a string");
    const length = WsCluster.#bytes(action);
    if (length < 1 || length > 255) throw new TypeError(`An action has 1 to 255 bytes, this one ${length}`);
    let frame;
    try {
      frame = JSON.stringify({ action, details: WsCluster.#asArray(details) });
    } catch (cause) {
      throw new TypeError(`The details of ${action} cannot be sent as JSON: ${cause?.message ?? cause}`, { cause });
    }
    return WsCluster.#wellFormed(frame);
  }

  /** Nothing is no argument, an array is its elements, anything else is one argument. */
  static #asArray(details) {
    if (details === undefined || details === null) return [];
    return Array.isArray(details) ? details : [details];
  }

  /**
   * Replaces what is half of a character (a lone surrogate) by U+FFFD, wherever it stands: UTF-8 has no bytes for it.
   * JSON.stringify has escaped it, and writes both halves of a whole character as they are.
   */
  static #wellFormed(json) {
    if (!/\\ud/i.test(json)) return json;
    // Takes escapes one by one, since the backslash before a "u" may itself be escaped. Both halves side by side, which
    // JSON.rawJSON can bring, are a character.
    const escapes = /\\(?:ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|ud[89a-f][0-9a-f]{2}|.)/gi;
    return json.replace(escapes, (escape) => (/^\\ud.{3}$/i.test(escape) ? "\ufffd" : escape));
  }

  /** The size of a text in UTF-8. */
  static #bytes(text) {
    let bytes = text.length;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      // The halves of a character outside the basic plane have two bytes each.
      if (unit >= 0x80) bytes += unit < 0x800 || (unit & 0xf800) === 0xd800 ? 1 : 2;
    }
    return bytes;
  }

  /** The heartbeat that a server grants to one who asks for this, in seconds. */
  static #granted(seconds) {
    return Math.min(Math.max(seconds, 5), 300);
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
