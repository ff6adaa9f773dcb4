// The picture of who relays to whom: the master above, those who get its messages below.

import { count, short, svg } from "./dom.js";

const BOX = { width: 168, height: 62 };
/** Between boxes side by side, between the master and those below, and between rows. */
const GAP = { x: 26, y: 70, row: 18 };

/** Cuts a text for a box. */
const fit = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

function box(node, x, y, own, colour) {
  const state = node.degraded ? " degraded" : "";
  const name = node.role === "master" ? "Master" : node.role === "follower" ? "Follower" : "Joining";
  const about = own ? `${name} · this node` : node.lag ? `${name} · lag ${count(node.lag)}` : name;
  return svg("g", { class: `node ${node.role}${state}`, transform: `translate(${x - BOX.width / 2} ${y})` },
    svg("rect", { width: BOX.width, height: BOX.height, rx: 9 }),
    svg("rect", { class: `tag s${colour}`, x: 0, y: 12, width: 3, height: BOX.height - 24, rx: 1.5 }),
    svg("text", { class: "role", x: 14, y: 20 }, about),
    svg("text", { class: "name", x: 14, y: 37 }, fit(node.address.replace(/^wss?:\/\//, ""), 20)),
    svg("text", { class: "more", x: 14, y: 52 }, `${short(node.node)} · ${count(node.connections)} clients`));
}

/** A line from the master to a box below; an arrow if messages go along it. `beside`: past the boxes of the rows above. */
function edge(from, to, relays, beside) {
  const begin = `M${from.x} ${from.y + BOX.height}`;
  const tip = relays ? 8 : 0;
  const kind = relays ? "relay" : "idle";
  if (beside) {
    const [left, middle] = [to.x - BOX.width / 2, to.y + BOX.height / 2];
    const line = `${begin}v${GAP.y / 3}H${left - GAP.x / 2}V${middle}H${left - tip}`;
    return svg("g", null, svg("path", { class: kind, d: line }), relays ? svg("path", { class: "head", d: `M${left - 8} ${middle - 5}v10l8 -5z` }) : null);
  }
  const bend = GAP.y / 2;
  const line = `${begin}c0 ${bend} ${to.x - from.x} ${GAP.y - tip - bend} ${to.x - from.x} ${GAP.y - tip}`;
  return svg("g", null, svg("path", { class: kind, d: line }), relays ? svg("path", { class: "head", d: `M${to.x - 5} ${to.y - 8}h10l-5 8z` }) : null);
}

/** Draws the nodes into an element. `colour(id)` is the number of a node's colour. */
export function picture(parent, nodes, own, colour) {
  const width = parent.clientWidth;
  if (!width || !nodes.length) {
    parent.replaceChildren();
    return;
  }
  const master = nodes.find((node) => node.role === "master");
  const rest = nodes.filter((node) => node !== master);
  const columns = Math.max(1, Math.min(rest.length, Math.floor(width / (BOX.width + GAP.x))));
  const rows = Math.ceil(rest.length / columns);
  const top = master ? BOX.height + (rows > 1 ? GAP.y * 0.6 : GAP.y) : 1;
  const places = new Map();
  if (master) places.set(master.node, { x: width / 2, y: 1 });
  rest.forEach((node, number) => {
    const row = Math.floor(number / columns);
    const inRow = Math.min(columns, rest.length - row * columns);
    const left = (width - inRow * BOX.width - (inRow - 1) * GAP.x) / 2;
    places.set(node.node, { x: left + BOX.width / 2 + (number % columns) * (BOX.width + GAP.x), y: top + row * (BOX.height + GAP.row) });
  });
  const height = (rows ? top + rows * BOX.height + (rows - 1) * GAP.row : BOX.height) + 2;

  const edges = [];
  const sentences = [];
  for (const node of rest) {
    if (!master) break;
    const relays = master.links?.some((link) => link.peer === node.node && link.relay === "to")
      || node.links?.some((link) => link.peer === master.node && link.relay === "from") || (!master.links && node.role === "follower");
    edges.push(edge(places.get(master.node), places.get(node.node), relays, rows > 1));
    sentences.push(`${master.address} ${relays ? "relays to" : "does not relay to"} ${node.address}`);
  }
  const label = sentences.length ? sentences.join(", ") : `${nodes.length} node${nodes.length === 1 ? "" : "s"}, and nothing is relayed`;
  parent.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": label },
    ...edges, ...nodes.map((node) => box(node, places.get(node.node).x, places.get(node.node).y, node.node === own, colour(node.node)))));
}
