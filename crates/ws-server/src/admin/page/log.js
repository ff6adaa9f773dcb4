// The view of the log.

import { byId, count, el, say } from "./dom.js";

/** Lines that the page keeps. */
const LINES = 1000;

let lines = [];
/** The number of the last line. */
export let last = 0;
let drawnTo = 0;

function level(text) {
  if (/\bERROR\b|^error: /.test(text)) return "error";
  return /\bWARN\b/.test(text) ? "warn" : "";
}

function lineElement({ number, text }) {
  const stamp = /^\d{4}-\d\d-\d\dT[\d:.]+Z/.exec(text)?.[0] ?? "";
  return el("li", { class: level(text) || null, "data-number": number }, el("span", { class: "stamp" }, stamp), text.slice(stamp.length));
}

/** Adds the lines that came after the last one. */
export function add(part) {
  // A log that is shorter than before is another one.
  const anew = part.last < last;
  if (anew) lines = [];
  lines = lines.concat(part.lines).slice(-LINES);
  last = part.last;
  draw(anew);
}

/** Shows the lines that are not shown yet, or all anew. */
export function draw(anew) {
  if (byId("log").hidden) return;
  const list = byId("lines");
  const filter = byId("log-filter").value.trim().toLowerCase();
  const matches = ({ text }) => !filter || text.toLowerCase().includes(filter);
  if (anew) drawnTo = 0;
  const fresh = lines.filter(({ number }) => number > drawnTo).filter(matches).map(lineElement);
  if (anew) list.replaceChildren(...fresh);
  else list.append(...fresh);
  while (list.children.length > LINES) list.firstElementChild.remove();
  drawnTo = lines.at(-1)?.number ?? drawnTo;
  if (byId("follow").checked && (fresh.length || anew)) list.scrollTop = list.scrollHeight;
  const kept = `${lines.length} line${lines.length === 1 ? "" : "s"}`;
  say(byId("log-summary"), filter ? `${list.children.length} of ${kept}` : `The last ${kept} of ${count(last)}`);
}

byId("log-filter").addEventListener("input", () => draw(true));
byId("follow").addEventListener("change", () => draw(false) ?? (byId("follow").checked && (byId("lines").scrollTop = byId("lines").scrollHeight)));
byId("lines").addEventListener("scroll", () => {
  const list = byId("lines");
  byId("follow").checked = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
});
