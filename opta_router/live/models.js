// What is loaded, and the memory that it has.

import { bytes, h, percent, say } from "./dom.js";

const STATES = {
  absent: "not loaded", preparing: "being looked at", prepared: "ready to load", loading: "loading",
  resident: "loaded", draining: "about to go", unloading: "going", failed: "failed",
};

export class Models {
  constructor(root) {
    this.root = root;
    this.rows = new Map();
    this.total = h("p", { class: "quiet" });
    this.meter = h("div", { class: "meter", role: "img" }, h("i", { class: "used" }), h("i", { class: "reserved" }));
    root.append(this.meter, this.total);
  }

  draw({ models }) {
    const used = models.active_bytes ?? 0;
    const whole = Math.max(models.limit_bytes, models.reserved_bytes, used, 1);
    this.meter.children[0].style.width = `${(Math.min(used, models.reserved_bytes || used) / whole) * 100}%`;
    this.meter.children[1].style.width = `${(Math.max(models.reserved_bytes - used, 0) / whole) * 100}%`;
    const words = `${bytes(used)} in use, ${bytes(models.reserved_bytes)} set aside, ${bytes(models.limit_bytes)} allowed`;
    say(this.total, words);
    this.meter.setAttribute("aria-label", words);
    for (const model of models.models) {
      if (!this.rows.has(model.name)) {
        this.rows.set(model.name, new Model(model));
        this.root.append(this.rows.get(model.name).element);
      }
      this.rows.get(model.name).draw(model);
    }
  }
}

class Model {
  constructor(model) {
    this.state = h("span", { class: "state" });
    this.parts = h("p", { class: "quiet" });
    this.progress = h("progress", { max: 1, value: 0, "aria-label": `loading ${model.name}`, hidden: true });
    this.element = h("article", { class: "model" },
      h("h3", {}, h("span", { text: model.name }), this.state), this.parts, this.progress);
  }

  draw(model) {
    const progress = model.progress;
    const share = progress?.total_bytes ? progress.done_bytes / progress.total_bytes : null;
    say(this.state, (STATES[model.state] ?? model.state) + (share === null ? "" : `, ${progress.stage} ${percent(share)}`));
    this.element.dataset.state = model.state;
    this.progress.hidden = share === null;
    this.progress.value = share ?? 0;
    say(this.parts, model.message ?? this.#needs(model));
  }

  #needs({ facts, draft }) {
    if (!facts) return "Nobody has looked at it yet.";
    const parts = [`target ${bytes(facts.target_bytes)}`];
    if (draft) parts.push(`draft ${bytes(facts.draft_bytes)}`);
    parts.push(`caches of ${facts.kv_sequences} × ${facts.context_tokens} tokens ${bytes(facts.kv_bytes)}`);
    return `${parts.join(", ")}.`;
  }
}
