// Puts the parts together: one stream in, all views out.

import { byId, count, say } from "./dom.js";
import { Device } from "./device.js";
import { Feed, keys } from "./feed.js";
import { Gauges } from "./gauges.js";
import { History } from "./history.js";
import { Lanes } from "./lanes.js";
import { Models } from "./models.js";
import { Prompt } from "./prompt.js";
import { Requests } from "./requests.js";

const history = new History();
const requests = new Requests();
const views = [new Lanes(), new Device(notice), new Gauges(byId("gauges")), new Models(byId("models")), new Prompt()];
let latest = null;

const feed = new Feed({
  snapshot(snapshot) {
    if (history.push(snapshot)) requests.clear();
    latest = snapshot;
    requestAnimationFrame(draw);
  },
  ended(entry) {
    if (history.ended.has(entry.seq)) return; // told again after a reconnection
    history.end(entry);
    requests.add(entry);
  },
  lost(words) { status("lost", `Not connected: ${words}. Trying again.`); },
  refused(words, code) {
    status("lost", "Not allowed to watch");
    notice(`${words[0].toUpperCase()}${words.slice(1)}.`);
    if (code === "invalid_api_key") openKeys();
  },
});

function draw() {
  if (latest === null) return;
  const snapshot = latest;
  latest = null; // a hidden page draws the last one only
  say(byId("version"), snapshot.version);
  status(...told(snapshot));
  for (const view of views) view.draw(snapshot, history);
}

/** How the router is, as a lamp and a sentence. */
function told({ engine, lanes }) {
  const running = lanes.interactive.active + lanes.throughput.active;
  const waiting = lanes.interactive.queued + lanes.throughput.queued;
  if (engine.state !== "ready") {
    const why = engine.restarts && engine.last_failure ? `: ${engine.last_failure}` : "";
    const go_on = engine.waiting ? ` ${people(engine.waiting)} for it, and will go on.` : "";
    return ["lost", `The engine is ${engine.restarts ? "being restarted" : "starting"}${why}.${go_on}`];
  }
  if (engine.draining) return ["busy", `Draining: ${running} still running.`];
  if (engine.not_ready.length) return ["lost", `Not ready: ${engine.not_ready.join("; ")}`];
  if (!running && !waiting) return ["ready", "Ready. Nothing is running."];
  return ["busy", `Ready. ${count(running)} running, ${count(waiting)} waiting.`];
}

const people = (n) => (n === 1 ? "One request waits" : `${count(n)} requests wait`);

function status(kind, words) {
  // How many run changes all the time: a screen reader hears only of a change in kind.
  if (byId("status").dataset.kind !== kind && (kind === "lost" || byId("status").dataset.kind === "lost")) say(byId("announced"), words);
  byId("status").dataset.kind = kind;
  say(byId("status-text"), words);
}

function notice(words) {
  byId("notice").hidden = words === null;
  say(byId("notice"), words ?? "");
}

function openKeys() {
  byId("admin-key").value = keys.admin;
  byId("client-key").value = keys.client;
  byId("keys").returnValue = "";
  if (!byId("keys").open) byId("keys").showModal();
}

byId("keys-open").addEventListener("click", openKeys);
byId("keys").addEventListener("close", () => {
  if (byId("keys").returnValue !== "use") return;
  keys.use(byId("admin-key").value.trim(), byId("client-key").value.trim());
  notice(null);
  feed.start();
});

feed.start();
