import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import vm from "node:vm";
import WsClusterByDefault, { WsCluster } from "../index.mjs";

describe("loading", () => {
  test("one class by name, by default, and as a global", () => {
    assert.equal(WsCluster, WsClusterByDefault);
    assert.equal(WsCluster, globalThis.WsCluster);
  });

  test("as a plain script, which defines one global and nothing else, and may be loaded twice", () => {
    const context = vm.createContext({});
    const script = new vm.Script(readFileSync(new URL("../ws-cluster.js", import.meta.url), "utf8"));
    script.runInContext(context);
    script.runInContext(context);
    assert.deepEqual(Object.keys(context), ["WsCluster"]);
  });

  test("without a WebSocket says what to give", () => {
    assert.throws(() => new WsCluster("ws://host/", { WebSocket: null }), /options\.WebSocket/);
    // As in Node before version 22.
    const context = vm.createContext({ AbortController });
    new vm.Script(readFileSync(new URL("../ws-cluster.js", import.meta.url), "utf8")).runInContext(context);
    assert.throws(() => vm.runInContext('new WsCluster("ws://host/")', context), /options\.WebSocket/);
  });
});
