// Silence of the server: when it ends a connection, and when it does not.
import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import { FakeSocket, OK, authenticated, connect, page, recorder, settle } from "./harness.mjs";

const SILENT = "Nothing was heard from the server";

/** Returns the server's first message to a client that resumes, with the heartbeat that it grants. */
const promise = (heartbeat = 25) => ({ action: "Server/position", details: ["new"], at: "1", heartbeat });
const BEAT = { action: "Server/position", details: ["now"], at: "1" };

/** Returns an authenticated client whose server has granted heartbeats, and the client's events. */
async function alive(options, url) {
  const { calls, record } = recorder();
  const client = await authenticated(options, url);
  client.on("Client/close", record("close"));
  FakeSocket.last.say(promise(options?.heartbeat / 1_000 || 25));
  return { client, calls, socket: FakeSocket.last };
}

/** Lets time pass, with each timer in time. A tick moves the clock before it runs the due timers. */
function pass(milliseconds) {
  for (let i = 0; i < milliseconds; i++) mock.timers.tick(1);
}

/** Lets the page sleep: the clock moves on, and no timer runs. */
function sleep(milliseconds) {
  const { now } = Date;
  mock.method(Date, "now", () => now() + milliseconds);
}

describe("a heartbeat", () => {
  for (const [option, seconds] of [
    [undefined, "25"], [25_000, "25"], [10_400, "10"], [1, "5"], [5_000, "5"], [1e9, "300"], [Infinity, "300"],
    [0, null], [false, null], [-1, null], [NaN, null], [null, null],
  ]) {
    test(`is asked for in whole seconds, as a server grants them: ${option} is ${seconds}`, async () => {
      await connect({ heartbeat: option });
      assert.equal(FakeSocket.last.url.searchParams.get("heartbeat"), seconds);
    });
  }

  test("is not asked for without resuming, since its messages tell positions", async () => {
    await connect({ resume: false });
    assert.equal(FakeSocket.last.url.searchParams.get("heartbeat"), null);
  });

  test("keeps the connection, and so does any other message", async () => {
    const { calls, socket } = await alive();
    for (let i = 0; i < 10; i++) {
      pass(49_999);
      socket.say(i % 2 ? BEAT : { action: "news" });
    }
    assert.deepEqual(calls, []);
    assert.equal(FakeSocket.all.length, 1);
  });

  test("that fails twice ends the connection, without waiting for its close event", async () => {
    const { calls, socket } = await alive({}, ["ws://a/", "ws://b/"]);
    pass(20_000);
    socket.say(BEAT);
    pass(49_999);
    assert.deepEqual(calls, []);
    pass(1);
    assert.deepEqual(calls, [["close", 1006, SILENT, true, 500]]);
    assert.equal(socket.closedWith, 1000);
    pass(500);
    assert.equal(FakeSocket.last.url.host, "b");
    assert.equal(FakeSocket.last.url.searchParams.get("resume"), "1");
    socket.say({ action: "news", at: "9" });
    socket.end();
    assert.equal(FakeSocket.all.length, 2, "what becomes of the old one is ignored");
  });

  test("comes as often as the server has granted, not as the client has asked", async () => {
    const { calls } = await alive();
    FakeSocket.last.say(promise(100));
    pass(199_999);
    assert.deepEqual(calls, []);
    pass(1);
    assert.equal(calls.length, 1);
  });

  for (const [said, seconds] of [[0.001, 5], [1e12, 300], ["40", 40]]) {
    test(`of ${said} s is taken for one of ${seconds} s`, async () => {
      const { calls, socket } = await alive();
      socket.say(promise(said));
      pass(2_000 * seconds - 1);
      assert.deepEqual(calls, []);
      pass(1);
      assert.equal(calls.length, 1);
    });
  }

  for (const said of [null, 0, -1, "x", {}, []]) {
    test(`of ${JSON.stringify(said)} is none`, async () => {
      await authenticated();
      FakeSocket.last.say(promise(said));
      pass(600_000);
      assert.equal(FakeSocket.all.length, 1);
    });
  }

  test("is not expected from a server that has not granted it, however long it is silent", async () => {
    const { calls, record } = recorder();
    (await authenticated()).on("Client/close", record("close"));
    FakeSocket.last.say({ action: "Server/position", details: ["new"], at: "1" }, BEAT);
    pass(600_000);
    // A heartbeat granted on another connection does not count either.
    FakeSocket.last.say(promise()).end();
    pass(500);
    FakeSocket.last.open().say(OK, { action: "Server/position", details: ["recovered", 0] });
    pass(600_000);
    assert.equal(calls.length, 1);
    assert.equal(FakeSocket.all.length, 2);
  });

  test("can be switched off", async () => {
    const { calls, socket } = await alive({ heartbeat: 0 });
    pass(600_000);
    assert.deepEqual(calls, []);
    assert.equal(socket.closedWith, undefined);
  });

  test("a server that hangs before it answers authentication is dropped, whatever it granted", async () => {
    const { calls, record } = recorder();
    const client = await connect({ heartbeat: 10_000 }, ["ws://a/", "ws://b/"]);
    client.on("Client/close", record("close"));
    FakeSocket.last.open();
    pass(20_000);
    assert.deepEqual(calls, [["close", 1006, SILENT, true, 500]]);
    pass(500);
    assert.equal(FakeSocket.last.url.host, "b");
  });

  test("time for credentials is not the server's silence", async () => {
    let give;
    await connect({ credentials: () => new Promise((resolve) => { give = resolve; }) });
    FakeSocket.last.open();
    pass(600_000);
    give("token");
    await settle();
    pass(49_999);
    FakeSocket.last.say(OK);
    pass(600_000);
    assert.equal(FakeSocket.all.length, 1);
  });

  test("a heartbeat granted before the answer to authentication counts", async () => {
    const { calls, record } = recorder();
    (await connect()).on("Client/close", record("close"));
    FakeSocket.last.open().say(promise(), { action: "Client/authentication:error", details: [403, "Forbidden"] });
    pass(50_000);
    assert.equal(calls.length, 1);
  });

  test("a closed client waits for none", async () => {
    const { client, calls } = await alive();
    client.close();
    pass(600_000);
    assert.deepEqual(calls, []);
    assert.equal(FakeSocket.all.length, 1);
  });
});

describe("a page that slept", () => {
  test("handles first what came meanwhile, and keeps a working connection", async () => {
    const { calls, socket } = await alive();
    sleep(600_000);
    pass(49_999);
    assert.deepEqual(calls, []);
    socket.say(BEAT);
    pass(49_999);
    assert.deepEqual(calls, []);
    pass(1);
    assert.equal(calls.length, 1);
  });

  test("that woke just before the time is over, or sleeps again, does so too", async () => {
    const { calls, socket } = await alive();
    pass(10_000);
    sleep(39_999);
    pass(2_999);
    socket.say(BEAT);
    pass(46_000);
    sleep(60_000);
    pass(3_000);
    sleep(60_000);
    pass(2_999);
    socket.say(BEAT);
    pass(49_999);
    assert.deepEqual(calls, []);
  });

  test("drops a connection on which nothing came meanwhile, though its timers stay late", async () => {
    const { calls } = await alive();
    for (let minute = 0; minute < 3; minute++) {
      sleep(60_000);
      pass(minute ? 3_000 : 47_000);
      assert.deepEqual(calls, []);
    }
    sleep(60_000);
    pass(3_000);
    assert.deepEqual(calls, [["close", 1006, SILENT, true, 500]]);
  });

  test("a clock that is set back ends nothing, nor does it keep a dead connection for long", async () => {
    const { calls, socket } = await alive();
    pass(10_000);
    sleep(-600_000);
    socket.say(BEAT);
    pass(45_000);
    assert.deepEqual(calls, []);
    pass(5_000);
    assert.equal(calls.length, 1);
  });
});

describe("a page that is looked at again", () => {
  /** Brings the page to the front. */
  function show() {
    globalThis.document.visibilityState = "visible";
    globalThis.document.dispatchEvent(new Event("visibilitychange"));
  }

  test("reconnects soon if a heartbeat is due for long", async () => {
    page("http://host/");
    const { calls } = await alive();
    pass(25_001);
    globalThis.document.visibilityState = "hidden";
    globalThis.document.dispatchEvent(new Event("visibilitychange"));
    pass(3_000);
    assert.deepEqual(calls, [], "hidden, it waits");
    show();
    pass(2_999);
    assert.deepEqual(calls, []);
    pass(1);
    assert.equal(calls[0][2], SILENT);
  });

  test("keeps a connection that was heard lately, or is heard soon", async () => {
    page("http://host/");
    const { calls, socket } = await alive();
    pass(24_000);
    show();
    pass(3_000);
    show();
    pass(2_000);
    socket.say(BEAT);
    pass(49_000);
    assert.deepEqual(calls, []);
  });

  test("connects soon if it has no connection, however long it would have waited", async () => {
    page("http://host/");
    Math.random.mock.mockImplementation(() => 0.5);
    await connect();
    for (let lost = 1; lost <= 8; lost++) {
      FakeSocket.last.end();
      if (lost < 8) mock.timers.tick(30_000);
    }
    assert.equal(FakeSocket.all.length, 8);
    show();
    pass(499);
    show();
    assert.equal(FakeSocket.all.length, 8);
    pass(1);
    assert.equal(FakeSocket.all.length, 9);
    // An attempt that is under way goes on.
    show();
    pass(9_999);
    assert.equal(FakeSocket.all.length, 9);
  });

  test("keeps a wait that the server asks for after the page came to the front", async () => {
    page("http://host/");
    Math.random.mock.mockImplementation(() => 0.5);
    let answer;
    await connect({ fetch: () => new Promise((resolve) => { answer = resolve; }) });
    for (let lost = 1; lost <= 8; lost++) {
      FakeSocket.last.end();
      if (lost < 8) mock.timers.tick(30_000);
    }
    show();
    answer({ headers: new Headers({ "retry-after": "20" }) });
    await settle();
    pass(20_000);
    assert.equal(FakeSocket.all.length, 8);
    pass(5_000);
    assert.equal(FakeSocket.all.length, 9);
  });

  test("keeps a shorter wait, and one that the server asked for", async () => {
    page("http://host/");
    Math.random.mock.mockImplementation(() => 0.5);
    const fetch = async () => ({ headers: new Headers({ "retry-after": "20" }) });
    await connect({ fetch });
    FakeSocket.last.end();
    show();
    pass(250);
    assert.equal(FakeSocket.all.length, 2);
    FakeSocket.last.end();
    await settle();
    show();
    pass(24_999);
    assert.equal(FakeSocket.all.length, 2);
    pass(1);
    assert.equal(FakeSocket.all.length, 3);
  });

  test("keeps a connection whose server granted no heartbeat", async () => {
    page("http://host/");
    await authenticated();
    pass(100_000);
    show();
    pass(100_000);
    assert.equal(FakeSocket.all.length, 1);
  });
});

describe("the browser's network", () => {
  test("that is back replaces the connection at once, though its socket seems open", async () => {
    const dispatch = page("http://host/");
    const { calls, socket } = await alive();
    dispatch("offline");
    dispatch("offline");
    pass(1_000);
    assert.equal(FakeSocket.all.length, 1);
    dispatch("online");
    assert.equal(FakeSocket.all.length, 2);
    assert.equal(socket.closedWith, 1000);
    assert.equal(calls[0][2], "The network was away");
    pass(9_000);
    dispatch("online");
    assert.equal(FakeSocket.all.length, 2, "once");
  });

  test("that is back replaces an attempt that began before it went", async () => {
    const dispatch = page("http://host/");
    await connect();
    pass(1);
    dispatch("offline");
    dispatch("online");
    assert.equal(FakeSocket.all.length, 2);
  });

  test("that only seemed away, since messages came, changes nothing", async () => {
    const dispatch = page("http://host/");
    const { socket } = await alive();
    pass(10);
    dispatch("offline");
    pass(10);
    socket.say({ action: "news" });
    dispatch("online");
    pass(40_000);
    assert.equal(FakeSocket.all.length, 1);
  });

  test("that changed makes the client check the connection", async () => {
    const dispatch = page("http://host/");
    const { calls } = await alive();
    pass(26_000);
    dispatch("online");
    pass(3_000);
    assert.equal(calls[0][2], SILENT);
  });
});
