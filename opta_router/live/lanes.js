// The two lanes: figures, who waits, who runs. A request is one element from its arrival to its end.

import { calm, count, h, milliseconds, percent, rate, say } from "./dom.js";
import { LANES } from "./history.js";

const MAX_DOTS = 60;
const MAX_SLOTS = 64;
const MOVE_MS = 320;
const STAGES = {
  loading: "waits for its model",
  queued: "waits",
  prefill: "reads the prompt",
  decode: "answers",
  waiting_for_engine: "waits for the engine",
};

export class Lanes {
  constructor() {
    this.views = Object.fromEntries(LANES.map((lane) => [lane, new Lane(lane)]));
    this.elements = new Map();
  }

  draw(snapshot, history) {
    const before = calm() ? null : this.#places();
    const present = new Set();
    for (const lane of LANES) {
      const flights = snapshot.in_flight.filter((flight) => (flight.lane === "auto" ? "interactive" : flight.lane) === lane);
      this.views[lane].draw(snapshot.lanes[lane], history, flights, (flight) => this.#element(flight));
      flights.forEach((flight) => present.add(flight.seq));
    }
    for (const [seq, element] of this.elements) {
      if (!present.has(seq)) { element.remove(); this.elements.delete(seq); }
    }
    if (before) this.#move(before);
  }

  #element(flight) {
    let element = this.elements.get(flight.seq);
    if (!element) {
      element = h("li", { class: "request" },
        h("span", { class: "tape", "aria-hidden": "true" }, h("i", { class: "drafted" }), h("i", { class: "plain" })),
        h("span", { class: "words" }));
      this.elements.set(flight.seq, element);
    }
    return element;
  }

  #places() {
    return new Map([...this.elements].map(([seq, element]) => [seq, element.getBoundingClientRect()]));
  }

  /** Let what has changed its place go there, so that the eye can follow. */
  #move(before) {
    for (const [seq, element] of this.elements) {
      if (!element.isConnected) continue;
      const [from, to] = [before.get(seq), element.getBoundingClientRect()];
      if (!from || !from.width) {
        element.animate([{ opacity: 0, transform: "translateY(-10px)" }, {}], { duration: MOVE_MS, easing: "ease-out" });
        continue;
      }
      const [x, y] = [from.left - to.left, from.top - to.top];
      if (Math.abs(x) + Math.abs(y) > 2) {
        element.animate([{ transform: `translate(${x}px, ${y}px)` }, {}], { duration: MOVE_MS, easing: "ease-in-out" });
      }
    }
  }
}

class Lane {
  constructor(lane) {
    const root = document.getElementById(`lane-${lane}`);
    this.lane = lane;
    this.figures = Object.fromEntries([...root.querySelectorAll("[data-figure]")].map((e) => [e.dataset.figure, e]));
    this.spark = root.querySelector(".spark path");
    this.queue = root.querySelector(".queue");
    this.slots = root.querySelector(".slots");
  }

  draw(lane, history, flights, elementOf) {
    const first = history.firstToken(this.lane);
    say(this.figures.rate, rate(history.tokensPerSecond(this.lane)));
    say(this.figures.ttft, milliseconds(first.median_ms));
    this.figures.ttft.title = first.of ? `median of the last ${first.of}; the worst was ${milliseconds(first.worst_ms)}` : "";
    say(this.figures.running, `${lane.active} of ${lane.max_active}`);
    say(this.figures.waiting, count(lane.queued));
    this.#drawSpark(history.tokenRates(this.lane));
    const waiting = flights.filter((flight) => flight.stage === "queued" || flight.stage === "loading");
    const running = flights.filter((flight) => !waiting.includes(flight));
    this.#drawQueue(waiting, Math.max(lane.queued, waiting.length), elementOf);
    this.#drawSlots(running, lane, elementOf);
  }

  #drawQueue(waiting, queued, elementOf) {
    const shown = waiting.slice(0, MAX_DOTS).map((flight) => {
      const element = elementOf(flight);
      element.className = `request dot ${flight.stage}`;
      describe(element, flight);
      return element;
    });
    if (queued > shown.length) shown.push(this.#note("more", `and ${count(queued - shown.length)} more`));
    if (!shown.length) shown.push(this.#note("none", "nobody waits"));
    place(this.queue, shown);
  }

  #drawSlots(running, lane, elementOf) {
    const shown = running.slice(0, MAX_SLOTS).map((flight) => {
      const element = elementOf(flight);
      element.className = `request slot ${flight.stage}`;
      describe(element, flight);
      const whole = Math.max(flight.max_tokens ?? 512, flight.tokens, 1);
      const drafted = (flight.accepted ?? 0) / whole;
      const [fromDraft, fromTarget] = element.querySelectorAll(".tape i");
      fromDraft.style.width = `${drafted * 100}%`;
      fromTarget.style.width = `${(flight.tokens / whole - drafted) * 100}%`;
      return element;
    });
    const free = Math.min(lane.max_active, MAX_SLOTS) - shown.length;
    for (let at = 0; at < free; at += 1) shown.push(this.#free(at));
    this.slots.dataset.columns = lane.max_active > 16 ? 4 : lane.max_active > 4 ? 2 : 1;
    place(this.slots, shown);
  }

  #free(at) {
    this.empty ??= [];
    this.empty[at] ??= h("li", { class: "free", "aria-hidden": "true" });
    return this.empty[at];
  }

  #note(kind, text) {
    this.notes ??= {};
    this.notes[kind] ??= h("li", { class: "note" });
    say(this.notes[kind], text);
    return this.notes[kind];
  }

  #drawSpark(rates) {
    const top = Math.max(...rates, 1);
    const points = rates.map((value, at) => `${(at * 240) / (rates.length - 1)} ${(34 - (value / top) * 32).toFixed(1)}`);
    this.spark.setAttribute("d", `M${points.join("L")}`);
  }
}

function describe(element, flight) {
  const stage = STAGES[flight.stage];
  const drafts = flight.accepted ? `, ${percent(flight.accepted / Math.max(flight.tokens, 1))} drafted` : "";
  const words = flight.tokens ? `${count(flight.tokens)} ${flight.tokens === 1 ? "token" : "tokens"}${drafts}` : stage;
  say(element.querySelector(".words"), words);
  element.title = `${flight.request_id}, ${flight.route}${flight.client ? `, ${flight.client}` : ""}: ${stage} ` +
    `since ${milliseconds(flight.age_ms)}${flight.tokens ? `, ${words}` : ""}`;
}

/** Make `children` the list's, in order, touching only what is out of place. */
function place(list, children) {
  children.forEach((child, at) => {
    if (list.children[at] !== child) list.insertBefore(child, list.children[at] ?? null);
  });
  while (list.children.length > children.length) list.lastElementChild.remove();
}
