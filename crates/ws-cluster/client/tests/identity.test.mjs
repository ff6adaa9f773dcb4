// The server's answer about the client's identity, and credentials that expire.
import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import { FakeSocket, OK, authenticated, connect, create, recorder, settle } from "./harness.mjs";

const ok = (about) => ({ action: "Client/authentication", details: ["ok", about] });
const failed = (code) => ({ action: "Client/authentication:error", details: [code, "why"] });

describe("the answer to authentication", () => {
  test("says the connection's id and the user, which stay until another answer", async () => {
    const client = create();
    const said = () => [client.connectionId, client.user];
    assert.deepEqual(said(), [null, null]);
    await settle();
    FakeSocket.last.open();
    assert.deepEqual(said(), [null, null]);
    let heard;
    client.on("Client/authentication", (...details) => { heard = [details, said()]; });
    FakeSocket.last.say(ok({ connection: "7f.1", user: "ann" }));
    assert.deepEqual(heard, [["ok", { connection: "7f.1", user: "ann" }], ["7f.1", "ann"]]);
    FakeSocket.last.end();
    assert.deepEqual(said(), ["7f.1", "ann"]);
    mock.timers.tick(500);
    FakeSocket.last.open().say(ok({ connection: "80.1" }));
    assert.deepEqual(said(), ["80.1", null]);
    FakeSocket.last.end();
    mock.timers.tick(500);
    FakeSocket.last.open().say(failed(403));
    assert.deepEqual(said(), [null, null]);
  });

  for (const about of [undefined, null, "x", 7, [], { expires_in: "soon" }, { expires_in: -1 }, { expires_in: null }]) {
    test(`of another version is taken as well: ${JSON.stringify(about)}`, async () => {
      const client = await connect({ credentials: "token" });
      FakeSocket.last.open().say(about === undefined ? OK : ok(about));
      assert.deepEqual([client.connected, client.connectionId, client.user], [true, null, null]);
      mock.timers.tick(3_600_000);
      assert.equal(FakeSocket.last.sent.length, 1);
    });
  }
});

describe("credentials that expire", () => {
  /** Returns a client with numbered credentials, which counts the calls for them. */
  async function expiring(seconds, options) {
    const { calls, record } = recorder();
    const credentials = mock.fn(() => credentials.mock.callCount() + 1);
    const client = await connect({ credentials, ...options }, "ws://host/");
    client.on("Client/close", record("close")).on("Client/authentication", null, record("failed"));
    FakeSocket.last.open();
    await settle();
    FakeSocket.last.say(ok({ connection: "7", user: "ann", expires_in: seconds }));
    const sent = () => FakeSocket.last.sent.map(({ details: [number] }) => number);
    const pass = async (milliseconds) => {
      mock.timers.tick(milliseconds);
      await settle();
    };
    return { client, calls, credentials, sent, pass };
  }

  test("are asked for again a minute before that, on the same connection", async () => {
    const { client, calls, sent, pass } = await expiring(3_600);
    await pass(3_539_999);
    assert.deepEqual(sent(), [1]);
    await pass(1);
    assert.deepEqual(sent(), [1, 2]);
    FakeSocket.last.say(ok({ connection: "7", user: "ann", expires_in: 600 }));
    await pass(540_000);
    assert.deepEqual(sent(), [1, 2, 3]);
    assert.equal(client.connected, true);
    assert.deepEqual([FakeSocket.all.length, calls], [1, []]);
  });

  test("for a short time are asked for again in the last quarter", async () => {
    const { sent, pass } = await expiring(20);
    await pass(14_999);
    assert.deepEqual(sent(), [1]);
    await pass(1);
    assert.deepEqual(sent(), [1, 2]);
  });

  test("are not asked for by all clients at the same time", async () => {
    Math.random.mock.mockImplementation(() => 0);
    const { sent, pass } = await expiring(3_600);
    await pass(3_480_000);
    assert.deepEqual(sent(), [1, 2]);
  });

  for (const random of [0, 1]) {
    test(`for a few seconds are asked for in time: ${random}`, async () => {
      Math.random.mock.mockImplementation(() => random);
      for (const seconds of [2, 3, 7, 12]) {
        const { sent, pass } = await expiring(seconds);
        await pass(seconds * 1_000 - 500);
        assert.deepEqual(sent(), [1, 2], `${seconds} s`);
      }
    });
  }

  test("that are almost over are left to the next connection", async () => {
    const { sent, pass } = await expiring(1);
    await pass(1_000);
    assert.deepEqual(sent(), [1]);
  });

  test("for longer than a timer can run are asked for in time", async () => {
    const { sent, pass } = await expiring(30 * 86_400);
    await pass(2 ** 31 - 1);
    assert.deepEqual(sent(), [1]);
    await pass(30 * 86_400_000 - 60_000 - (2 ** 31 - 1));
    assert.deepEqual(sent(), [1, 2]);
    const { sent: never, pass: wait } = await expiring(1e300);
    await wait(2 ** 31 - 1);
    assert.deepEqual(never(), [1]);
  });

  test("that stay the same are sent again, since the site may have extended them", async () => {
    const { sent, pass } = await expiring(240, { credentials: "token" });
    await pass(180_000);
    assert.deepEqual(sent(), ["token", "token"]);
  });

  test("without credentials the server checks by itself", async () => {
    await authenticated();
    FakeSocket.last.say(ok({ connection: "7", user: "ann", expires_in: 60 }));
    mock.timers.tick(60_000);
    assert.equal(FakeSocket.last.sent.length, 1);
  });

  for (const [name, fail] of [
    ["nobody gives them", () => Promise.reject(new Error("none"))],
    ["they cannot be sent", () => 7n],
  ]) {
    test(`are asked for once more where ${name}`, async () => {
      const report = mock.method(console, "error", () => {});
      const { calls, credentials, sent, pass } = await expiring(120);
      credentials.mock.mockImplementationOnce(fail);
      await pass(90_000);
      assert.equal(report.mock.callCount(), 1);
      assert.deepEqual(sent(), [1]);
      await pass(22_500);
      assert.deepEqual(sent(), [1, 3]);
      assert.deepEqual(calls, []);
    });
  }

  for (const code of [429, 503]) {
    test(`are asked for once more where the server cannot look at them now: ${code}`, async () => {
      const { client, calls, sent, pass } = await expiring(120);
      await pass(90_000);
      FakeSocket.last.say(failed(code));
      assert.deepEqual([client.user, client.connected], ["ann", true]);
      await pass(22_500);
      assert.deepEqual(sent(), [1, 2, 3]);
      assert.deepEqual(calls, [["failed", code, "why"]]);
    });
  }

  test("that the server refuses change nothing, until it closes the connection", async () => {
    const { client, sent, pass } = await expiring(120);
    await pass(90_000);
    FakeSocket.last.say(failed(403));
    assert.deepEqual([client.connectionId, client.user, client.connected], ["7", "ann", true]);
    await pass(29_000);
    assert.deepEqual(sent(), [1, 2]);
    FakeSocket.last.end(4001, "expired");
    await pass(500);
    FakeSocket.last.open();
    await settle();
    assert.deepEqual(sent(), [3]);
  });

  test("of a connection that is gone are not asked for, and are not sent to another", async () => {
    const { client, credentials, pass } = await expiring(120);
    FakeSocket.last.end();
    client.close();
    await pass(120_000);
    assert.equal(credentials.mock.callCount(), 1);

    let give;
    const other = await expiring(120);
    other.credentials.mock.mockImplementationOnce(() => new Promise((resolve) => { give = resolve; }));
    await other.pass(90_000);
    FakeSocket.last.end();
    await other.pass(500);
    FakeSocket.last.open();
    await settle();
    give("late");
    await settle();
    assert.deepEqual(other.sent(), [3]);
  });
});
