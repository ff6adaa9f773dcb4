import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import { WsCluster } from "../index.mjs";
import { FakeSocket, OK, authenticated, connect, create, page, recorder, settle } from "./harness.mjs";

describe("the URL", () => {
  for (const [href, expected] of [
    ["http://site.example:8080/a/page?x#y", "ws://site.example:8080/WebSockets"],
    ["https://site.example/", "wss://site.example/WebSockets"],
  ]) {
    test(`is derived from the page ${href}`, async () => {
      page(href);
      assert.equal((await connect({}, null)).url, expected);
      assert.equal(FakeSocket.last.url.href, `${expected}?resume=&heartbeat=25`);
      assert.equal(new WsCluster(undefined, { WebSocket: FakeSocket }).close().url, expected);
    });
  }

  test("may be relative, of http, a URL, with a query and a fragment", () => {
    page("https://site.example/a/");
    const urls = ["/live?user=a%20b#here", new URL("http://other:81/x")];
    const client = new WsCluster(urls, { WebSocket: FakeSocket }).close();
    assert.deepEqual(client.urls, ["wss://site.example/live?user=a%20b", "ws://other:81/x"]);
  });

  for (const [what, href, rest] of [
    ["a srcdoc frame", "about:srcdoc", { baseURI: "https://site.example/a/page", origin: "https://site.example" }],
    ["a sandboxed srcdoc frame", "about:srcdoc", { baseURI: "https://site.example/a/page", origin: "null" }],
    ["a window that a page opened empty", "about:blank", { baseURI: "https://site.example/a/page" }],
    ["a worker made from a blob", "blob:https://site.example/6f7a", { origin: "https://site.example" }],
    ["a page whose base is another host", "https://site.example/a/", { baseURI: "https://static.example/" }],
  ]) {
    test(`of ${what} is that of its host`, () => {
      page(href, rest);
      assert.equal(new WsCluster(null, { WebSocket: FakeSocket }).close().url, "wss://site.example/WebSockets");
    });
  }

  for (const [href, rest] of [
    ["file:///pages/page.html", { baseURI: "file:///pages/page.html", origin: "null" }],
    ["about:blank", { baseURI: "about:blank", origin: "null" }],
    ["blob:null/6f7a", { baseURI: "blob:null/6f7a", origin: "null" }],
    ["data:text/html,x", { baseURI: "data:text/html,x", origin: "null" }],
    [undefined, {}],
  ]) {
    test(`that is relative is refused where there is no host: ${href}`, () => {
      page(href, rest);
      assert.throws(() => new WsCluster(undefined, { WebSocket: FakeSocket }), /^TypeError: .*pass an absolute URL/);
      assert.equal(new WsCluster("ws://host/", { WebSocket: FakeSocket }).close().url, "ws://host/");
    });
  }

  test("that is none, or an empty list, is refused", () => {
    for (const none of ["ws://", [], ["ws://host/", "http://[/"], "ftp://host/", "mailto:ann@host"]) {
      assert.throws(() => new WsCluster(none, { WebSocket: FakeSocket }), TypeError, String(none));
    }
    page("https://site.example/");
    assert.throws(() => new WsCluster("ws://", { WebSocket: FakeSocket }), /ws:\/\/ is not a URL/);
  });

  test("of a list is the next one at each attempt, beginning with the first", async () => {
    await connect({}, ["ws://a/", "ws://b/", "ws://a/"]);
    for (let i = 0; i < 3; i++) {
      FakeSocket.last.end();
      mock.timers.tick(30_000);
    }
    assert.deepEqual(FakeSocket.all.map(({ url }) => url.host), ["a", "b", "a", "b"]);
  });

  test("lists may change while connected: the next attempt goes on behind the present URL", async () => {
    const client = await authenticated({}, "ws://a/");
    client.urls = ["ws://a/", "ws://b/"];
    assert.equal(FakeSocket.all.length, 1);
    FakeSocket.last.end();
    mock.timers.tick(500);
    assert.equal(client.url, "ws://b/");
    client.urls = ["ws://c/", "ws://d/"];
    FakeSocket.last.end();
    mock.timers.tick(30_000);
    assert.equal(client.url, "ws://c/");
  });

  test("that the page may not open is skipped", async () => {
    const report = mock.method(console, "error", () => {});
    class Strict extends FakeSocket {
      constructor(url) {
        if (url.includes("forbidden")) throw new Error("mixed content");
        super(url);
      }
    }
    await connect({ WebSocket: Strict }, ["ws://forbidden/", "ws://b/"]);
    assert.equal(report.mock.callCount(), 1);
    mock.timers.tick(500);
    assert.equal(FakeSocket.last.url.host, "b");
  });
});

describe("authentication", () => {
  for (const [name, credentials, details] of [
    ["nothing", undefined, []],
    ["one value", "token", ["token"]],
    ["an array", ["name", "password"], ["name", "password"]],
    ["a function's result", () => "token", ["token"]],
    ["an async function's result", async () => ["token"], ["token"]],
  ]) {
    test(`sends ${name} right after open`, async () => {
      await connect({ credentials });
      FakeSocket.last.open();
      await settle();
      assert.deepEqual(FakeSocket.last.sent, [{ action: "Client/authentication", details }]);
    });
  }

  test("asks for credentials on each connection", async () => {
    let count = 0;
    await connect({ credentials: () => ++count });
    FakeSocket.last.open().end();
    mock.timers.tick(500);
    FakeSocket.last.open();
    await settle();
    assert.deepEqual(FakeSocket.last.sent[0].details, [2]);
  });

  test("credentials that come too late are not sent to another connection", async () => {
    let give;
    const credentials = mock.fn(() => new Promise((resolve) => { give ??= resolve; }));
    await connect({ credentials });
    FakeSocket.last.open().end();
    mock.timers.tick(500);
    FakeSocket.last.open();
    give("late");
    await settle();
    assert.deepEqual(FakeSocket.all.map(({ sent }) => sent), [[], []]);
  });

  for (const [name, credentials] of [
    ["fail", () => Promise.reject(new Error("no token"))],
    ["JSON cannot express", () => 7n],
    ["are larger than a message may be", () => "x".repeat(65_536)],
  ]) {
    test(`credentials that ${name} are reported and tried again`, async () => {
      const report = mock.method(console, "error", () => {});
      await connect({ credentials });
      FakeSocket.last.open();
      await settle();
      assert.equal(report.mock.callCount(), 1);
      assert.deepEqual(FakeSocket.last.sent, []);
      assert.equal(FakeSocket.last.closedWith, 1000);
      mock.timers.tick(500);
      assert.equal(FakeSocket.all.length, 2);
    });
  }

  test("its answer can be listened to", async () => {
    const { calls, record } = recorder();
    const client = await connect();
    client.on("Client/authentication", record("in"), record("guest"));
    FakeSocket.last.open().say({ action: "Client/authentication:error", details: [403, "Forbidden"] }, OK);
    assert.deepEqual(calls, [["guest", 403, "Forbidden"], ["in", "ok"]]);
  });
});

describe("reconnecting", () => {
  const FINAL = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4999];
  const PASSING = [1001, 1005, 1006, 1011, 1012, 1013, 1015, 4000, 4001, 4002, 4399];

  for (const code of PASSING) {
    test(`follows ${code}`, async () => {
      const { calls, record } = recorder();
      (await authenticated()).on("Client/close", record("close"));
      FakeSocket.last.end(code, "why");
      mock.timers.tick(500);
      assert.equal(FakeSocket.all.length, 2);
      assert.deepEqual(calls, [["close", code, "why", true, 500]]);
    });
  }

  for (const code of FINAL) {
    test(`does not follow ${code}`, async () => {
      const { calls, record } = recorder();
      (await authenticated()).on("Client/close", record("close"));
      FakeSocket.last.end(code, "why");
      await settle();
      mock.timers.tick(60_000);
      assert.equal(FakeSocket.all.length, 1);
      assert.deepEqual(calls, [["close", code, "why", false, 0]]);
    });
  }

  test("does not follow Server/close, whatever the code", async () => {
    const { calls, record } = recorder();
    (await authenticated()).on("Server/close", record("dismissed")).on("Client/close", record("close"));
    FakeSocket.last.say({ action: "Server/close", details: [] }).end(1006);
    await settle();
    mock.timers.tick(60_000);
    assert.equal(FakeSocket.all.length, 1);
    assert.deepEqual(calls, [["dismissed"], ["close", 1006, "", false, 0]]);
  });

  test("does not follow close(), which says 1000 and is reported once", async () => {
    const { calls, record } = recorder();
    const client = await authenticated();
    client.on("Client/close", record("close")).close().close();
    assert.equal(FakeSocket.last.closedWith, 1000);
    FakeSocket.last.end(1000);
    await settle();
    mock.timers.tick(60_000);
    assert.equal(FakeSocket.all.length, 1);
    assert.deepEqual(calls, [["close", 1000, "", false, 0]]);
  });

  test("does not happen when closed while waiting, or before the first attempt", async () => {
    const client = await authenticated();
    FakeSocket.last.end();
    client.close();
    mock.timers.tick(60_000);
    assert.equal(FakeSocket.all.length, 1);
    create().close();
    await settle();
    assert.equal(FakeSocket.all.length, 1);
  });

  test("delays double up to the limit and never end", async () => {
    const delays = [];
    (await connect()).on("Client/close", (code, reason, willReconnect, delay) => delays.push(delay));
    for (let i = 0; i < 9; i++) {
      FakeSocket.last.end();
      mock.timers.tick(delays.at(-1));
    }
    assert.deepEqual(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    assert.equal(FakeSocket.all.length, 10);
  });

  test("delays are a random part of that (full jitter), and can be set", async () => {
    Math.random.mock.mockImplementation(() => 0.25);
    const delays = [];
    const client = await connect({ reconnectDelay: 100, reconnectDelayMax: 300 });
    client.on("Client/close", (code, reason, willReconnect, delay) => delays.push(delay));
    for (let i = 0; i < 3; i++) {
      FakeSocket.last.end();
      mock.timers.tick(delays.at(-1));
    }
    assert.deepEqual(delays, [25, 50, 75]);
  });

  test("delays grow only once all URLs of a list were tried", async () => {
    const delays = [];
    const client = await connect({}, ["ws://a/", "ws://b/"]);
    client.on("Client/close", (code, reason, willReconnect, delay) => delays.push(delay));
    for (let i = 0; i < 4; i++) {
      FakeSocket.last.end();
      mock.timers.tick(delays.at(-1));
    }
    assert.deepEqual(delays, [500, 500, 1_000, 1_000]);
  });

  /** Returns the delay after two failed attempts and a connection that `last` handles. */
  async function delayAfter(last) {
    let delay;
    (await connect()).on("Client/close", (code, reason, willReconnect, next) => { delay = next; });
    for (let i = 0; i < 2; i++) {
      FakeSocket.last.end();
      mock.timers.tick(delay);
    }
    last(FakeSocket.last.open());
    FakeSocket.last.end();
    return delay;
  }

  test("delays start again from the first after a connection that authenticated", async () => {
    assert.equal(await delayAfter((socket) => socket.say(OK)), 500);
  });

  test("delays start again from the first after a connection that stayed up", async () => {
    assert.equal(await delayAfter(() => mock.timers.tick(5_000)), 500);
  });

  test("delays continue to grow after a connection that only opened", async () => {
    assert.equal(await delayAfter(() => mock.timers.tick(4_999)), 2_000);
  });

  test("an attempt that takes too long is dropped, and its later events are ignored", async () => {
    const { calls, record } = recorder();
    const client = await connect();
    client.on("Client/close", record("close")).on("Client/open", record("open"));
    mock.timers.tick(9_999);
    assert.deepEqual(calls, []);
    mock.timers.tick(1);
    assert.deepEqual(calls, [["close", 1006, "No answer in time", true, 500]]);
    const [given] = FakeSocket.all;
    assert.equal(given.closedWith, 1000);
    given.open().end();
    assert.equal(calls.length, 1);
    mock.timers.tick(500);
    FakeSocket.last.open().say(OK);
    mock.timers.tick(600_000);
    assert.equal(FakeSocket.all.length, 2, "an open connection has no time limit");
  });

  test("reports events from attempt to loss", async () => {
    const { calls, record } = recorder();
    const client = create({}, "ws://host/");
    for (const event of ["Client/connecting", "Client/open", "Client/close"]) client.on(event, record(event));
    await settle();
    FakeSocket.last.open().end(1011, "why");
    mock.timers.tick(500);
    assert.deepEqual(calls, [
      ["Client/connecting", "ws://host/"],
      ["Client/open", "ws://host/"],
      ["Client/close", 1011, "why", true, 500],
      ["Client/connecting", "ws://host/"],
    ]);
  });
});

describe("in a page", () => {
  test("the browser's going online starts an attempt at once", async () => {
    const dispatch = page("http://host/");
    await connect();
    FakeSocket.last.end();
    dispatch("online");
    assert.equal(FakeSocket.all.length, 2);
    mock.timers.tick(9_000);
    dispatch("online");
    assert.equal(FakeSocket.all.length, 2, "one attempt at a time");
  });

  test("a page back from the back/forward cache reconnects, though its socket seems open", async () => {
    const dispatch = page("http://host/");
    await authenticated();
    dispatch("pageshow", { persisted: false });
    assert.equal(FakeSocket.all.length, 1);
    dispatch("pageshow", { persisted: true });
    assert.equal(FakeSocket.all.length, 2);
    FakeSocket.all[0].end();
    mock.timers.tick(9_000);
    assert.equal(FakeSocket.all.length, 2);
  });

  test("a closed client hears neither", async () => {
    const dispatch = page("http://host/");
    (await connect()).close();
    dispatch("online");
    dispatch("pageshow", { persisted: true });
    assert.equal(FakeSocket.all.length, 1);
  });
});

describe("resuming", () => {
  const position = (details, rest) => ({ action: "Server/position", details, ...rest });

  /** Returns the query of the next connection's URL. */
  function next() {
    FakeSocket.last.end();
    mock.timers.tick(30_000);
    return [...FakeSocket.last.url.searchParams].filter(([name]) => name !== "heartbeat");
  }

  test("is asked for on the first connection already, beside the query of the URL", async () => {
    await connect({}, "ws://host/WebSockets?user=ann");
    assert.deepEqual([...FakeSocket.last.url.searchParams], [["user", "ann"], ["resume", ""], ["heartbeat", "25"]]);
  });

  test("continues from the last position in a message", async () => {
    await authenticated();
    FakeSocket.last.say({ action: "a", at: "1" }, { action: "b", at: "2+/=&" }, { action: "c" });
    assert.deepEqual(next(), [["resume", "2+/=&"]]);
    FakeSocket.last.open().say(position(["now"], { at: "3" }));
    assert.deepEqual(next(), [["resume", "3"]]);
  });

  test("brings back the state until another comes", async () => {
    await authenticated();
    FakeSocket.last.say(position(["new"], { at: "1", state: "s1" }), position(["now"], { at: "2" }));
    assert.deepEqual(next(), [["resume", "2"], ["state", "s1"]]);
    FakeSocket.last.open().say(position(["recovered", 0], { at: "2", state: "s2" }));
    assert.deepEqual(next(), [["resume", "2"], ["state", "s2"]]);
  });

  for (const kind of ["new", "reset"]) {
    test(`goes on from the new position, with the state it has, when the server says ${kind}`, async () => {
      await authenticated();
      FakeSocket.last.say(position(["now"], { at: "1", state: "s1" }), position([kind], { at: "2" }));
      assert.deepEqual(next(), [["resume", "2"], ["state", "s1"]]);
    });

    test(`forgets what there is no more when the server says ${kind}`, async () => {
      await authenticated();
      FakeSocket.last.say(position(["now"], { at: "1", state: "s1" }), position([kind], { state: "" }));
      assert.deepEqual(next(), [["resume", ""]]);
    });
  }

  test("begins at the position of the page, until the server says where the client is", async () => {
    await connect({ position: "p.1" });
    assert.deepEqual([...FakeSocket.last.url.searchParams], [["resume", ""], ["heartbeat", "25"], ["state", "p.1"]]);
    // The first attempt fails.
    assert.deepEqual(next(), [["resume", ""], ["state", "p.1"]]);
    FakeSocket.last.open().say(OK, position(["new"], { at: "1", state: "s1" }));
    assert.deepEqual(next(), [["resume", "1"], ["state", "s1"]]);
    await connect({ position: "p.1", resume: false });
    assert.equal(FakeSocket.last.url.search, "");
  });

  test("is reported as client events, beside the server's own message", async () => {
    const { calls, record } = recorder();
    const client = await authenticated();
    client.on("Client/recovered", record("recovered")).on("Client/reset", record("reset"));
    const said = [["new"], ["recovered", 3], ["reset", "too old"], ["now"]];
    FakeSocket.last.say(...said.map((details) => position(details, { at: "1" })));
    assert.deepEqual(calls, [["recovered", 3], ["reset", "too old"]]);
    client.on("Server/position", record("position"));
    FakeSocket.last.say(position(["now"], { at: "1" }));
    assert.deepEqual(calls.at(-1), ["position", "now"]);
  });

  test("works with a server that ignores it", async () => {
    const { calls, record } = recorder();
    (await authenticated()).on("news", record("news"));
    assert.deepEqual(next(), [["resume", ""]]);
    FakeSocket.last.open().say(OK, { action: "news" });
    assert.deepEqual(calls, [["news"]]);
  });

  test("can be switched off", async () => {
    await authenticated({ resume: false });
    FakeSocket.last.say({ action: "a", at: "1" });
    assert.deepEqual(next(), []);
    assert.equal(FakeSocket.last.url.search, "");
  });
});

describe("a server that takes no more clients", () => {
  const refusal = (seconds) => {
    const asked = [];
    const fetch = async (url) => {
      asked.push(url);
      return { headers: new Headers(seconds === null ? {} : { "retry-after": seconds }) };
    };
    return { asked, fetch };
  };

  test("is asked when to come again, and left alone until then", async () => {
    const { asked, fetch } = refusal("20");
    await connect({ fetch }, "ws://host/live?user=ann");
    FakeSocket.last.end();
    await settle();
    assert.deepEqual(asked, ["http://host/live"]);
    mock.timers.tick(19_999);
    assert.equal(FakeSocket.all.length, 1);
    mock.timers.tick(10_001);
    assert.equal(FakeSocket.all.length, 2);
  });

  for (const seconds of [null, "soon", "0"]) {
    test(`is tried again as usual if it names no time: ${seconds}`, async () => {
      const { asked, fetch } = refusal(seconds);
      await connect({ fetch });
      FakeSocket.last.end();
      await settle();
      assert.equal(asked.length, 1);
      mock.timers.tick(500);
      assert.equal(FakeSocket.all.length, 2);
    });
  }

  test("keeps no timer of a client that is closed meanwhile, and the question ends", async () => {
    let answer, signal;
    const fetch = (url, options) => new Promise((resolve) => { [answer, { signal }] = [resolve, options]; });
    const client = await connect({ fetch });
    FakeSocket.last.end();
    await settle();
    client.close();
    assert.equal(signal.aborted, true);
    const timers = mock.method(globalThis, "setTimeout");
    answer({ headers: new Headers({ "retry-after": "300" }) });
    await settle();
    assert.equal(timers.mock.callCount(), 0);
  });

  test("is not asked after a connection that was open, or if there is another server", async () => {
    const { asked, fetch } = refusal("20");
    await authenticated({ fetch });
    FakeSocket.last.end();
    await connect({ fetch }, ["ws://a/", "ws://b/"]);
    FakeSocket.last.end();
    await settle();
    assert.deepEqual(asked, []);
  });
});
