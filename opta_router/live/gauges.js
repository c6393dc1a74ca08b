// Speculation: one gauge for each pair. How many of the draft's tokens the target takes, and what they are worth.

import { count, h, percent, s, say } from "./dom.js";

const REASONS = {
  approved: "Approved pair.",
  required: "Speculation is required, and works.",
  no_draft: "There is no draft model.",
  not_approved: "This pair is not approved.",
  denied: "This family is on the list of those with known trouble.",
  tokenizer_mismatch: "Draft and target have different tokenizers.",
  template_mismatch: "Draft and target have different chat templates.",
  cache_not_trimmable: "The target's cache cannot take tokens back.",
  unsupported_backend: "The installed engine cannot do it.",
  low_acceptance: "Switched off: too little was accepted.",
  off: "Switched off in the configuration.",
};
const [CX, CY, R] = [80, 78, 64];

export class Gauges {
  constructor(root) {
    this.root = root;
    this.gauges = new Map();
  }

  draw(snapshot, history) {
    for (const model of snapshot.models.models) {
      if (!this.gauges.has(model.name)) {
        this.gauges.set(model.name, new Gauge(model));
        this.root.append(this.gauges.get(model.name).element);
      }
      this.gauges.get(model.name).draw(model, history.drafts(model.name), snapshot.min_acceptance);
    }
  }
}

class Gauge {
  constructor(model) {
    this.value = s("path", { class: "value", d: arc(0, 1), pathLength: 100 });
    this.floor = s("line", { class: "floor" });
    this.number = s("text", { class: "number", x: CX, y: CY - 12, "text-anchor": "middle" });
    this.unit = s("text", { class: "unit", x: CX, y: CY + 4, "text-anchor": "middle" });
    this.dial = s("svg", { class: "gauge", viewBox: "0 0 160 88", role: "img" },
      s("path", { class: "scale", d: arc(0, 1) }), this.value, ...ticks(), this.floor, this.number, this.unit);
    this.words = h("p", { class: "quiet" });
    this.facts = h("dl", { class: "facts" });
    this.element = h("article", { class: "pair" },
      h("div", {}, h("h3", { text: model.name }), this.words, this.facts), this.dial);
  }

  draw(model, drafts, floor) {
    const compared = drafts ? drafts.accepted + drafts.rejected : 0;
    const ratio = compared ? drafts.accepted / compared : null;
    this.value.style.strokeDasharray = `${(ratio ?? 0) * 100} 200`;
    this.element.classList.toggle("low", ratio !== null && ratio < floor);
    const [x, y] = at(floor, R + 8);
    const [x2, y2] = at(floor, R - 8);
    for (const [name, value] of Object.entries({ x1: x, y1: y, x2, y2 })) this.floor.setAttribute(name, value);
    say(this.number, ratio === null ? "–" : percent(ratio));
    say(this.unit, "accepted");
    this.dial.setAttribute("aria-label", ratio === null
      ? `${model.name}: nothing was drafted yet`
      : `${model.name}: ${percent(ratio)} of the compared draft tokens accepted, ${drafts.of}; the floor is ${percent(floor)}`);
    const { reason: code, detail, gate } = model.speculation;
    const again = gate.retry_in_s === null ? "" : ` Tried again in ${Math.ceil(gate.retry_in_s)} s.`;
    const reason = (REASONS[code] ?? detail ?? "Decided when the model is loaded.") + again;
    say(this.words, drafts && compared ? `${reason} Counted ${drafts.of === "last minute" ? "over the last minute" : drafts.of}.` : reason);
    this.#facts(drafts, compared);
  }

  #facts(drafts, compared) {
    const facts = compared
      ? { "per round": (drafts.accepted / Math.max(drafts.rounds, 1)).toFixed(1), accepted: count(drafts.accepted), rejected: count(drafts.rejected), ignored: count(drafts.ignored) }
      : {};
    if (this.facts.children.length !== Object.keys(facts).length) {
      this.facts.replaceChildren(...Object.keys(facts).map((name) => h("div", {}, h("dt", { text: name }), h("dd"))));
    }
    Object.values(facts).forEach((value, index) => say(this.facts.children[index].lastElementChild, value));
  }
}

/** The point at a ratio of the half circle, from left to right. */
function at(ratio, radius) {
  const angle = Math.PI * (1 - ratio);
  return [(CX + radius * Math.cos(angle)).toFixed(2), (CY - radius * Math.sin(angle)).toFixed(2)];
}

const arc = (from, to) => `M${at(from, R).join(" ")}A${R} ${R} 0 0 1 ${at(to, R).join(" ")}`;

function ticks() {
  return Array.from({ length: 11 }, (_, index) => {
    const [x1, y1] = at(index / 10, R - 7);
    const [x2, y2] = at(index / 10, R - (index % 5 ? 10 : 13));
    return s("line", { class: "tick", x1, y1, x2, y2 });
  });
}
