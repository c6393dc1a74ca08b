// Elements and numbers. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name, `class` and `text` included; then its children. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same, for SVG. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Set a text if it is another one: the page changes four times a second, and most of it does not. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// numbers

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => plain.format(n);

/** Three significant digits, no more: 4.2, 41, 416, 4,160. */
export const rate = (n) => (n === null ? "–" : n < 0.05 ? "0" : n < 10 ? n.toFixed(1) : plain.format(n));

export const percent = (ratio) => `${Math.round(ratio * 100)}%`;

export function milliseconds(ms) {
  if (ms === undefined || ms === null) return "–";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 10_000 ? `${plain.format(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${n >= 100 || at === 0 ? Math.round(n) : n.toFixed(1)} ${units[at]}`;
}

export const clock = (epoch_s) => new Date(epoch_s * 1000).toLocaleTimeString("en-GB");

export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}
