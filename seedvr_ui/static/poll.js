// The one timer of the page: asks the server what has changed, and what a button wants done.
// Each request stands alone and is short, so a page that was cut off by whatever comes back with the next one.

const BUSY_MS = 1000; // something runs or waits
const CALM_MS = 3000;
const HIDDEN_MS = 15000; // for the notification and the title only
const LIMIT_MS = 9000;
const LOST_AFTER = 2; // failures in a row before the page says so
const RETRY_MS = [1000, 1000, 2000, 3000, 5000];
const PARTS = ["running", "waiting", "finished", "ended", "space"];

const state = { tags: {}, search: "", limit: 0, everybody: false, failures: 0, timer: 0, asking: null, isRunning: true, isWaiting: true };
let tell = () => {};
let tellTrouble = () => {};

// `onChange(parts)` gets what has changed; `onTrouble("", "lost" or "ended")` whether the server can be reached.
export function start(limit, onChange, onTrouble) {
  state.limit = limit;
  tell = onChange;
  tellTrouble = onTrouble;
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  for (const name of ["online", "focus", "pageshow", "studio:refresh"]) window.addEventListener(name, () => refresh());
  refresh();
}

// Asks now. An answer that is under way is not waited for: it may be older than what the caller has just done.
export function refresh() {
  clearTimeout(state.timer);
  state.asking?.abort();
  ask();
}

export function look({ search = state.search, limit = state.limit, everybody = state.everybody }) {
  if (everybody === state.everybody) delete state.tags.finished; // another question
  else state.tags = {};
  Object.assign(state, { search, limit, everybody });
  refresh();
}

export const shown = () => ({ search: state.search, limit: state.limit });

// Does what a button says. Resolves to "" or the server's sentence about why not.
export async function act(action, id, choice = {}) {
  try {
    const response = await send(`studio/jobs/${id}/do/${action}`, {
      method: "POST", body: JSON.stringify(choice), headers: { "content-type": "application/json" },
    });
    if (response.ok) return "";
    const reply = await response.json().catch(() => ({}));
    return reply.error ?? (typeof reply.detail === "string" ? reply.detail : "The server could not do this; try again.");
  } catch {
    return "The server cannot be reached; try again when the connection is back.";
  } finally {
    refresh();
  }
}

export function send(address, options = {}) {
  return fetch(new URL(address, document.baseURI), { cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS), ...options });
}

async function ask() {
  const asking = (state.asking = new AbortController());
  const limit = setTimeout(() => asking.abort(), LIMIT_MS);
  try {
    const query = new URLSearchParams({
      tags: PARTS.map((name) => state.tags[name] ?? "").join(","), search: state.search, limit: String(state.limit),
      ...(state.everybody ? { everybody: "true" } : {}),
    });
    const response = await send(`studio/snapshot?${query}`, { signal: asking.signal });
    if (response.status === 401 || response.status === 403) return void finish(asking, "ended");
    if (!response.ok) throw new Error(`status ${response.status}`);
    const changes = response.status === 204 ? null : await response.json();
    if (state.asking !== asking) return;
    state.failures = 0;
    tellTrouble("");
    if (changes) {
      state.tags = changes.tags;
      if (changes.running) state.isRunning = changes.running.length > 0;
      if (changes.waiting) state.isWaiting = changes.waiting.length > 0;
      tell(changes);
    }
  } catch {
    if (state.asking !== asking) return;
    state.failures += 1;
  } finally {
    clearTimeout(limit);
    if (state.asking === asking) finish(asking, state.failures >= LOST_AFTER ? "lost" : null);
  }
}

function finish(asking, trouble) {
  if (state.asking !== asking) return;
  state.asking = null;
  if (trouble) tellTrouble(trouble);
  clearTimeout(state.timer);
  state.timer = setTimeout(ask, waitMs());
}

function waitMs() {
  if (document.hidden) return HIDDEN_MS;
  if (state.failures) return RETRY_MS[Math.min(state.failures, RETRY_MS.length) - 1];
  return state.isRunning || state.isWaiting ? BUSY_MS : CALM_MS;
}
