/*
 * The browser client of ws-cluster. It keeps one connection to a cluster and passes messages in both directions.
 * ws-cluster.d.ts documents each member and what an application may rely on.
 *
 * This file is a plain script, so that a page only needs `<script src="/ws-cluster.js"></script>`. The class becomes
 * the global `WsCluster`. The file exports nothing, so it also loads as a module: index.mjs provides the same class
 * to `import { WsCluster } from "ws-cluster"`.
 */
globalThis.WsCluster = class WsCluster {
  /** Milliseconds after which an open connection counts as good, even if authentication was not answered. */
  static #goodAfter = 5_000;

  /** Milliseconds within which a message arrives that is due, or that already waits for the page. */
  static #grace = 3_000;

  /** Milliseconds of delay from which a late timer means that the page slept or its thread was busy. */
  static #lateAfter = 1_000;

  /** Longest wait, in milliseconds, until a page that comes to the front connects. */
  static #shortWait = 1_000;

  /**
   * Minimum number of milliseconds until credentials are asked for again. Credentials that last 3 s or more are renewed
   * in time: the server says the time in whole seconds, and the wait is at least half of what it says.
   */
  static #minRenewal = 1_000;

  #options;
  #urls;
  #url;

  /** The connection that is being made or is open. Events of earlier connections are ignored. */
  #socket = null;
  /** True once authentication is answered. Messages are then sent, after those that waited. */
  #ready = false;
  /** True once the server has sent `Server/close`. The next close is then the last. */
  #dismissed = false;
  #closed = false;
  /**
   * The timer of the present phase: the end of an attempt, the moment at which an open connection counts as good, or
   * the next attempt. A client is in only one of these phases.
   */
  #timer;
  /** The time of the next attempt; 0 if there is none, or if the server asked for that wait. */
  #nextAttempt = 0;
  /** Stands for the present wait for an attempt. */
  #wait = null;
  /** The time of the last message on the present connection, or the start of its attempt. */
  #lastHeard = 0;
  /** The longest interval between two messages that the server has granted, in milliseconds; 0 if it has not. */
  #heartbeat = 0;
  /** The timer that ends a connection on which no message comes. */
  #watchdog;
  /** The time at which the browser went offline, if it is offline. */
  #offlineSince;
  /** The time at which the credentials of this connection expire; NaN if they do not. */
  #expiry = NaN;
  /** The timer that asks for credentials again before that. */
  #renewal;
  /** True while fresh credentials are being asked for, or wait for the server's answer. */
  #renewing = false;
  #connectionId = null;
  #user = null;
  /** True if the present or last connection was open. */
  #wasOpen = false;
  /** Number of connections lost since the last good one. */
  #attempts = 0;

  /** Messages that wait for a connection. They are encoded at once, so later changes to their details don't matter. */
  #queue = [];
  /** The requests without an answer, by their ids. */
  #requests = new Map();
  #lastRequest = 0;
  #registrations = new Map();
  #listening = new AbortController();

  /** The client's position and its resume token. Both are opaque, and the client brings them back to resume. */
  #at = "";
  #state;

  constructor(url, options = {}) {
    const {
      credentials,
      resume = true,
      position,
      queueSize = 100,
      messageSize = 65_536,
      connectTimeout = 10_000,
      heartbeat = 25_000,
      reconnectDelay = 500,
      reconnectDelayMax = 30_000,
      WebSocket = globalThis.WebSocket,
      // Where a WebSocket of another kind connects, fetch may not.
      fetch = WebSocket === globalThis.WebSocket ? globalThis.fetch : undefined,
    } = options;
    if (typeof WebSocket !== "function") {
      throw new TypeError("No WebSocket here: give one as options.WebSocket, such as that of the package ws");
    }
    this.#options = {
      credentials, resume, queueSize, messageSize, connectTimeout, reconnectDelay, reconnectDelayMax, WebSocket, fetch,
      // Converted to seconds.
      heartbeat: heartbeat > 0 ? WsCluster.#clampHeartbeat(Math.round(heartbeat / 1_000)) : 0,
    };
    this.urls = url ?? "/WebSockets";
    // On the first connection, the page's position takes the place of the resume token.
    this.#state = position;

    const { signal } = this.#listening;
    const listen = (target, event, act) => target?.addEventListener?.(event, act, { signal });
    listen(globalThis, "offline", () => { this.#offlineSince ??= Date.now(); });
    listen(globalThis, "online", () => this.#online());
    listen(globalThis, "pageshow", ({ persisted }) => persisted && this.#replace("The page was away"));
    const { document } = globalThis;
    listen(document, "visibilitychange", () => document.visibilityState === "visible" && this.#shown());
    // Deferred, so that callbacks from the caller's chain of on() are called for the first attempt.
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
    this.#submit({ frame, refuse: (code, why) => this.#refuse(action, code, why) });
    return this;
  }

  async request(action, details, { timeout = 30_000, signal } = {}) {
    const id = this.#lastRequest + 1;
    const frame = WsCluster.#encode(action, details, id);
    signal?.throwIfAborted();
    this.#lastRequest = id;
    return new Promise((resolve, reject) => {
      const message = { frame, sent: false };
      const settle = (act, value) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        this.#requests.delete(id);
        this.#queue = this.#queue.filter((other) => other !== message);
        act(value);
      };
      message.resolve = (answer) => settle(resolve, answer);
      message.refuse = (code, why) => settle(reject, WsCluster.#failure(action, code, why));
      const abort = () => settle(reject, signal.reason);
      const expire = () => {
        if (message.sent) message.refuse(504, "No answer in time, the outcome is unknown");
        else message.refuse(503, "Not connected in time");
      };
      // With a longer time, a timer would fire at once.
      const timer = timeout > 0 && timeout < 2 ** 31 ? setTimeout(expire, timeout) : undefined;
      signal?.addEventListener("abort", abort);
      this.#requests.set(id, message);
      this.#submit(message);
    });
  }

  close() {
    if (!this.#closed) this.#finish(1000, "");
    return this;
  }

  // ---- the connection, from attempt to loss

  #connect() {
    if (this.#closed || this.#socket) return;
    this.#nextAttempt = 0;
    this.#wait = null;
    // If the present URL has left the list, the first one is next.
    this.#url = this.#urls[(this.#urls.indexOf(this.#url) + 1) % this.#urls.length];
    this.#after(this.#options.connectTimeout, () => this.#lost(1006, "No answer in time"));
    this.#lastHeard = Date.now();
    this.#wasOpen = false;

    let socket;
    try {
      socket = new this.#options.WebSocket(this.#target());
    } catch (error) {
      // A page may not open this URL (for example ws: from https:). Another URL of the list may work.
      WsCluster.#report(error);
      this.#lost(1006, "Not allowed");
      return;
    }
    const current = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onopen = current(() => this.#opened());
    socket.onmessage = current(({ data }) => this.#received(data));
    socket.onclose = current(({ code, reason }) => this.#lost(code, reason));
    // The close event that follows says the same. But the `ws` package throws if there is no handler.
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
    this.#wasOpen = true;
    this.#after(WsCluster.#goodAfter, () => { this.#attempts = 0; });
    this.#dispatch("Client/open", [this.#url]);
    try {
      let credentials = this.#credentials();
      if (typeof this.#options.credentials === "function") credentials = await credentials;
      // The connection may have been lost during a callback or the wait for credentials.
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
    // Every server answers the first authentication, even if it does not know heartbeats.
    if (!this.#ready) this.#watchFrom(Date.now());
  }

  #received(data) {
    this.#lastHeard = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch (error) {
      WsCluster.#report(error);
      return;
    }
    const { action, at, state, heartbeat, id, close } = message ?? {};
    if (typeof action !== "string") return;
    const details = WsCluster.#asArray(message.details);
    if (at !== undefined) this.#at = at;
    switch (action) {
      case "Client/authentication":
        this.#attempts = 0;
        this.#setIdentity(details[1] ?? {});
        this.#flush();
        break;
      // If the connection stays open, messages are sent. A connection that the server closes next would lose them.
      case "Client/authentication:error":
        this.#refused(details[0]);
        if (close === undefined) this.#flush();
        else this.#ready = false;
        break;
      case "Server/position":
        this.#setPosition(details, at, state);
        if (heartbeat > 0) this.#heartbeatGranted(heartbeat);
        break;
      case "Server/close":
        this.#dismissed = true;
        break;
    }
    if (id === undefined) this.#dispatch(action, details);
    else this.#answered(id, action, details);
  }

  #setPosition([kind, value], at, state) {
    // The client begins anew, so the old position does not count any more.
    if (kind === "new" || kind === "reset") this.#at = at ?? "";
    if (state !== undefined) this.#state = state;
    if (kind === "recovered") this.#dispatch("Client/recovered", [value]);
    if (kind === "reset") this.#dispatch("Client/reset", [value]);
  }

  #flush() {
    this.#ready = true;
    // From here on, silence only counts if the server has granted a heartbeat.
    if (!this.#heartbeat) clearTimeout(this.#watchdog);
    // Removed from the queue before it is sent: a message that a dying socket took must not be sent twice.
    while (this.connected && this.#queue.length > 0) this.#transmit(this.#queue.shift());
  }

  #lost(code, reason) {
    if (this.#dismissed || WsCluster.#isFinal(code)) {
      this.#finish(code, reason);
      return;
    }
    this.#dropSocket();
    // Full jitter spreads the reconnects of a lost node's clients. A round of all URLs counts as one attempt.
    const { reconnectDelay, reconnectDelayMax } = this.#options;
    const round = Math.floor(this.#attempts++ / this.#urls.length);
    const delay = Math.random() * Math.min(reconnectDelayMax, reconnectDelay * 2 ** round);
    this.#connectIn(delay);
    if (!this.#wasOpen && this.#urls.length === 1) this.#askWhenToRetry();
    this.#dispatch("Client/close", [code, reason, true, delay]);
  }

  /** A server that takes no more clients says in Retry-After when to come again, but a WebSocket does not show it. */
  async #askWhenToRetry() {
    const wait = (this.#wait = {});
    try {
      const url = this.#url.replace(/^ws/, "http").replace(/\?.*/, "");
      const limit = AbortSignal.timeout(this.#options.connectTimeout);
      // Old browsers cannot combine signals. There the question may outlive the client by that time.
      const signal = AbortSignal.any?.([limit, this.#listening.signal]) ?? limit;
      const options = { cache: "no-store", credentials: "omit", signal };
      const answer = await this.#options.fetch?.call(globalThis, url, options);
      const seconds = Math.min(Number(answer?.headers.get("retry-after")), 300);
      // With jitter, or all clients that were told the same would come at once.
      const until = Date.now() + seconds * 1_000 * (1 + Math.random() / 2);
      if (wait === this.#wait && !this.#closed && until > this.#nextAttempt) {
        this.#connectIn(until - Date.now());
        this.#nextAttempt = 0;
      }
    } catch {
      // The server is not there, or on another origin. The client comes again after the usual delay.
    }
  }

  /** Drops the present connection, whatever its socket reports, and connects at once. */
  #replace(why) {
    if (this.#socket) this.#lost(1006, why);
    this.#connect();
  }

  #finish(code, reason) {
    this.#closed = true;
    this.#dropSocket();
    this.#listening.abort();
    for (const message of this.#queue.splice(0)) message.refuse(503, "Closed");
    this.#dispatchLater("Client/close", [code, reason, false, 0]);
  }

  #dropSocket() {
    for (const timer of [this.#timer, this.#watchdog, this.#renewal]) clearTimeout(timer);
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    this.#renewing = false;
    this.#heartbeat = 0;
    socket?.close(1000);
    for (const request of [...this.#requests.values()]) {
      if (request.sent) request.refuse(499, "The connection was lost, the outcome is unknown");
    }
  }

  #connectIn(delay) {
    this.#nextAttempt = Date.now() + delay;
    this.#after(delay, () => this.#connect());
  }

  #after(delay, act) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, delay);
  }

  // ---- silence: a browser does not show pings, and a host that is gone closes no connection

  /** Notes the heartbeat that the server granted, in seconds. A server that does not know heartbeats grants none. */
  #heartbeatGranted(seconds) {
    this.#heartbeat = WsCluster.#clampHeartbeat(seconds) * 1_000;
    this.#watchFrom(this.#lastHeard);
  }

  /** Drops the connection after silence for twice the heartbeat. The last part of that time is for the last look. */
  #watchFrom(heard) {
    const silence = 2 * (this.#heartbeat || this.#options.heartbeat * 1_000);
    this.#watch(Math.min(heard, Date.now()) + silence - WsCluster.#grace, 0);
  }

  /**
   * Checks at `due` whether a message has come meanwhile. It compares times of the clock, since timers are late in a
   * page that is in the background or slept. Messages that came while the page slept may be handled after its timers.
   * So the connection is dropped only at the second look, and at the fourth if the page slept longer.
   */
  #watch(due, looks) {
    clearTimeout(this.#watchdog);
    if (!this.#options.heartbeat) return;
    const since = Date.now();
    this.#watchdog = setTimeout(() => {
      const late = Date.now() - due;
      // If the clock was set back, the times cannot be compared.
      if (this.#lastHeard >= since || late < -WsCluster.#lateAfter) this.#watchFrom(this.#lastHeard);
      else if (looks < (late > WsCluster.#lateAfter ? 3 : 1)) this.#watch(Date.now() + WsCluster.#grace, looks + 1);
      else this.#lost(1006, "Nothing was heard from the server");
    }, Math.max(0, due - since));
  }

  /** Looks soon if a message is overdue. */
  #check() {
    const now = Date.now();
    if (this.#heartbeat && now - this.#lastHeard > this.#heartbeat) this.#watch(now + WsCluster.#grace, 1);
  }

  /** Looks after the connection of a page that came to the front: somebody looks at it. */
  #shown() {
    this.#check();
    // The wait is random, because many pages may come to the front at the same moment, as after a reboot.
    const wait = Math.random() * WsCluster.#shortWait;
    if (Date.now() + wait < this.#nextAttempt) this.#connectIn(wait);
  }

  #online() {
    const since = this.#offlineSince;
    this.#offlineSince = undefined;
    // Few connections survive the loss of their network, and it takes too long to find out which.
    if (!this.#socket || this.#lastHeard <= since) this.#replace("The network was away");
    else this.#check();
  }

  // ---- who this is, and for how long

  /** Notes the server's answer about an authenticated connection. A server of an older version says less. */
  #setIdentity({ connection, user, expires_in: seconds }) {
    this.#connectionId = connection ?? null;
    this.#user = user ?? null;
    this.#renewing = false;
    clearTimeout(this.#renewal);
    this.#expiry = Date.now() + seconds * 1_000;
    if (this.#options.credentials !== undefined) this.#renewInTime();
  }

  /** Handles refused credentials. They change nothing on a connection that is authenticated already. */
  #refused(code) {
    if (!this.#ready) {
      this.#connectionId = null;
      this.#user = null;
    } else if (this.#renewing && code !== 403) {
      this.#renewInTime();
    }
    this.#renewing = false;
  }

  /** Asks for credentials before the present ones expire: early enough to try again, and spread over all clients. */
  #renewInTime() {
    clearTimeout(this.#renewal);
    const left = this.#expiry - Date.now();
    const wait = left - Math.min(left / 4, 60_000) * (2 - Math.random());
    // If the time is almost over, the next connection gets fresh credentials. Without an expiry, `wait` is NaN.
    if (!(wait >= WsCluster.#minRenewal)) return;
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

  /** Returns the details that authenticate, or a promise of them. */
  #credentials() {
    const { credentials } = this.#options;
    return typeof credentials === "function" ? credentials() : credentials;
  }

  // ---- messages and callbacks

  /** Sends a message, or lets it wait for the connection. A message that can do neither is refused. */
  #submit(message) {
    if (this.#isTooLarge(message.frame)) message.refuse(413, `Larger than ${this.#options.messageSize} bytes`);
    else if (this.connected) this.#transmit(message);
    else if (this.#closed) message.refuse(503, "Closed");
    else if (this.#queue.length >= this.#options.queueSize) message.refuse(503, "Queue is full");
    else this.#queue.push(message);
  }

  #transmit(message) {
    message.sent = true;
    this.#socket.send(message.frame);
  }

  /** Settles a request. The answer to a request that has ended meanwhile is ignored. */
  #answered(id, action, details) {
    const request = this.#requests.get(id);
    if (action.endsWith(":error")) request?.refuse(...details);
    else request?.resolve(details);
  }

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
    // A copy: a callback that registers itself again is only called for the next message.
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

  /** Dispatches after the application's present call, since callbacks never run before that call returns. */
  #dispatchLater(action, details) {
    queueMicrotask(() => this.#dispatch(action, details));
  }

  #refuse(action, code, why) {
    this.#dispatchLater(`${action}:error`, [code, why]);
  }

  /** Returns true if the server would close the connection because of the message's size. */
  #isTooLarge(frame) {
    const { messageSize } = this.#options;
    // A UTF-16 code unit has one to three bytes in UTF-8, so most messages need not be counted.
    if (frame.length * 3 <= messageSize) return false;
    return frame.length > messageSize || WsCluster.#bytes(frame) > messageSize;
  }

  // ---- pure

  /** Returns the absolute URL of a WebSocket. */
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
   * Returns the base of relative URLs: the address of the page or worker. A `srcdoc` frame has the address of the
   * page around it. A page or worker from a blob only knows the origin of its creator. Undefined if no host is known.
   */
  static #base() {
    const { location, document, origin } = globalThis;
    return [location?.href, document?.baseURI, origin].find((base) => /^https?:/.test(base));
  }

  /** Returns the text of a message. Throws if the caller's values cannot be encoded. */
  static #encode(action, details, id) {
    if (typeof action !== "string") throw new TypeError("An action is a string");
    const length = WsCluster.#bytes(action);
    if (length < 1 || length > 255) throw new TypeError(`An action has 1 to 255 bytes, this one ${length}`);
    let frame;
    try {
      frame = JSON.stringify({ action, details: WsCluster.#asArray(details), id });
    } catch (cause) {
      throw new TypeError(`The details of ${action} cannot be sent as JSON: ${cause?.message ?? cause}`, { cause });
    }
    return WsCluster.#wellFormed(frame);
  }

  /** Returns the error of a request that failed. */
  static #failure(action, code = 500, text = "") {
    return Object.assign(new Error(`${action}: ${code} ${text}`), { name: "RequestError", code, text });
  }

  /** Returns the arguments: none for undefined or null, an array's elements, and anything else as one argument. */
  static #asArray(details) {
    if (details === undefined || details === null) return [];
    return Array.isArray(details) ? details : [details];
  }

  /**
   * Replaces each half of a character (a lone surrogate) by U+FFFD, because UTF-8 cannot encode it. JSON.stringify
   * has escaped the half, and writes both halves of a whole character as they are.
   */
  static #wellFormed(json) {
    if (!/\\ud/i.test(json)) return json;
    // Matches escapes one by one, since the backslash before a "u" may itself be escaped. Two escaped halves side by
    // side, which JSON.rawJSON can contain, are a character.
    const escapes = /\\(?:ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|ud[89a-f][0-9a-f]{2}|.)/gi;
    return json.replace(escapes, (escape) => (/^\\ud.{3}$/i.test(escape) ? "\ufffd" : escape));
  }

  /** Returns the size of a text in UTF-8. */
  static #bytes(text) {
    let bytes = text.length;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      // The halves of a character outside the basic plane have two bytes each.
      if (unit >= 0x80) bytes += unit < 0x800 || (unit & 0xf800) === 0xd800 ? 1 : 2;
    }
    return bytes;
  }

  /** Returns the heartbeat that a server grants if a client asks for `seconds`. */
  static #clampHeartbeat(seconds) {
    return Math.min(Math.max(seconds, 5), 300);
  }

  /** Returns true for close codes after which another attempt of the same client would be closed in the same way. */
  static #isFinal(code) {
    return [1000, 1002, 1003].includes(code) || (code >= 1007 && code <= 1010) || (code >= 4400 && code <= 4999);
  }

  /** Reports an error like an uncaught one, without throwing it. Node has no reportError. */
  static #report(error) {
    (globalThis.reportError ?? console.error)(error);
  }
};
