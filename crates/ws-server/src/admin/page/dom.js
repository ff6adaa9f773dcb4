// Elements, and figures as people read them. Text reaches the page as text only, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Sets a text if it differs, so that nothing is announced or laid out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes the rows of a table those of a list. A row keeps its element, and with it the focus, as long as its key is in
 * the list. `make(row)` returns an element, `update(element, item)` fills it.
 */
export function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = old.get(name);
    old.delete(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
}

/** A text of a stranger with what is invisible or turns the direction of writing as numbers, so that it looks like no other. */
export const visible = (text) => text.replace(
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
  (letter) => `\\u{${letter.charCodeAt(0).toString(16)}}`);

export const short = (id) => id.slice(0, 8);

export function count(number) {
  if (number === null || number === undefined) return "–";
  if (number < 1e4) return number % 1 && number < 100 ? number.toFixed(number < 10 ? 1 : 0) : String(Math.round(number));
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return `${(number / size).toFixed(number < 10 * size ? 1 : 0)} ${unit}`;
  }
  return String(number);
}

export function milliseconds(time) {
  if (time === null || time === undefined) return "–";
  if (time === 0) return "0 ms";
  if (time < 1) return `${time.toFixed(2)} ms`;
  return time < 1000 ? `${time.toFixed(time < 10 ? 1 : 0)} ms` : `${(time / 1000).toFixed(1)} s`;
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (size >= unit) return `${(size / unit).toFixed(1)} ${name}`;
  }
  return `${size} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days >= 2) return `${days} d ${hours % 24} h`;
  if (hours >= 1) return `${hours} h ${minutes % 60} min`;
  return minutes >= 1 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.max(0, Math.floor(seconds))} s`;
}

export const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false });
