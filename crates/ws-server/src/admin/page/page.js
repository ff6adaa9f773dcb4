// The admin page: asks the listener that served it, and shows what it answers. Every order is a POST with the session's
// token.

import { Charts } from "./charts.js";
import { byId, bytes, clock, count, duration, el, keyed, milliseconds, say, short, visible } from "./dom.js";
import * as log from "./log.js";
import { picture } from "./picture.js";

const NAMES = {
  running: "Running", starting: "Starting", hanging: "Not answering", stopping: "Stopping", waiting: "Starts again",
  stopped: "Stopped", "cannot start": "Cannot start", lost: "No connection",
};
const ROLES = { master: "Master", follower: "Follower", candidate: "Joining" };
const VIEWS = ["overview", "clients", "log", "settings"];

let token = null;
let state = null;
let cluster = { own: null, nodes: [] };
let charts = null;

/** What the listener refuses, with its words. */
class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Asks by GET, or by POST if there is a body: a value, or a text that is JSON already. */
async function ask(path, body) {
  try {
    return await askOnce(path, body);
  } catch (refusal) {
    // Without a key, the listener's next process has another token. It has not done what it refused.
    if (refusal.status !== 403 || body === undefined || !(await renewToken())) throw refusal;
    return askOnce(path, body);
  }
}

async function askOnce(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    body: typeof body === "string" ? body : JSON.stringify(body),
    headers: { "content-type": "application/json", "x-csrf-token": token ?? "" },
  };
  let response, text;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
    text = await response.text();
  } catch {
    throw new Refusal(0, "The admin page's server does not answer.");
  }
  if (response.status === 401 && path !== "login") show(false);
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    // A proxy whose server is gone, or a login in front of the page.
    throw new Refusal(response.ok ? 0 : response.status, `Another program answers, with status ${response.status}.`);
  }
  if (!response.ok) throw new Refusal(response.status, value?.error ?? `status ${response.status}`);
  return value;
}

/** Returns true if the session has another token than before. */
async function renewToken() {
  const { csrf } = await askOnce("api/session");
  const isNew = csrf !== null && csrf !== token;
  if (isNew) token = csrf;
  return isNew;
}

// Signing in

function show(signedIn) {
  byId("sign-in").hidden = signedIn;
  byId("app").hidden = !signedIn;
  if (!signedIn) {
    token = null;
    byId("key").focus();
  }
}

async function enter() {
  const session = await ask("api/session");
  token = session.csrf;
  byId("sign-out").hidden = session.open;
  show(token !== null);
  if (token === null) return;
  if (!charts) charts = new Charts(byId("charts"), byId("legend"));
  turn();
  await Promise.allSettled([poll.state(), poll.cluster(), poll.history(), poll.log()]);
}

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say(byId("sign-in-error"), "");
  try {
    await ask("login", { key: byId("key").value });
    byId("key").value = "";
    await enter();
    byId("title").focus();
  } catch (refusal) {
    say(byId("sign-in-error"), refusal.message);
    byId("key").select();
  }
});

byId("sign-out").addEventListener("click", () => order(async () => {
  await ask("logout", {});
  show(false);
}));

// Notices and questions

function notice(text, bad) {
  const remove = el("button", { type: "button", "aria-label": "Dismiss" }, "×");
  const line = el("p", { class: bad ? "notice bad" : "notice" }, el("span", null, text), remove);
  remove.addEventListener("click", () => line.remove());
  byId("notices").prepend(line);
  while (byId("notices").children.length > 3) byId("notices").lastElementChild.remove();
  setTimeout(() => line.remove(), bad ? 20000 : 6000);
}

/** Does something, and shows why it failed if it does. */
async function order(action) {
  try {
    await action();
  } catch (refusal) {
    if (refusal.status !== 401) notice(refusal.message, true);
  }
}

function confirmed(text, yes) {
  const dialog = byId("confirm");
  say(byId("confirm-text"), text);
  say(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

// The views

const view = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "overview");

function turn() {
  const current = view();
  for (const name of VIEWS) byId(name).hidden = name !== current;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (token === null) return;
  if (current === "overview") draw();
  if (current === "clients") order(search);
  if (current === "log") log.draw(true);
  if (current === "settings") order(loadSettings);
}

addEventListener("hashchange", turn);

// The server

function showState() {
  const known = state ?? { state: "lost", can: {}, restarts: [] };
  const pill = byId("state");
  pill.dataset.state = known.state;
  const left = known.next_start ? Math.max(0, Math.ceil((known.next_start - known.now) / 1000)) : 0;
  say(byId("state-text"), NAMES[known.state]);
  // Not a part of what is read aloud, or every second would be.
  say(byId("countdown"), known.state === "waiting" && left ? `in ${left} s` : "");
  document.title = `${NAMES[known.state]} · ${known.address ?? "ws-server"}`;
  for (const name of ["start", "stop", "restart"]) byId(name).disabled = !known.can[name];
  if (!state) return;

  const why = byId("state-why");
  why.hidden = !state.why;
  why.className = `why ${["hanging", "cannot start"].includes(state.state) ? "bad" : state.state === "stopped" ? "plain" : ""}`;
  say(why, state.why ?? "");
  const facts = [
    ["In this state for", duration((state.now - state.since) / 1000)],
    ["Address", state.address ?? "–"],
    ["Process", state.pid === null ? "–" : String(state.pid)],
    ["Process started", state.started ? `${duration((state.now - state.started) / 1000)} ago` : "–"],
    ["Supervisor", state.supervised ? "watches it" : "none"],
    ["Version", state.version],
  ];
  keyed(byId("facts"), facts, ([name]) => name,
    ([name]) => el("div", null, el("dt", null, name), el("dd")), (row, [, value]) => say(row.lastElementChild, value));
  byId("alone").hidden = state.supervised;
  byId("restarts").hidden = !state.restart_count;
  say(byId("restarts-summary"), `${state.restart_count} restart${state.restart_count === 1 ? "" : "s"}, the last one at ${state.restarts[0] ? clock(state.restarts[0].at) : ""}`);
  keyed(byId("restart-list"), state.restarts.map((restart, number) => ({ ...restart, number })), (restart) => `${restart.at} ${state.restart_count - restart.number}`,
    (restart) => el("li", null, el("time", { datetime: new Date(restart.at).toISOString() }, new Date(restart.at).toLocaleString([], { dateStyle: "short", timeStyle: "medium", hour12: false })), el("span", null, restart.why)),
    () => {});
}

for (const [name, question] of [["start", null], ["stop", "Stop the server?"], ["restart", "Restart the server?"]]) {
  byId(name).addEventListener("click", () => order(async () => {
    if (question) {
      const own = cluster.nodes.find((node) => node.node === cluster.own);
      const clients = own?.connections ? `\nIts ${count(own.connections)} clients are sent to other nodes, or come back when it runs again.` : "";
      const last = name === "stop" && !state?.supervised ? "\nNothing starts it again, and this page ends with it." : "";
      if (!(await confirmed(question + clients + last, name === "stop" ? "Stop" : "Restart"))) return;
    }
    state = await ask(`api/${name}`, {});
    showState();
  }));
}

// The cluster

const nameOf = (node) => node.address.replace(/^wss?:\/\//, "");

function cell(label, attributes, ...children) {
  return el("td", { "data-label": label, ...attributes }, ...children);
}

function nodeRow() {
  return el("tr", null,
    cell("Node", { class: "first" }, el("span", { class: "key" }, el("span", { class: "dot" }), el("span")), el("small", { class: "mono" })),
    cell("Role", null, el("span", { class: "badge" })),
    cell("Term", { class: "number" }), cell("Connections", { class: "number" }), cell("Deliveries", { class: "number" }),
    cell("Publish", { class: "number" }), cell("Lag", { class: "number" }), cell("Pool", { class: "number" }),
    cell("Condition", null, el("span")), cell("Version", { class: "tight" }), cell("Uptime", { class: "number" }));
}

function fillNode(row, node) {
  const [name, role, term, connections, deliveries, publish, lag, pool, condition, version, uptime] = row.children;
  name.querySelector(".key").className = `key s${charts.colour(node.node)}`;
  say(name.querySelector(".key > span:last-child"), nameOf(node));
  say(name.querySelector("small"), short(node.node) + (node.node === cluster.own ? " · this node" : ""));
  role.firstElementChild.className = `badge ${node.role}`;
  say(role.firstElementChild, ROLES[node.role] ?? node.role);
  say(term, count(node.term));
  say(connections, count(node.connections));
  say(deliveries, node.deliveries_per_second === undefined ? "–" : `${count(node.deliveries_per_second)}/s`);
  const publishes = [node.publish_p50_ms, node.publish_p99_ms].map((time) => (time === null || time === undefined ? null : milliseconds(time)));
  say(publish, publishes[0] ? publishes.join(" · ") : "–");
  say(lag, count(node.lag));
  say(pool, milliseconds(node.pool_ms));
  condition.firstElementChild.className = node.degraded ? "trouble" : "fine";
  const old = node.age_ms > 5000 ? ` (told ${duration(node.age_ms / 1000)} ago)` : "";
  say(condition.firstElementChild, (node.degraded ?? (node.ready === false ? "takes no clients" : "well")) + old);
  say(version, node.version ?? "–");
  say(uptime, duration(node.uptime_seconds));
}

function draw() {
  const nodes = cluster.nodes;
  charts?.name(new Map(nodes.map((node) => [node.node, nameOf(node)])));
  const own = nodes.find((node) => node.node === cluster.own);
  if (own) say(byId("title"), nameOf(own));
  keyed(byId("nodes").tBodies[0], nodes, (node) => node.node, nodeRow, fillNode);
  byId("nodes").hidden = !nodes.length;
  const sum = nodes.reduce((all, node) => all + (node.connections ?? 0), 0);
  const summary = `${nodes.length} node${nodes.length === 1 ? "" : "s"}, ${count(sum)} client${sum === 1 ? "" : "s"}`;
  say(byId("cluster-summary"), nodes.length ? summary : "");
  if (!byId("overview").hidden) picture(byId("picture"), nodes, cluster.own, (node) => charts.colour(node));
}

new ResizeObserver(() => draw()).observe(byId("picture"));

// Connections

/** The fields of the search when it was submitted. They may be different now, and half typed. */
let searched = {};

async function search() {
  const asked = searched;
  let found;
  try {
    found = await ask(`api/connections?${new URLSearchParams(asked)}`);
  } catch (refusal) {
    say(byId("connections-summary"), "");
    throw refusal;
  }
  if (asked !== searched) return;
  const body = byId("connections").tBodies[0];
  keyed(body, found.connections, (connection) => connection.id, connectionRow, fillConnection);
  byId("connections").hidden = !found.connections.length;
  const silent = found.silent.length ? `; no answer from ${found.silent.map(short).join(", ")}` : "";
  const shown = found.connections.length < found.matching ? `, ${count(found.connections.length)} shown` : "";
  say(byId("connections-summary"), `${count(found.matching)} found${shown}${silent}`);
}

function connectionRow(connection) {
  const button = (text, body, whose) => el("button", {
    type: "button", class: "small", "aria-label": `${text}: ${whose}`,
    onclick: () => order(() => close(body, whose)),
  }, text);
  const user = connection.user;
  const session = searched.session;
  return el("tr", null,
    cell("User", { class: "first" }), cell("Session", { class: "mono tight" }), cell("Address", { class: "mono tight" }), cell("Groups"), cell("Node", { class: "tight" }),
    cell("Connected", { class: "number" }), cell("Waiting", { class: "number" }),
    cell("", { class: "actions" }, button("Close", { connection: connection.id }, `connection ${connection.id}`),
      user === null ? null : button("Close user", { user }, `user ${visible(user)}`),
      session && connection.session !== null ? button("Close session", { session }, `session ${visible(session)}`) : null));
}

function fillConnection(row, connection) {
  const [user, session, address, groups, node, since, waiting] = row.children;
  say(user, visible(connection.user ?? "guest"));
  user.classList.toggle("soft", connection.user === null);
  say(session, visible(connection.session ?? "–"));
  say(address, connection.address ?? "–");
  say(groups, connection.groups.length ? visible(connection.groups.join(", ")) + (connection.more_groups ? ` and ${connection.more_groups} more` : "") : "–");
  const of = cluster.nodes.find((each) => each.node === connection.node);
  say(node, of ? nameOf(of) : short(connection.node));
  say(since, duration(Date.now() / 1000 - connection.since));
  say(waiting, bytes(connection.waiting));
}

async function close(body, whose) {
  if (!(await confirmed(`Close ${whose}?`, "Close"))) return;
  await ask("api/close", body);
  notice(`Closed: ${whose}.`);
  await search();
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = [...new FormData(byId("search"))].map(([name, value]) => [name, value.trim()]);
  searched = Object.fromEntries(fields.filter(([, value]) => value));
  byId("connections").tBodies[0].replaceChildren();
  order(search);
});

byId("close").addEventListener("submit", (event) => {
  event.preventDefault();
  const [kind, id] = [byId("close-kind").value, byId("close-id").value.trim()];
  order(() => close({ [kind]: id }, `all connections of ${kind} ${visible(id)}`));
});

byId("publish").addEventListener("submit", (event) => {
  event.preventDefault();
  order(async () => {
    const text = byId("publish-details").value.trim() || "[]";
    try {
      JSON.parse(text);
    } catch (error) {
      throw new Refusal(400, `The details are no JSON: ${error.message}`);
    }
    // The details stay as they were written: numbers keep all their digits.
    const [action, to] = ["action", "to"].map((name) => JSON.stringify(byId(`publish-${name}`).value.trim()));
    await ask("api/publish", `{"action":${action},"to":${to},"details":${text}}`);
    notice(`Accepted: ${byId("publish-action").value.trim()} to ${byId("publish-to").value.trim()}.`);
  });
});

// Settings

let settings = [];

async function loadSettings() {
  const note = byId("settings-note");
  try {
    settings = (await ask("api/config")).settings;
    note.hidden = true;
  } catch (refusal) {
    settings = [];
    note.hidden = false;
    say(note, refusal.message);
  }
  drawSettings();
}

function drawSettings() {
  const filter = byId("settings-filter").value.trim().toLowerCase();
  const only = byId("changed-only").checked;
  const rows = settings.filter(({ key, help, source }) =>
    (!only || source !== "default") && (!filter || `${key} ${help}`.toLowerCase().includes(filter)));
  keyed(byId("settings-table").tBodies[0], rows, ({ key }) => key,
    ({ key, help }) => el("tr", null, el("td", null, el("b", { class: "mono" }, key), el("small", null, help)), cell("Value"), cell("Source")),
    (row, { value, source }) => {
      row.className = source === "default" ? "" : "changed";
      const none = value === null;
      say(row.children[1], none ? "not set" : value);
      row.children[1].classList.toggle("unset", none);
      say(row.children[2], source);
    });
  byId("settings-table").hidden = !rows.length;
}

byId("settings-filter").addEventListener("input", drawSettings);
byId("changed-only").addEventListener("change", drawSettings);

// What changes by itself

/** Asks one at a time: who asks while a question is open gets its answer. */
function alone(question) {
  let open = null;
  return () => (open ??= question().finally(() => (open = null)));
}

const poll = {
  state: alone(async () => {
    try {
      state = await ask("api/state");
    } catch (refusal) {
      // The listener itself refuses only who has to sign in, or to wait.
      if (refusal.status !== 401 && refusal.status !== 429) state = null;
    }
    showState();
  }),

  cluster: alone(async () => {
    const note = byId("cluster-note");
    try {
      cluster = await ask("api/cluster");
      note.hidden = true;
    } catch (refusal) {
      cluster = { own: cluster.own, nodes: [] };
      note.hidden = false;
      say(note, refusal.message);
    }
    draw();
  }),

  history: alone(async () => {
    try {
      charts.add(await ask(`api/history?after=${charts.last}`));
    } catch {
      // The state says it.
    }
  }),

  log: alone(async () => {
    try {
      log.add(await ask(`api/log?after=${log.last}`));
    } catch {
      // The state says it.
    }
  }),

  clients: alone(async () => {
    if (view() === "clients" && !byId("confirm").open) await search().catch(() => {});
  }),
};

/** Asks again and again, while the page is seen and signed in. */
function every(milliseconds, question) {
  setInterval(() => {
    if (token !== null && !document.hidden) question();
  }, milliseconds);
}

every(1000, poll.state);
every(1000, poll.log);
every(2000, poll.cluster);
every(5000, poll.history);
every(5000, poll.clients);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && token !== null) for (const question of Object.values(poll)) question();
});

enter().catch((refusal) => {
  show(false);
  say(byId("sign-in-error"), refusal.message);
});
