// Fetches and shows the pool's state once a second while the page is visible.

import { offerModels, startAsking } from "./ask.js";
import { byId, write } from "./elements.js";
import { content, hasToken, pool, useToken } from "./gateway.js";
import { drawPool } from "./pool.js";
import { startTeaching } from "./teach.js";

const EVERY_MS = 1000;
let timer = null;
let lastSeen = null;

async function poll() {
  clearTimeout(timer);
  timer = null;
  if (document.hidden) return;  // visibilitychange starts it again
  try {
    const answer = await pool();
    lastSeen = new Date();
    byId("token-form").hidden = true;
    drawPool(answer);
    offerModels(answer.models);
    showState(...stateOf(answer));
  } catch (problem) {
    if (problem.status === 401) return askForToken();
    const since = lastSeen ? `, last seen at ${lastSeen.toLocaleTimeString("en-GB")}` : "";
    const text = problem.status === 0 ? "Gateway unreachable" : problem.message ?? String(problem);
    showState("offline", text + since);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, EVERY_MS);
}

function stateOf({ is_ready: isReady, is_draining: isDraining, models, workers }) {
  if (isDraining) return ["draining", "Draining: finishing open requests, accepting no new ones"];
  if (isReady) return ["ready", "Ready"];
  if (!workers.length) return ["unready", "Not ready: no worker"];
  const waiting = models.filter((model) => !model.is_ready).map((model) => model.name);
  return ["unready", `Not ready: ${waiting.join(", ") || "starting"}`];
}

function showState(state, text) {
  document.body.dataset.state = state;
  write(byId("state"), text);
}

function askForToken() {
  showState("locked", "Locked");
  byId("token-form").hidden = false;
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value);
  byId("token-form").reset();
  write(byId("token-hint"), "That token was refused.");  // seen only if the form shows again
  poll();
});
document.querySelector("footer").addEventListener("click", async (event) => {
  const link = event.target.closest("a");
  if (!link || !(hasToken() || document.body.dataset.state === "locked")) return;
  event.preventDefault();  // the link's own request would carry no token
  try {
    location.assign(URL.createObjectURL(await content(link.href)));
  } catch (problem) {
    if (problem.status === 401) askForToken();
  }
});
document.addEventListener("visibilitychange", poll);
startTeaching();
startAsking((problem) => { if (problem.status === 401) askForToken(); });
poll();
