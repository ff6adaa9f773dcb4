// The charts of the last 15 minutes: one line for each node.

import { clock, count, duration, el, milliseconds, say, svg } from "./dom.js";

const HEIGHT = 128;
const EDGE = { top: 8, right: 8, bottom: 18, left: 46 };
/** Colours of the nodes, as the style sheet defines them. */
const COLOURS = 6;

const CHARTS = [
  { figure: "connections", title: "Connections", show: count, least: 4 },
  { figure: "deliveries_per_second", title: "Deliveries per second", show: count, least: 2 },
  { figure: "publishes_per_second", title: "Publishes per second", show: count, least: 2 },
  { figure: "publish_p99_ms", title: "Publish time (99 %)", show: milliseconds },
  { figure: "lag", title: "Lag of followers", show: count, least: 4 },
  { figure: "pool_ms", title: "Query to the pool", show: milliseconds },
];

/** A round number that is at least this one and `least`, so that the axis has round marks. */
function ceiling(value, least) {
  if (value <= least) return least;
  if (value <= 1) return [0.1, 0.2, 0.5, 1].find((round) => value <= round);
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((round) => round * power).find((round) => round >= value);
}

export class Charts {
  constructor(parent, legend) {
    this.legend = legend;
    this.samples = [];
    this.colours = new Map();
    this.names = new Map();
    this.charts = CHARTS.map((chart) => this.#make(chart));
    parent.append(...this.charts.map((chart) => chart.element));
    new ResizeObserver(() => this.draw()).observe(parent);
  }

  #make(chart) {
    const value = el("span", { class: "now" });
    const area = svg("svg", { height: HEIGHT, role: "img", "aria-label": chart.title });
    const element = el("figure", { class: "chart" }, el("figcaption", null, el("span", null, chart.title), value), area);
    const own = { ...chart, element, area, value, at: null };
    area.addEventListener("pointermove", (event) => {
      const at = this.#time(event.clientX - area.getBoundingClientRect().left, area.clientWidth);
      for (const each of this.charts) each.at = at;
      this.draw();
    });
    area.addEventListener("pointerleave", () => {
      for (const each of this.charts) each.at = null;
      this.draw();
    });
    return own;
  }

  /** Takes the answer of `history`: the samples after those that are known. */
  add(history) {
    this.figures = history.figures;
    this.interval = history.interval;
    this.kept = history.kept;
    this.samples.push(...history.samples);
    const oldest = (this.samples.at(-1)?.at ?? 0) - history.kept;
    this.samples = this.samples.filter((sample) => sample.at > oldest);
    this.draw();
  }

  get last() {
    return this.samples.at(-1)?.at ?? 0;
  }

  /** Learns the names of nodes, by id. Those of nodes that are gone stay known. */
  name(names) {
    const fresh = [...names].filter(([node, name]) => this.names.get(node) !== name);
    for (const [node, name] of fresh) this.names.set(node, name);
    if (fresh.length) this.draw();
  }

  colour(node) {
    if (!this.colours.has(node)) this.colours.set(node, this.colours.size % COLOURS);
    return this.colours.get(node);
  }

  #time(x, width) {
    const share = (x - EDGE.left) / (width - EDGE.left - EDGE.right);
    return this.last - this.kept * (1 - Math.min(1, Math.max(0, share)));
  }

  draw() {
    if (!this.figures) return;
    const nodes = [...new Set(this.samples.flatMap((sample) => Object.keys(sample.nodes)))];
    for (const node of nodes) this.colour(node);
    this.legend.replaceChildren(...nodes.map((node) =>
      el("li", { class: `series s${this.colour(node)}` }, el("span", { class: "dot" }), this.names.get(node) ?? node.slice(0, 8))));
    for (const chart of this.charts) this.#draw(chart, nodes);
  }

  #draw(chart, nodes) {
    const width = chart.area.clientWidth || 300;
    const index = this.figures.indexOf(chart.figure);
    const end = this.last;
    const begin = end - this.kept;
    const of = (sample, node) => sample.nodes[node]?.[index] ?? null;
    const values = this.samples.flatMap((sample) => nodes.map((node) => of(sample, node))).filter((value) => value !== null);
    const top = ceiling(Math.max(0, ...values), chart.least ?? 0.1);
    const x = (at) => EDGE.left + ((at - begin) / this.kept) * (width - EDGE.left - EDGE.right);
    const y = (value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);

    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const height = y(top * share);
      parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: height, y2: height }));
      parts.push(svg("text", { class: "axis", x: EDGE.left - 6, y: height + 3.5, "text-anchor": "end" }, chart.show(top * share)));
    }
    for (const [minutes, anchor] of [[15, "start"], [10, "middle"], [5, "middle"], [0, "end"]]) {
      const text = minutes ? `−${minutes} min` : "now";
      parts.push(svg("text", { class: "axis", x: x(end - minutes * 60000), y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    for (const node of nodes) {
      const points = this.samples.map((sample) => [sample.at, of(sample, node)]);
      for (const run of this.#runs(points)) {
        const line = run.map(([at, value], number) => `${number ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        if (nodes.length === 1) {
          const base = y(0).toFixed(1);
          parts.push(svg("path", { class: `fill s${this.colour(node)}`, d: `${line}L${x(run.at(-1)[0]).toFixed(1)} ${base}L${x(run[0][0]).toFixed(1)} ${base}Z` }));
        }
        parts.push(svg("path", { class: `line s${this.colour(node)}`, d: run.length > 1 ? line : `${line}h1` }));
      }
    }
    const sample = chart.at === null ? this.samples.at(-1) : this.#nearest(chart.at);
    if (chart.at !== null && sample) {
      parts.push(svg("line", { class: "cursor", x1: x(sample.at), x2: x(sample.at), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      for (const node of nodes) {
        const value = of(sample, node);
        if (value !== null) parts.push(svg("circle", { class: `point s${this.colour(node)}`, cx: x(sample.at), cy: y(value), r: 3 }));
      }
    }
    if (!values.length) parts.push(svg("text", { class: "axis", x: (EDGE.left + width) / 2, y: HEIGHT / 2 - 4, "text-anchor": "middle" }, "nothing measured"));
    chart.area.replaceChildren(...parts);

    const shown = sample ? nodes.map((node) => of(sample, node)).filter((value) => value !== null) : [];
    const text = shown.length > 4 ? `${chart.show(Math.min(...shown))} – ${chart.show(Math.max(...shown))}` : shown.map(chart.show).join(" · ");
    say(chart.value, chart.at === null ? text : `${sample ? clock(sample.at) : ""}  ${text}`);
    chart.area.setAttribute("aria-label", `${chart.title}, now ${text || "nothing"}, highest ${values.length ? chart.show(Math.max(...values)) : "nothing"} in ${duration(this.kept / 1000)}`);
  }

  /** The parts of a line between gaps: missing values, and times without samples. */
  #runs(points) {
    const runs = [];
    let before = null;
    for (const [at, value] of points) {
      if (value === null) {
        before = null;
        continue;
      }
      if (before === null || at - before > 2.5 * this.interval) runs.push([]);
      runs.at(-1).push([at, value]);
      before = at;
    }
    return runs;
  }

  #nearest(at) {
    let best = null;
    for (const sample of this.samples) {
      if (!best || Math.abs(sample.at - at) < Math.abs(best.at - at)) best = sample;
    }
    return best;
  }
}
