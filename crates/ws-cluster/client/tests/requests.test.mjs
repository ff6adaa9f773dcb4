import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import { FakeSocket, OK, authenticated, connect, recorder, settle } from "./harness.mjs";

/** Notes how a promise ends: `["resolved", value]` or `["rejected", code, text]`. */
function outcome(promise) {
  const noted = [];
  promise.then(
    (value) => noted.push("resolved", value),
    (error) => noted.push("rejected", error.code, error.text),
  );
  return noted;
}

/** The messages that were sent after the authentication. */
const sent = () => FakeSocket.last.sent.slice(1);

describe("requests", () => {
  test("a request resolves with the details of its answer, whatever comes meanwhile", async () => {
    const client = await authenticated();
    const [first, second, empty] = ["a", "a", "b"].map((action) => outcome(client.request(action, [1])));
    assert.deepEqual(sent(), [
      { action: "a", details: [1], id: 1 },
      { action: "a", details: [1], id: 2 },
      { action: "b", details: [1], id: 3 },
    ]);
    FakeSocket.last.say({ action: "a", details: ["news"] }, { action: "a", details: [2], id: 2 });
    FakeSocket.last.say({ action: "b", details: [], id: 3 });
    await settle();
    assert.deepEqual([first, second, empty], [[], ["resolved", [2]], ["resolved", []]]);
    FakeSocket.last.say({ action: "a", details: [1, { a: 2 }], id: 1 });
    await settle();
    assert.deepEqual(first, ["resolved", [1, { a: 2 }]]);
  });

  test("an error of the action rejects with code and text", async () => {
    const client = await authenticated();
    const failed = client.request("a");
    FakeSocket.last.say({ action: "a:error", details: [404, "Not Found"], id: 1 });
    await assert.rejects(failed, (error) => {
      assert.ok(error instanceof Error);
      const { name, code, text, message } = error;
      assert.deepEqual([name, code, text, message], ["RequestError", 404, "Not Found", "a: 404 Not Found"]);
      return true;
    });
    const bare = outcome(client.request("a"));
    FakeSocket.last.say({ action: "a:error", id: 2 });
    await settle();
    assert.deepEqual(bare, ["rejected", 500, ""]);
  });

  test("the answer goes to the promise alone, and further messages go to the callbacks", async () => {
    const { calls, record } = recorder();
    const client = (await authenticated()).on("a", record("a"), record("failed"));
    const answered = client.request("a");
    FakeSocket.last.say({ action: "a", details: [1], id: 1 }, { action: "a", details: [2] });
    FakeSocket.last.say({ action: "a", details: [3], id: 1 }, { action: "a:error", details: [500, ""], id: 9 });
    assert.deepEqual(await answered, [1]);
    assert.deepEqual(calls, [["a", 2]]);
  });

  test("requests wait for the connection in one order with messages", async () => {
    const client = await connect({ queueSize: 3 });
    client.send("first");
    const waits = outcome(client.request("second"));
    client.send("third");
    const refused = outcome(client.request("fourth"));
    await settle();
    assert.deepEqual(refused, ["rejected", 503, "Queue is full"]);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(sent(), [
      { action: "first", details: [] },
      { action: "second", details: [], id: 1 },
      { action: "third", details: [] },
    ]);
    FakeSocket.last.say({ action: "second", details: [2], id: 1 });
    await settle();
    assert.deepEqual(waits, ["resolved", [2]]);
  });

  test("a lost connection rejects with 499, and what was not sent goes to the next one", async () => {
    const client = await authenticated();
    const lost = outcome(client.request("a"));
    FakeSocket.last.readyState = 2;
    const waits = outcome(client.request("b"));
    FakeSocket.last.end();
    await settle();
    assert.deepEqual(lost, ["rejected", 499, "The connection was lost, the outcome is unknown"]);
    mock.timers.tick(500);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(sent(), [{ action: "b", details: [], id: 2 }]);
    // An answer to the lost one would be another connection's.
    FakeSocket.last.say({ action: "a", details: [], id: 1 }, { action: "b", details: [7], id: 2 });
    await settle();
    assert.deepEqual([lost.length, waits], [3, ["resolved", [7]]]);
  });

  test("a client that closes rejects with 499 what was sent, and with 503 what was not", async () => {
    const client = await authenticated();
    const lost = outcome(client.request("a"));
    FakeSocket.last.readyState = 2;
    const waits = outcome(client.request("b"));
    client.close();
    const late = outcome(client.request("c"));
    await settle();
    assert.deepEqual(lost.slice(0, 2), ["rejected", 499]);
    assert.deepEqual([waits, late], [["rejected", 503, "Closed"], ["rejected", 503, "Closed"]]);
  });

  for (const code of [1000, 4400, 4401]) {
    test(`a close of the server for good rejects everything: ${code}`, async () => {
      const client = await authenticated();
      const lost = outcome(client.request("a"));
      FakeSocket.last.end(code);
      await settle();
      assert.deepEqual(lost.slice(0, 2), ["rejected", 499]);
      assert.equal(outcome(client.request("b")).length, 0);
    });
  }

  test("the time for an answer includes the wait for a connection", async () => {
    const client = await connect();
    const unsent = outcome(client.request("a", null, { timeout: 5_000 }));
    const usual = outcome(client.request("b"));
    mock.timers.tick(5_000);
    await settle();
    assert.deepEqual(unsent, ["rejected", 503, "Not connected in time"]);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(sent(), [{ action: "b", details: [], id: 2 }]);
    mock.timers.tick(24_999);
    await settle();
    assert.deepEqual(usual, []);
    mock.timers.tick(1);
    await settle();
    assert.deepEqual(usual, ["rejected", 504, "No answer in time, the outcome is unknown"]);
    // The answer that is too late is ignored.
    FakeSocket.last.say({ action: "b", details: [7], id: 2 });
    await settle();
    assert.equal(usual.length, 3);
  });

  for (const timeout of [0, Infinity, 2 ** 40]) {
    test(`a request without a limit waits on: ${timeout}`, async () => {
      const client = await authenticated({ heartbeat: 0 });
      const waits = outcome(client.request("a", [], { timeout }));
      mock.timers.tick(3_600_000);
      FakeSocket.last.say({ action: "a", details: [1], id: 1 });
      await settle();
      assert.deepEqual(waits, ["resolved", [1]]);
    });
  }

  test("a signal ends a request with its reason", async () => {
    const reason = new Error("mine");
    const client = await connect();
    const early = new AbortController();
    early.abort(reason);
    await assert.rejects(client.request("never", [], { signal: early.signal }), reason);
    const waits = new AbortController();
    const waiting = client.request("waits", [], { signal: waits.signal });
    waits.abort(reason);
    FakeSocket.last.open().say(OK);
    await assert.rejects(waiting, reason);
    assert.deepEqual(sent(), []);
    const underWay = new AbortController();
    const { signal } = underWay;
    const aborted = client.request("sent", [], { signal });
    assert.equal(sent().length, 1);
    underWay.abort();
    await assert.rejects(aborted, { name: "AbortError" });
    FakeSocket.last.say({ action: "sent", details: [], id: sent()[0].id });
    // A signal that comes too late changes nothing.
    const controller = new AbortController();
    const answered = client.request("answered", [], { signal: controller.signal });
    FakeSocket.last.say({ action: "answered", details: [1], id: sent()[1].id });
    controller.abort();
    assert.deepEqual(await answered, [1]);
  });

  test("an application that authenticates by a request becomes who the answer says", async () => {
    const { calls, record } = recorder();
    const client = (await authenticated()).on("Client/authentication", record("known"));
    const asked = client.request("Client/authentication", ["token"]);
    FakeSocket.last.say({ ...OK, details: ["ok", { connection: "c", user: "ann" }], id: 1 });
    assert.deepEqual(await asked, ["ok", { connection: "c", user: "ann" }]);
    assert.deepEqual([client.connectionId, client.user, calls], ["c", "ann", []]);
  });

  test("what cannot be sent rejects, and the client lives on", async () => {
    const client = await authenticated();
    await assert.rejects(client.request(""), /^TypeError: An action /);
    await assert.rejects(client.request("a", [2n]), /^TypeError: The details of a cannot be sent as JSON/);
    const large = outcome(client.request("a", "x".repeat(65_536)));
    await settle();
    assert.deepEqual(large, ["rejected", 413, "Larger than 65536 bytes"]);
    assert.deepEqual(sent(), []);
    client.request("b").catch(() => {});
    assert.equal(sent()[0].action, "b");
  });
});
