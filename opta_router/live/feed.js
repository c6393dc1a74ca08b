// The router's event stream. Not an EventSource: that cannot send a key but in its URL, where logs keep it.

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 10_000;

const stored = (name) => { try { return sessionStorage.getItem(name) ?? ""; } catch { return ""; } };

export const keys = {
  admin: stored("admin-key"),
  client: stored("client-key"),
  use(admin, client) {
    Object.assign(this, { admin, client });
    try {
      sessionStorage.setItem("admin-key", admin);
      sessionStorage.setItem("client-key", client);
    } catch { /* they hold until the page is left */ }
  },
};

export const bearer = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** The `event` and `data` of each server-sent event of a response's body, as it comes. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const block of whole) {
      const event = { name: "message", data: "" };
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      if (event.data) yield event;
    }
  }
}

/** Watches for as long as the page lives. `on` has `snapshot`, `ended`, `lost` (with words) and `refused` (with words). */
export class Feed {
  constructor(on) {
    this.on = on;
    this.retry_ms = FIRST_RETRY_MS;
    this.abort = null;
    this.timer = 0;
  }

  /** Begin, or begin again with other keys. */
  start() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = new AbortController();
    this.#watch(this.abort.signal);
  }

  async #watch(signal) {
    try {
      const response = await fetch("/live/events", { headers: bearer(keys.admin), cache: "no-store", signal });
      if (!response.ok) {
        const error = (await response.json()).error;
        if (response.status === 401 || response.status === 403) {
          this.on.refused(error.message, error.code);
          return;
        }
        throw new Error(error.message);
      }
      this.retry_ms = FIRST_RETRY_MS;
      for await (const { name, data } of events(response.body)) {
        if (name === "snapshot") this.on.snapshot(JSON.parse(data));
        if (name === "ended") this.on.ended(JSON.parse(data));
      }
      throw new Error("the router has stopped");
    } catch (error) {
      if (signal.aborted) return;
      this.on.lost(error instanceof TypeError ? "the router does not answer" : error.message);
      this.timer = setTimeout(() => this.start(), this.retry_ms);
      this.retry_ms = Math.min(this.retry_ms * 2, LAST_RETRY_MS);
    }
  }
}
