// The harness of the client's tests: the other end of its WebSocket, a page around it, and a clock that stands still.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock } from "node:test";
import { WsCluster } from "../index.mjs";

export const OK = { action: "Client/authentication", details: ["ok"] };

/** A WebSocket whose other end is the test. */
export class FakeSocket {
  static all = [];
  static get last() {
    return FakeSocket.all.at(-1);
  }

  readyState = 0;
  sent = [];

  constructor(url) {
    this.url = new URL(url);
    FakeSocket.all.push(this);
  }

  send(frame) {
    assert.equal(this.readyState, 1, "sent to a socket that is not open");
    this.sent.push(JSON.parse(frame));
  }

  close(code) {
    if (this.readyState < 2) this.readyState = 2;
    this.closedWith ??= code;
  }

  /** Accepts the connection, as the server. */
  open() {
    this.readyState = 1;
    this.onopen({});
    return this;
  }

  /** Sends a message, as the server. */
  say(...messages) {
    for (const message of messages) {
      this.onmessage({ data: typeof message === "string" ? message : JSON.stringify(message) });
    }
    return this;
  }

  /** Ends the connection. */
  end(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
    return this;
  }
}

/** Lets promises run: the client connects, asks for credentials and refuses messages in later microtasks. */
export const settle = async () => {
  for (let i = 0; i < 10; i++) await null;
};

/** Records the calls of each of its functions, in one order. */
export function recorder() {
  const calls = [];
  return { calls, record: (name) => (...details) => calls.push([name, ...details]) };
}

/** The clients that are closed after each test. */
let clients;

/** Returns a client that has not begun to connect. */
export function create(options = {}, url = "ws://host/WebSockets") {
  const client = new WsCluster(url, { WebSocket: FakeSocket, ...options });
  clients.push(client);
  return client;
}

/** Returns a client whose first attempt is under way. */
export async function connect(options, url) {
  const client = create(options, url);
  await settle();
  return client;
}

/** Returns a client whose first connection is open and authenticated. */
export async function authenticated(options, url) {
  const client = await connect(options, url);
  FakeSocket.last.open().say(OK);
  return client;
}

beforeEach(() => {
  clients = [];
  FakeSocket.all = [];
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  // The longest delay that jitter allows, so that delays are known.
  mock.method(Math, "random", () => 1);
});

afterEach(() => {
  for (const client of clients) client.close();
  mock.timers.reset();
  mock.restoreAll();
  delete globalThis.location;
  delete globalThis.document;
  delete globalThis.origin;
  delete globalThis.addEventListener;
  delete globalThis.reportError;
});

/** Makes a page: its location, its document with its base, its origin, and the events of its window. */
export function page(href, { baseURI = href, origin } = {}) {
  globalThis.location = { href };
  globalThis.document = Object.assign(new EventTarget(), { baseURI, visibilityState: "visible" });
  if (origin) globalThis.origin = origin;
  const target = new EventTarget();
  globalThis.addEventListener = (...args) => target.addEventListener(...args);
  return (type, properties = {}) => target.dispatchEvent(Object.assign(new Event(type), properties));
}
