// The picture of who relays to whom: the master above, those who get its messages below.

import { count, short, svg } from "./dom.js";

const BOX = { width: 168, height: 62 };
const GAP = { x: 20, y: 74 };

/** Cuts a text for a box. */
const fit = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

function box(node, x, y, own, colour) {
  const state = node.degraded ? " degraded" : "";
  const name = node.role === "master" ? "Master" : node.role === "follower" ? "Follower" : "Joining";
  const group = svg("g", { class: `node ${node.role}${state}`, transform: `translate(${x - BOX.width / 2} ${y})` },
    svg("rect", { width: BOX.width, height: BOX.height, rx: 9 }),
    svg("rect", { class: `tag s${colour}`, x: 0, y: 12, width: 3, height: BOX.height - 24, rx: 1.5 }),
    svg("text", { class: "role", x: 14, y: 20 }, own ? `${name} · this node` : name),
    svg("text", { class: "name", x: 14, y: 37 }, fit(node.address.replace(/^wss?:\/\//, ""), 20)),
    svg("text", { class: "more", x: 14, y: 52 }, `${short(node.node)} · ${count(node.connections)} clients`));
  return group;
}

/** A line from one box to another; an arrow if messages go along it. */
function edge(from, to, label, relays) {
  const [x1, y1, x2, y2] = [from.x, from.y + BOX.height, to.x, to.y - (relays ? 7 : 0)];
  const bend = (y2 - y1) / 2;
  const path = svg("path", { class: relays ? "relay" : "idle", d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}` });
  const parts = [path];
  if (relays) parts.push(svg("path", { class: "head", d: `M${x2 - 5} ${y2 - 1}h10l-5 8z` }));
  if (label) parts.push(svg("text", { class: "label", x: x2 + 10, y: y2 - 4 }, label));
  return svg("g", null, ...parts);
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
  const columns = Math.max(1, Math.min(rest.length, Math.floor((width + GAP.x) / (BOX.width + GAP.x))));
  const rows = Math.ceil(rest.length / columns);
  const top = master ? BOX.height + GAP.y : 1;
  const places = new Map();
  if (master) places.set(master.node, { x: width / 2, y: 1 });
  rest.forEach((node, number) => {
    const row = Math.floor(number / columns);
    const inRow = Math.min(columns, rest.length - row * columns);
    const left = (width - inRow * BOX.width - (inRow - 1) * GAP.x) / 2;
    places.set(node.node, { x: left + BOX.width / 2 + (number % columns) * (BOX.width + GAP.x), y: top + row * (BOX.height + GAP.y / 2) });
  });
  const height = (rows ? top + rows * BOX.height + (rows - 1) * (GAP.y / 2) : BOX.height) + 2;

  const edges = [];
  const sentences = [];
  for (const node of rest) {
    if (!master) break;
    const relays = master.links?.some((link) => link.peer === node.node && link.relay === "to")
      || node.links?.some((link) => link.peer === master.node && link.relay === "from") || (!master.links && node.role === "follower");
    // Below the first row, a line would cross the boxes above.
    const lag = node.lag ? `lag ${count(node.lag)}` : null;
    edges.push(edge(places.get(master.node), places.get(node.node), lag, relays));
    sentences.push(`${master.address} ${relays ? "relays to" : "does not relay to"} ${node.address}`);
  }
  const label = sentences.length ? sentences.join(", ") : `${nodes.length} node${nodes.length === 1 ? "" : "s"}, and nothing is relayed`;
  parent.replaceChildren(svg("svg", { width, height, role: "img", "aria-label": label },
    ...edges, ...nodes.map((node) => box(node, places.get(node.node).x, places.get(node.node).y, node.node === own, colour(node.node)))));
}
