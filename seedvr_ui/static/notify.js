// Tells that a job has ended: a notification of the browser if the user wants it, and a number in the title else.
// What was told is remembered across tabs and reloads, so no job is told twice and none that ended before.

import { make } from "./dom.js";
import { listen } from "./store.js";

const WANTED = "seedvr_notify";
const TOLD_UNTIL = "seedvr_told_until"; // seconds; jobs that ended before are not news
const WORDS = { succeeded: "is done", failed: "failed", cancelled: "was cancelled" };

let isFirst = true;
let unseen = 0;
let title = "";

// A checkbox; permission is asked when the user ticks it, never before.
export function makeBell() {
  const box = make("input", { type: "checkbox" });
  const hint = make("span", {}, "Tell me when it is done");
  const bell = make("label", { class: "bell" }, box, hint);
  if (!("Notification" in window)) { // not a secure context, or a phone without it
    bell.hidden = true;
    return bell;
  }
  box.checked = isWanted();
  box.addEventListener("change", async () => {
    if (!box.checked) return write(WANTED, "");
    const permission = Notification.permission === "default" ? await Notification.requestPermission() : Notification.permission;
    box.checked = permission === "granted";
    write(WANTED, box.checked ? "yes" : "");
    if (!box.checked) hint.textContent = "This browser does not allow notifications here";
  });
  return bell;
}

export function follow() {
  title = document.title;
  document.addEventListener("visibilitychange", () => { if (!document.hidden) count(0); });
  listen(look);
}

async function look({ ended, isKnown }) {
  if (!isKnown) return;
  if (isFirst) { // what a page finds when it comes is not news
    isFirst = false;
    claim(ended);
    return;
  }
  if (!ended.some(isNews)) return;
  const claimed = navigator.locks ? await navigator.locks.request("seedvr-told", () => claim(ended)) : claim(ended);
  for (const job of claimed) tell(job);
}

const isNews = (job) => job.finishedAt > Number(read(TOLD_UNTIL) || 0);

// The jobs that nobody has told yet; from now on they count as told.
function claim(jobs) {
  const fresh = jobs.filter(isNews);
  if (fresh.length) write(TOLD_UNTIL, String(Math.max(...fresh.map((job) => job.finishedAt))));
  return fresh;
}

function tell(job) {
  if (job.status === "cancelled") return; // somebody has just done that
  if (document.hidden) count(unseen + 1);
  if (!isWanted()) return;
  try {
    const note = new Notification(`${job.name} ${WORDS[job.status]}`, { body: job.text, tag: job.id, icon: job.thumbnail || undefined });
    note.onclick = () => { window.focus(); note.close(); };
  } catch { // Chrome on Android has it for service workers only; the title tells it there
    if (!document.hidden) count(unseen);
  }
}

function count(number) {
  unseen = number;
  document.title = number ? `(${number}) ${title}` : title;
}

const isWanted = () => read(WANTED) === "yes" && "Notification" in window && Notification.permission === "granted";

function read(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch { // storage is switched off
    return "";
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // it is then forgotten at the next reload
  }
}
