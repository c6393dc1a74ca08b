// The device: whose its time was, whose it should be, and the slider that changes that.

import { byId, percent, say } from "./dom.js";
import { bearer, keys } from "./feed.js";
import { SPAN_S } from "./history.js";

// What a weight is set to: one to sixty-four of one lane to one of the other, and the two halves in between.
const RATIOS = [1, 1.5, 2, 2.5, ...Array.from({ length: 62 }, (_, at) => at + 3)];
const HOLD_MS = 1500;

export class Device {
  constructor(onError) {
    this.onError = onError;
    this.bars = document.querySelectorAll("#share .measured i");
    this.slider = byId("weight");
    this.areas = { throughput: document.querySelector("#history .throughput"), interactive: document.querySelector("#history .interactive") };
    this.weights = null;
    this.held_ms = 0;
    this.slider.addEventListener("input", () => this.#preview());
    this.slider.addEventListener("change", () => this.#set());
  }

  draw(snapshot, history) {
    this.weights = { interactive: snapshot.lanes.interactive.weight, throughput: snapshot.lanes.throughput.weight };
    this.slider.disabled = false;
    // Whoever drags it, or has just let go, is not to be pulled back by an older snapshot.
    if (performance.now() > this.held_ms) this.#show(this.weights);
    const time = history.deviceTime();
    const used_s = time.interactive + time.throughput;
    const share = used_s > 0 ? time.interactive / used_s : null;
    this.bars[0].style.width = `${(share ?? 0) * 100}%`;
    this.bars[1].style.width = share === null ? "0" : `${(1 - share) * 100}%`;
    say(byId("share-interactive"), share === null ? "" : percent(share));
    say(byId("share-throughput"), share === null ? "" : percent(1 - share));
    byId("share").classList.toggle("idle", share === null);
    byId("share").classList.toggle("lost", snapshot.engine.state !== "ready");
    say(byId("device-words"), this.#words(snapshot, used_s, time.of_s, share));
    this.#drawHistory(history.seconds());
  }

  #words(snapshot, used_s, of_s, share) {
    if (snapshot.engine.state !== "ready") return "The engine is not running.";
    if (share === null) return "Idle.";
    return `${percent(Math.min(used_s / Math.max(of_s, 1), 1))} busy in the last ${Math.round(of_s)} s.`;
  }

  #drawHistory(seconds) {
    const step = 360 / SPAN_S;
    const area = (height) => {
      const top = seconds.map((second, at) => `${at * step} ${y(height(second))}L${(at + 1) * step} ${y(height(second))}`);
      return `M0 40L${top.join("L")}L360 40Z`;
    };
    this.areas.interactive.setAttribute("d", area(([interactive]) => interactive));
    this.areas.throughput.setAttribute("d", area(([interactive, throughput]) => Math.min(interactive + throughput, 1)));
  }

  #show(weights) {
    const share = weights.interactive / (weights.interactive + weights.throughput);
    this.slider.value = Math.round(share * 1000);
    this.#say(weights);
  }

  #say({ interactive, throughput }) {
    const share = interactive / (interactive + throughput);
    const words = `weights ${short(interactive)} : ${short(throughput)}`;
    this.slider.setAttribute("aria-valuetext", `${words}, ${percent(share)} for the interactive lane`);
    say(byId("weight-words"), `${words}: ${percent(share)} of the device for the interactive lane while both have work.`);
    byId("share").style.setProperty("--target", share);
  }

  #wanted() {
    const share = this.slider.value / 1000;
    const ratio = share / (1 - share);
    const nearest = (wanted) => RATIOS.reduce((best, one) => (Math.abs(Math.log(one / wanted)) < Math.abs(Math.log(best / wanted)) ? one : best));
    return ratio >= 1
      ? { interactive: nearest(ratio), throughput: 1 }
      : { interactive: 1, throughput: nearest(1 / ratio) };
  }

  #preview() {
    this.held_ms = performance.now() + HOLD_MS;
    this.#say(this.#wanted());
  }

  async #set() {
    this.held_ms = performance.now() + HOLD_MS;
    const wanted = this.#wanted();
    try {
      for (const lane of Object.keys(wanted)) {
        if (wanted[lane] !== this.weights[lane]) await this.#patch(lane, wanted[lane]);
      }
      this.onError(null);
    } catch (error) {
      this.held_ms = 0;
      this.onError(`The weights stay: ${error.message}`);
    }
  }

  async #patch(lane, weight) {
    const response = await fetch(`/admin/lanes/${lane}`, {
      method: "PATCH",
      headers: { "content-type": "application/json", ...bearer(keys.admin) },
      body: JSON.stringify({ weight }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
  }
}

const y = (share) => (40 - share * 39).toFixed(1);
const short = (weight) => String(Math.round(weight * 100) / 100);
