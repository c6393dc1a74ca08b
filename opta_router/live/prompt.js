// A prompt in either lane, side by side, with the accepted draft tokens marked as they come.

import { byId, count, h, milliseconds, percent, rate, say } from "./dom.js";
import { bearer, events, keys } from "./feed.js";
import { LANES } from "./history.js";

export class Prompt {
  constructor() {
    this.form = byId("try");
    this.stop = byId("try-stop");
    this.panes = Object.fromEntries(LANES.map((lane) => [lane, document.querySelector(`.answer[data-lane=${lane}]`)]));
    this.abort = null;
    this.chosen = false;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const lanes = event.submitter?.value ?? "both";
      this.#run(lanes === "both" ? LANES : [lanes]);
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) { event.preventDefault(); this.form.requestSubmit(); }
    });
    byId("try-kind").addEventListener("change", () => { this.chosen = true; });
    this.stop.addEventListener("click", () => this.abort?.abort());
  }

  draw({ models }) {
    const select = byId("try-model");
    const names = models.models.map((model) => model.name);
    if ([...select.options].map((option) => option.value).join() !== names.join()) {
      select.replaceChildren(...names.map((name) => h("option", { value: name, text: name })));
    }
    // The embedded pair goes on with Python; others are usually made to talk.
    const model = models.models.find(({ name }) => name === select.value);
    if (!this.chosen && model) byId("try-kind").value = model.target.startsWith("embedded:") ? "completion" : "chat";
  }

  async #run(lanes) {
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    this.stop.hidden = false;
    const ends = await Promise.all(lanes.map((lane) => this.#answer(lane, abort.signal)));
    if (this.abort !== abort) return;
    this.stop.hidden = true;
    say(byId("try-said"), ends.join(" "));
  }

  /** Ask one lane; returns how it ended, in words. */
  async #answer(lane, signal) {
    const pane = this.panes[lane];
    const words = pane.querySelector("[data-words]");
    const out = pane.querySelector("pre");
    out.replaceChildren();
    pane.setAttribute("aria-busy", "true");
    say(words, "asked");
    const begun_ms = performance.now();
    let end;
    try {
      const opta = await this.#stream(lane, signal, (text, drafted) => {
        write(out, text, drafted);
        say(words, `${milliseconds(performance.now() - begun_ms)}`);
      });
      end = told(opta, performance.now() - begun_ms);
    } catch (error) {
      end = signal.aborted ? "stopped" : error.message;
    }
    pane.removeAttribute("aria-busy");
    say(words, end);
    return `${lane}: ${end}.`;
  }

  async #stream(lane, signal, onText) {
    const chat = byId("try-kind").value === "chat";
    const prompt = byId("prompt").value;
    const drafts = byId("try-drafts").value;
    const response = await fetch(chat ? "/v1/chat/completions" : "/v1/completions", {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", "x-opta-lane": lane, ...bearer(keys.client) },
      body: JSON.stringify({
        model: byId("try-model").value,
        ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
        max_tokens: Number(byId("try-tokens").value),
        temperature: Number(byId("try-temperature").value),
        ...(drafts === "" ? {} : { num_draft_tokens: Number(drafts) }),
        stream: true,
        stream_options: { include_drafted: true, include_usage: true },
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let opta = null;
    let usage = null;
    for await (const { data } of events(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      if (chunk.opta?.lane) opta = chunk.opta;
      const choice = chunk.choices[0];
      const text = choice?.delta?.content ?? choice?.text;
      if (text) onText(text, chunk.opta?.drafted ?? []);
    }
    return { ...opta, tokens: usage?.completion_tokens };
  }
}

/** Append a chunk's text; `drafted` are the pieces that the draft proposed, counted in code points. */
export function write(out, text, drafted) {
  const characters = Array.from(text);
  const follows = out.scrollTop + out.clientHeight >= out.scrollHeight - 4;
  let at = 0;
  const nodes = [];
  for (const [begin, end] of drafted) {
    if (begin > at) nodes.push(characters.slice(at, begin).join(""));
    nodes.push(h("mark", { class: "drafted", text: characters.slice(begin, end).join("") }));
    at = end;
  }
  if (at < characters.length) nodes.push(characters.slice(at).join(""));
  out.append(...nodes);
  if (follows) out.scrollTop = out.scrollHeight;
}

function told(opta, whole_ms) {
  const parts = [`first token ${milliseconds(opta.ttft_ms)}`];
  if (opta.tokens > 1 && whole_ms > opta.ttft_ms) {
    parts.push(`${count(opta.tokens)} tokens at ${rate((opta.tokens - 1) / ((whole_ms - opta.ttft_ms) / 1000))}/s`);
  }
  const spec = opta.speculative;
  if (spec?.accepted && opta.tokens) parts.push(`${percent(spec.accepted / opta.tokens)} from the draft`);
  else if (spec && !spec.active) parts.push(spec.reason === "lane" ? "this lane does not draft" : `no drafts: ${spec.reason}`);
  if (opta.demoted) parts.push(`went on in the ${opta.demoted.lane} lane`);
  if (opta.resumed) parts.push(`resumed ${opta.resumed} ×`);
  return parts.join(", ");
}
