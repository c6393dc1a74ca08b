// One request, from its arrival to its end: a bar of what it was doing when, and the same in words.

import { count, h, milliseconds, percent } from "./dom.js";

const WORDS = {
  queued: () => "asks for a slot",
  admitted: (moment, entry) => `gets one in the ${moment.lane} lane (${entry.route})`,
  dispatched: () => "goes to the engine",
  first_token: () => "first token",
  demoted: (moment) => `goes on in the ${moment.lane} lane, after ${count(moment.tokens)} tokens`,
  interrupted: () => "the engine is lost",
  resumed: (moment) => `another engine goes on, after ${count(moment.tokens)} tokens`,
};
const DOING = { wait: "waits", prefill: "reads the prompt", decode: "answers", lost: "waits for an engine" };

/** What it did between its moments: `[doing, lane, from_ms, to_ms]`. */
export function stretches(entry) {
  const result = [];
  let [doing, lane, from_ms, told] = ["wait", entry.lane, 0, false];
  const turn = (next, at_ms) => {
    if (at_ms > from_ms) result.push([doing, lane, from_ms, at_ms]);
    [doing, from_ms] = [next, at_ms];
  };
  // Where a demoted request began.
  const first = entry.moments.find((moment) => moment.name === "admitted");
  if (first) lane = first.lane;
  for (const moment of entry.moments) {
    if (moment.name === "dispatched") turn("prefill", moment.at_ms);
    if (moment.name === "first_token") { turn("decode", moment.at_ms); told = true; }
    if (moment.name === "interrupted") turn("lost", moment.at_ms);
    if (moment.name === "resumed") turn(told ? "decode" : "prefill", moment.at_ms);
    if (moment.name === "demoted") { turn(doing, moment.at_ms); lane = moment.lane; }
  }
  turn("", entry.duration_ms);
  return result;
}

export function timeline(entry) {
  const whole_ms = Math.max(entry.duration_ms, 0.001);
  const bar = h("div", { class: "line", "aria-hidden": "true" });
  for (const [doing, lane, from_ms, to_ms] of stretches(entry)) {
    const part = h("i", { class: `${doing} ${lane}`, title: `${DOING[doing]}: ${milliseconds(to_ms - from_ms)}` });
    part.style.left = `${(from_ms / whole_ms) * 100}%`;
    part.style.width = `${((to_ms - from_ms) / whole_ms) * 100}%`;
    bar.append(part);
  }
  const legend = h("p", { class: "line-legend quiet", "aria-hidden": "true" },
    ...stretches(entry).map(([doing, lane, from_ms, to_ms]) =>
      h("span", {}, h("i", { class: `${doing} ${lane}` }), `${DOING[doing]} ${milliseconds(to_ms - from_ms)}`)));
  const moments = h("ol", { class: "moments" },
    item(0, `comes in: ${entry.operation === "chat" ? "chat" : "completion"} for ${entry.model}`),
    ...entry.moments.map((moment) => item(moment.at_ms, WORDS[moment.name]?.(moment, entry) ?? moment.name)),
    item(entry.duration_ms, ending(entry)));
  return h("div", { class: "timeline" }, bar, legend, h("div", { class: "about" }, moments, facts(entry)));
}

const item = (at_ms, words) => h("li", {}, h("span", { class: "at", text: milliseconds(at_ms) }), ` ${words}`);

function ending(entry) {
  if (entry.outcome === "failed") return `fails: ${entry.code}`;
  if (entry.outcome === "cancelled") return "the client has left";
  return `ends: ${entry.finish_reason}`;
}

function facts(entry) {
  const spec = entry.opta?.speculative;
  const rows = {
    request: entry.request_id,
    hint: entry.hint,
    "hint ignored": entry.opta?.hint_ignored,
    preset: entry.preset,
    "prompt tokens": entry.prompt_tokens,
    "from the cache": entry.cached_tokens || undefined,
    "answer tokens": entry.completion_tokens,
    speculation: spec && (spec.rounds === undefined
      ? `not active: ${spec.reason}`
      : `${count(spec.rounds)} rounds, ${count(spec.proposed)} proposed, ${count(spec.accepted)} accepted, ` +
        `${count(spec.rejected)} rejected, ${count(spec.ignored)} ignored`),
    "of the answer": spec?.accepted && entry.completion_tokens
      ? `${percent(spec.accepted / entry.completion_tokens)} came from the draft` : undefined,
    resumed: entry.opta?.resumed || undefined,
  };
  return h("dl", { class: "rows" }, ...Object.entries(rows).filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))));
}
