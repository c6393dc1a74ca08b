// What snapshots say over time: rates, shares, the last minute and a half.

import { median } from "./dom.js";

export const LANES = ["interactive", "throughput"];
export const SPAN_S = 90;
const RATE_S = 2.5;
const SHARE_S = 12;
const DRAFTS_S = 60;
const MAX_ENDED = 100;
const BEAT_S = 1;

export class History {
  constructor() {
    this.points = [];
    this.beats = [];
    this.ended = new Map();
    this.started_s = null;
  }

  /** Take a snapshot. True if it is of another router than the ones before. */
  push(snapshot) {
    const another = this.started_s !== null && this.started_s !== snapshot.started_s;
    if (another) { this.points = []; this.beats = []; this.ended.clear(); }
    this.started_s = snapshot.started_s;
    const device = {};
    for (const lane of LANES) device[lane] = snapshot.lanes[lane].device_s;
    this.#beat(snapshot.at_s, device);
    this.points.push({ at_s: snapshot.at_s, tokens: snapshot.tokens, device, drafts: snapshot.drafts });
    while (this.points.length > 2 && this.points[0].at_s < snapshot.at_s - SPAN_S - 2) this.points.shift();
    return another;
  }

  /** The engine reports device time about once a second: it was spent in the second before, evenly for all we know. */
  #beat(at_s, device) {
    const last = this.beats[this.beats.length - 1];
    if (last && LANES.every((lane) => last.device[lane] === device[lane])) return;
    if (last && at_s - last.at_s > 1.5 * BEAT_S) this.beats.push({ at_s: at_s - BEAT_S, device: last.device });
    this.beats.push({ at_s, device });
    while (this.beats.length > 2 && this.beats[1].at_s < at_s - SPAN_S - 2 * BEAT_S) this.beats.shift();
  }

  #deviceAt(at_s) {
    const after = this.beats.findIndex((beat) => beat.at_s > at_s);
    if (after < 0) return this.beats[this.beats.length - 1].device;
    if (after === 0) return this.beats[0].device;
    const [a, b] = [this.beats[after - 1], this.beats[after]];
    const share = (at_s - a.at_s) / (b.at_s - a.at_s);
    return Object.fromEntries(LANES.map((lane) => [lane, a.device[lane] + share * (b.device[lane] - a.device[lane])]));
  }

  end(entry) {
    this.ended.set(entry.seq, entry);
    if (this.ended.size > MAX_ENDED) this.ended.delete(this.ended.keys().next().value);
  }

  get #last() { return this.points[this.points.length - 1]; }

  #since(seconds) {
    const from_s = this.#last.at_s - seconds;
    return this.points.find((point) => point.at_s >= from_s) ?? this.#last;
  }

  /** Null where the router does not count. */
  tokensPerSecond(lane) {
    const [then, now] = [this.#since(RATE_S), this.#last];
    if (!now.tokens || !then.tokens) return null;
    return now.at_s > then.at_s ? Math.max(now.tokens[lane] - then.tokens[lane], 0) / (now.at_s - then.at_s) : 0;
  }

  /** Seconds of the device that each lane had lately, and how long that is. */
  deviceTime() {
    const [then, now] = [this.#since(SHARE_S), this.#last];
    return {
      interactive: now.device.interactive - then.device.interactive,
      throughput: now.device.throughput - then.device.throughput,
      of_s: now.at_s - then.at_s,
    };
  }

  /** Draft tokens of the last minute, or, if there were none, of all the time; with words for which. */
  drafts(model) {
    const now = this.#last.drafts[model];
    if (!now) return null;
    const then = this.#since(DRAFTS_S).drafts[model] ?? {};
    const recent = Object.fromEntries(Object.entries(now).map(([name, n]) => [name, n - (then[name] ?? 0)]));
    return recent.accepted + recent.rejected > 0
      ? { ...recent, of: "last minute" }
      : { ...now, of: "since the start" };
  }

  /** Per second of the last SPAN_S, oldest first: what share of it each lane had the device. */
  seconds() {
    const end_s = this.#last.at_s - BEAT_S; // later than that nobody has told
    const devices = Array.from({ length: SPAN_S + 1 }, (_, at) => this.#deviceAt(end_s - SPAN_S + at));
    return devices.slice(1).map((device, at) => LANES.map((lane) => Math.min(device[lane] - devices[at][lane], 1)));
  }

  /** Tokens a second, over the last minute, in steps of a second. */
  tokenRates(lane) {
    const end_s = this.#last.at_s;
    const rates = [];
    let at = 0;
    for (let back = 60; back > 0; back -= 1) {
      while (at < this.points.length - 1 && this.points[at + 1].at_s <= end_s - back) at += 1;
      let to = at;
      while (to < this.points.length - 1 && this.points[to + 1].at_s <= end_s - back + 1) to += 1;
      const [then, now] = [this.points[at].tokens, this.points[to].tokens];
      rates.push(then && now ? Math.max(now[lane] - then[lane], 0) : 0);
    }
    return rates;
  }

  /** Of the last requests that a lane answered, milliseconds to the first token: the median one and the worst. */
  firstToken(lane) {
    const ttfts = [...this.ended.values()]
      .filter((entry) => entry.lane === lane && entry.opta?.ttft_ms !== undefined)
      .slice(-20)
      .map((entry) => entry.opta.ttft_ms);
    return { median_ms: median(ttfts), worst_ms: ttfts.length ? Math.max(...ttfts) : null, of: ttfts.length };
  }
}
