import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import { FakeSocket, OK, authenticated, connect, recorder, settle } from "./harness.mjs";

describe("messages", () => {
  test("details are the callback's arguments", async () => {
    const { calls, record } = recorder();
    (await authenticated()).on("news", record("news"));
    FakeSocket.last.say({ action: "news", details: [1, { a: 2 }] });
    FakeSocket.last.say({ action: "news" }, { action: "news", details: "x" });
    assert.deepEqual(calls, [["news", 1, { a: 2 }], ["news"], ["news", "x"]]);
  });

  test("ACTION:error calls the error callbacks of ACTION with code and text, and no others", async () => {
    const { calls, record } = recorder();
    (await authenticated())
      .on("a", record("a"), record("a failed"))
      .on("a", null, record("a failed, too"))
      .on("a", record("no error callback"))
      .on("b", record("b"), record("b failed"));
    FakeSocket.last.say({ action: "a:error", details: [404, "Not Found"] });
    assert.deepEqual(calls, [["a failed", 404, "Not Found"], ["a failed, too", 404, "Not Found"]]);
  });

  test("what is sent has an array of details, as it was when it was sent", async () => {
    const client = await connect();
    const details = [1];
    client.send("array", details).send("none").send("null", null).send("one", { a: 1 }).send("nested", [[1], [2]]);
    client.send("hole", [1, , 3]).send("deeper", [[[1]], []]);
    client.send("function", () => {}).send("members", { a: undefined });
    client.send("undefined", [undefined, Symbol("s"), NaN]).send("false", false).send("date", new Date(0));
    details.push(2);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(FakeSocket.last.sent.slice(1), [
      { action: "array", details: [1] },
      { action: "none", details: [] },
      { action: "null", details: [] },
      { action: "one", details: [{ a: 1 }] },
      { action: "nested", details: [[1], [2]] },
      { action: "hole", details: [1, null, 3] },
      { action: "deeper", details: [[[1]], []] },
      { action: "function", details: [null] },
      { action: "members", details: [{}] },
      { action: "undefined", details: [null, null, null] },
      { action: "false", details: [false] },
      { action: "date", details: ["1970-01-01T00:00:00.000Z"] },
    ]);
  });

  for (const action of [undefined, 7, null, "", "x".repeat(256), "ü".repeat(128)]) {
    test(`an action that no server takes is refused at once: ${String(action).slice(0, 9)}`, async () => {
      const client = await authenticated();
      assert.throws(() => client.send(action), /^TypeError: An action /);
      client.send("ü".repeat(127) + "x");
      assert.equal(FakeSocket.last.sent.length, 2);
    });
  }

  const circular = {};
  circular.self = circular;
  let deep = [];
  for (let i = 0; i < 1e5; i++) deep = [deep];
  for (const [name, details] of [
    ["circles", circular],
    ["a BigInt", [1, { two: 2n }]],
    ["more levels than the stack has room for", deep],
    ["a toJSON that throws", { toJSON() { throw new Error("mine"); } }],
  ]) {
    test(`details with ${name} are refused at once, and the client lives on`, async () => {
      const client = await authenticated();
      assert.throws(() => client.send("a", details), (error) => {
        assert.match(String(error), /^TypeError: The details of a cannot be sent as JSON: ./);
        return error.cause !== undefined;
      });
      client.send("b");
      assert.deepEqual(FakeSocket.last.sent.slice(1), [{ action: "b", details: [] }]);
    });
  }

  test("half of a character becomes U+FFFD, wherever it stands", async () => {
    const half = "🎉".slice(0, 1);
    const other = "🎉".slice(1);
    const client = await authenticated();
    client.send("one", half).send("other", [`a${other}b`]);
    client.send(`x${half}`, { [half]: [{ [`a${other}`]: half + half }] });
    client.send("whole", ["🎉", `🎉${half}`, other + half, "\\ud83c", `\\${half}`, `\\\\${half}\n"`, "\ufffd\u2028"]);
    assert.deepEqual(FakeSocket.last.sent.slice(1), [
      { action: "one", details: ["\ufffd"] },
      { action: "other", details: ["a\ufffdb"] },
      { action: "x\ufffd", details: [{ "\ufffd": [{ "a\ufffd": "\ufffd\ufffd" }] }] },
      {
        action: "whole",
        details: ["🎉", "🎉\ufffd", "\ufffd\ufffd", "\\ud83c", "\\\ufffd", '\\\\\ufffd\n"', "\ufffd\u2028"],
      },
    ]);
  });

  test("both halves of a character that come as escapes stay together", async () => {
    const raw = { toJSON: () => "raw" };
    const { stringify } = JSON;
    // As JSON.rawJSON writes it, which this Node may not have.
    mock.method(JSON, "stringify", (...args) => stringify(...args).replace('"raw"', '"\\uD83C\\uDF89\\uD83C"'));
    (await authenticated()).send("a", raw);
    assert.deepEqual(FakeSocket.last.sent[1], { action: "a", details: ["🎉\ufffd"] });
  });

  for (const [name, fill, bytes] of [["ASCII", "x", 1], ["Cyrillic", "я", 2], ["Chinese", "中", 3], ["emoji", "🎉", 4]]) {
    test(`a message larger than 64 KiB in UTF-8 gets 413 and the client lives on: ${name}`, async () => {
      const { calls, record } = recorder();
      const client = await authenticated();
      client.on("a", record("a"), record("refused"));
      const room = 65_536 - JSON.stringify({ action: "a", details: [""] }).length;
      const fits = fill.repeat(Math.floor(room / bytes)) + "x".repeat(room % bytes);
      client.send("a", fits);
      client.send("a", `${fits}x`).send("b");
      assert.deepEqual(calls, []);
      await settle();
      assert.deepEqual(calls, [["refused", 413, "Larger than 65536 bytes"]]);
      assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["a", "b"]);
    });
  }

  test("another size may be set, for a server that takes other messages, and goes for those that wait", async () => {
    const { calls, record } = recorder();
    const client = await connect({ messageSize: 100 });
    client.on("a", null, record("refused")).send("a", "x".repeat(100)).send("a", "y".repeat(50));
    FakeSocket.last.open().say(OK);
    await settle();
    assert.deepEqual(calls, [["refused", 413, "Larger than 100 bytes"]]);
    assert.equal(FakeSocket.last.sent[1].details[0][0], "y");
  });

  test("frames that are no messages are reported or skipped", async () => {
    const report = mock.method(console, "error", () => {});
    const { calls, record } = recorder();
    (await authenticated()).on("news", record("news"));
    FakeSocket.last.say("not JSON", "null", "7", '["news", []]', '{"action": 7}', '{"action": "news"}');
    assert.equal(report.mock.callCount(), 1);
    assert.deepEqual(calls, [["news"]]);
  });

  test("a throwing callback does not stop the others and is reported", async () => {
    const report = mock.method(console, "error", () => {});
    const { calls, record } = recorder();
    const error = new Error("mine");
    (await authenticated()).on("news", () => { throw error; }).on("news", record("second"));
    FakeSocket.last.say({ action: "news" });
    globalThis.reportError = record("reportError");
    FakeSocket.last.say({ action: "news" });
    assert.deepEqual(calls, [["second"], ["reportError", error], ["second"]]);
    assert.deepEqual(report.mock.calls.map((call) => call.arguments), [[error]]);
  });
});

describe("registrations", () => {
  /** Makes four registrations of one action, and returns those that are left after `remove`. */
  async function left(remove) {
    const { calls, record } = recorder();
    const [a, b, failed, other] = ["a", "b", "failed", "other"].map(record);
    const client = await authenticated();
    client.on("x", a, failed).on("x", a, other).on("x", b, failed).on("x", null, failed);
    remove(client, { a, b, failed, other });
    FakeSocket.last.say({ action: "x" }, { action: "x:error" });
    return calls.flat();
  }

  test("off without callbacks removes all of the action", async () => {
    assert.deepEqual(await left((client) => client.off("x")), []);
  });

  test("off with a callback removes it with whatever error callback it came", async () => {
    assert.deepEqual(await left((client, { a }) => client.off("x", a)), ["b", "failed", "failed"]);
  });

  test("off with an error callback removes it with whatever callback it came", async () => {
    assert.deepEqual(await left((client, { failed }) => client.off("x", null, failed)), ["a", "other"]);
  });

  test("off with both removes exactly that pair", async () => {
    assert.deepEqual(await left((client, { a, failed }) => client.off("x", a, failed)), [
      "a", "b", "other", "failed", "failed",
    ]);
  });

  test("off without a match does nothing", async () => {
    const all = ["a", "a", "b", "failed", "other", "failed", "failed"];
    assert.deepEqual(await left((client, { b, other }) => client.off("x", b, other).off("y").off("y", b)), all);
  });

  test("registered twice is called twice", async () => {
    const { calls, record } = recorder();
    const callback = record("x");
    (await authenticated()).on("x", callback).on("x", callback);
    FakeSocket.last.say({ action: "x" });
    assert.equal(calls.length, 2);
  });

  for (const first of ["x", "x:error"]) {
    test(`once removes both callbacks when ${first} fires`, async () => {
      const { calls, record } = recorder();
      (await authenticated()).once("x", record("x"), record("x:error"));
      FakeSocket.last.say({ action: first }, { action: "x" }, { action: "x:error" });
      assert.deepEqual(calls, [[first]]);
    });
  }

  test("once is removed before it is called, so that it may register itself again", async () => {
    const { calls, record } = recorder();
    const client = await authenticated();
    const again = () => {
      record("x")();
      if (calls.length < 2) client.once("x", again);
    };
    client.once("x", again);
    FakeSocket.last.say({ action: "x" });
    assert.equal(calls.length, 1);
    FakeSocket.last.say({ action: "x" }, { action: "x" });
    assert.equal(calls.length, 2);
  });

  test("what a callback removes is not called by the same message", async () => {
    const { calls, record } = recorder();
    const second = record("second");
    const client = await authenticated();
    client.on("x", () => client.off("x", second)).on("x", second);
    FakeSocket.last.say({ action: "x" });
    assert.deepEqual(calls, []);
  });

  test("everything can be chained", async () => {
    const client = await connect();
    assert.equal(client.on("x").once("x").off("x").send("x").close(), client);
  });
});

describe("the queue", () => {
  const NOT_OK = { action: "Client/authentication:error", details: [403, "Forbidden"] };
  for (const [who, answer] of [["user", OK], ["guest", NOT_OK]]) {
    test(`goes out in order after a ${who}'s authentication is answered`, async () => {
      const client = await connect();
      client.send("a").on("Client/open", () => client.send("b"));
      FakeSocket.last.open();
      client.send("c");
      assert.equal(client.connected, false);
      assert.equal(FakeSocket.last.sent.length, 1);
      const late = () => client.send("e");
      client.on("Client/authentication", late, late);
      client.send("d");
      FakeSocket.last.say(answer);
      assert.equal(client.connected, true);
      assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["a", "b", "c", "d", "e"]);
    });
  }

  for (const [code, close] of [[503, 4002], [500, 1011]]) {
    test(`waits for the next connection if the server closes this one after an error: ${code}`, async () => {
      const client = await connect();
      client.send("a").on("Client/authentication", null, () => client.send("b"));
      FakeSocket.last.open().say({ action: "Client/authentication:error", details: [code, "why"], close });
      assert.equal(client.connected, false);
      client.send("c");
      assert.equal(FakeSocket.last.sent.length, 1);
      FakeSocket.last.end(close);
      mock.timers.tick(500);
      FakeSocket.last.open().say(OK);
      assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["a", "b", "c"]);
    });
  }

  test("is refused with 503 if the server closes for good after an error", async () => {
    const { calls, record } = recorder();
    const client = await connect();
    client.send("a").on("a", null, record("a"));
    const answer = client.request("b").catch((error) => error.code);
    FakeSocket.last.open().say({ ...NOT_OK, close: 4401 }).end(4401);
    await settle();
    assert.deepEqual(calls, [["a", 503, "Closed"]]);
    assert.equal(await answer, 503);
  });

  test("keeps what is sent after an error with which the server closes an authenticated connection", async () => {
    const client = await authenticated();
    FakeSocket.last.say({ ...NOT_OK, close: 1011 });
    client.send("a");
    assert.equal(FakeSocket.last.sent.length, 1);
    FakeSocket.last.end(1011);
    mock.timers.tick(500);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["a"]);
  });

  test("is bounded: what comes when it is full is refused with 503, after send has returned", async () => {
    const { calls, record } = recorder();
    const client = await connect({ queueSize: 2 });
    client.send("a").send("b").send("c").on("c", null, record("c"));
    assert.deepEqual(calls, []);
    await settle();
    assert.deepEqual(calls, [["c", 503, "Queue is full"]]);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["a", "b"]);
  });

  test("holds 100 messages by default", async () => {
    const client = await connect();
    for (let i = 0; i < 101; i++) client.send("x", i);
    FakeSocket.last.open().say(OK);
    assert.equal(FakeSocket.last.sent.length, 1 + 100);
  });

  test("a message handed to an open socket is never sent again", async () => {
    const client = await authenticated();
    client.send("once");
    FakeSocket.last.end();
    client.send("later");
    mock.timers.tick(500);
    FakeSocket.last.open().say(OK);
    assert.deepEqual(FakeSocket.last.sent.slice(1).map(({ action }) => action), ["later"]);
  });

  test("keeps what is sent while the socket is closing", async () => {
    const client = await authenticated();
    FakeSocket.last.readyState = 2;
    assert.equal(client.connected, false);
    client.send("later");
    FakeSocket.last.end();
    mock.timers.tick(500);
    FakeSocket.last.open().say(OK);
    assert.equal(FakeSocket.last.sent[1].action, "later");
  });

  test("messages that wait when the client closes, or are sent afterwards, are refused with 503", async () => {
    const { calls, record } = recorder();
    const client = await connect();
    client.on("x", null, record("x")).send("x").close().send("x");
    await settle();
    assert.deepEqual(calls, [["x", 503, "Closed"], ["x", 503, "Closed"]]);
  });
});
