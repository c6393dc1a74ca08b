// The last requests, newest first; one opens into its time line.

import { byId, calm, clock, count, h, milliseconds, percent, rate, say } from "./dom.js";
import { timeline } from "./timeline.js";

const MAX_ROWS = 30;
const COLUMNS = 10;
const SPEC_REASONS = { lane: "not in this lane", client_off: "switched off by the client", no_draft: "no draft", low_acceptance: "paused" };

export class Requests {
  constructor() {
    this.body = byId("requests");
    this.total = 0;
  }

  clear() {
    this.body.replaceChildren();
    this.total = 0;
  }

  add(entry) {
    const id = `request-${entry.seq}`;
    const button = h("button", { type: "button", class: "open", "aria-expanded": "false", "aria-controls": id, text: clock(entry.arrived_s) });
    const row = h("tr", { class: `entry ${entry.lane} ${entry.outcome}` },
      h("td", {}, button),
      h("td", {}, h("span", { class: "lane-name", text: entry.lane })),
      h("td", { text: entry.route }),
      h("td", { text: [entry.client, entry.sub_client].filter(Boolean).join(" / ") || "–" }),
      h("td", { class: "number", text: milliseconds(entry.opta?.queue_ms ?? at_ms(entry, "admitted")) }),
      h("td", { class: "number", text: milliseconds(ttft_ms(entry)) }),
      h("td", { class: "number", text: entry.completion_tokens === undefined ? "–" : count(entry.completion_tokens) }),
      h("td", { class: "number", text: speed(entry) }),
      h("td", {}, drafts(entry)),
      h("td", { text: entry.code ?? entry.finish_reason ?? entry.outcome }));
    const details = h("tr", { class: "details", id, hidden: true }, h("td", { colspan: COLUMNS }));
    row.addEventListener("click", (event) => {
      if (event.target !== button && getSelection().toString()) return;
      this.#toggle(entry, button, details);
    });
    this.body.prepend(row, details);
    if (!calm() && this.total > 0) row.animate([{ background: "var(--field)" }, {}], { duration: 1200 });
    this.total += 1;
    while (this.body.children.length > 2 * MAX_ROWS) this.body.lastElementChild.remove();
    say(byId("requests-words"), "Open one for its time line.");
  }

  #toggle(entry, button, details) {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    details.hidden = !open;
    if (open && !details.firstElementChild.children.length) details.firstElementChild.append(timeline(entry));
  }
}

// What a client that left was never told, its moments say.
const at_ms = (entry, name) => entry.moments.find((moment) => moment.name === name)?.at_ms;
const ttft_ms = (entry) => entry.opta?.ttft_ms ?? at_ms(entry, "first_token");

function speed(entry) {
  const [tokens, ttft] = [entry.completion_tokens, ttft_ms(entry)];
  if (!tokens || tokens < 2 || ttft === undefined || entry.duration_ms <= ttft) return "–";
  return rate((tokens - 1) / ((entry.duration_ms - ttft) / 1000));
}

function drafts(entry) {
  const spec = entry.opta?.speculative;
  if (!spec) return "–";
  if (spec.acceptance_ratio === undefined) return h("span", { class: "quiet", text: spec.active ? "none yet" : SPEC_REASONS[spec.reason] ?? spec.reason });
  const meter = h("span", { class: "mini", "aria-hidden": "true" }, h("i"));
  meter.firstElementChild.style.width = percent(spec.acceptance_ratio);
  return h("span", { class: "acceptance", title: `${spec.accepted} of ${spec.proposed} draft tokens` }, meter, percent(spec.acceptance_ratio));
}
