// The drop zone: takes files, links and files of the server, shows how far each is, and tells Python which are ready.
// The server knows how much of a file has arrived, so a lost connection or a reload costs a moment, not the upload.

import { make, makeBar, setHidden, setText, toSize, toSpan } from "./dom.js";
import { call, fingerprint, send } from "./send.js";
import { makeFolderList, makeLinkField } from "./sources.js";

const ACCEPT = "video/*,image/*,.mkv,.mov,.avi,.ts,.m2ts,.mts,.vob,.wmv,.flv,.mxf,.webm,.tif,.tiff,.webp,.avif";
const ANSWER_LIMIT_MS = 15000;
const LOOK_EVERY_MS = 700;
const MAX_AT_ONCE = 2;

// One per file, in the order of choice. `state`: waiting (for its turn), sending, working (the server checks or fetches
// it), ready, bad, interrupted (the file has to be chosen again), stopped (the file is here), submitted, gone.
const rows = [];
let zone = null; // set by attach
let isLooking = false;
let changed = makeSignal();

export function attach(element, props, trigger, watch) {
  const list = make("ul", { class: "files", "aria-label": "Chosen files" });
  const alert = make("p", { class: "alert", role: "alert" });
  const status = make("p", { class: "waiting", role: "status" });
  const input = make("input", {
    type: "file", multiple: true, accept: ACCEPT, class: "hidden-input", "aria-label": "Choose videos or images",
    onchange: () => { addFiles(input.files); input.value = ""; },
  });
  const target = make(
    "label", { class: "zone" }, input, make("strong", {}, "Drop videos or images here"),
    make("span", {}, "or choose files from this device"),
  );
  zone = { list, alert, status, target, tell: () => { props.value = value(); } };
  const say = (text) => setText(alert, text);
  element.querySelector(".studio-drop").append(target, makeLinkField(addFromServer, say), alert, status, list);

  let depth = 0; // dragenter and dragleave also fire for children
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  target.addEventListener("dragenter", () => { depth += 1; target.classList.add("over"); });
  target.addEventListener("dragleave", () => { depth -= 1; target.classList.toggle("over", depth > 0); });
  window.addEventListener("dragover", (event) => { if (isFiles(event)) event.preventDefault(); });
  window.addEventListener("drop", (event) => {
    if (!isFiles(event)) return;
    event.preventDefault(); // a file that misses the zone must not replace the page
    depth = 0;
    target.classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
  watch("value", () => answer(props.value));
  window.addEventListener("beforeunload", (event) => {
    if (isSending()) event.preventDefault(); // else nothing stops
  });
  keepPage();
  restore();
}

const isSending = () => rows.some((row) => row.state === "waiting" || row.state === "sending");

// When the server is back after a restart, Gradio loads the page anew. That would lose the files that are on their way,
// which only the person at the browser can choose again, so until they have arrived its question for the server is not
// answered. It goes on asking every two seconds.
function keepPage() {
  const { fetch } = window;
  window.fetch = (...request) => {
    const url = String(request[0]?.url ?? request[0]);
    return isSending() && /\/app_id$/.test(url) ? Promise.reject(new TypeError("uploads come first")) : fetch(...request);
  };
}

// Resolves when no upload is under way, with the value for Python. Start awaits it.
export async function settled() {
  setText(zone.status, rows.some(isPending) ? "Starts as soon as the upload is complete." : "");
  while (rows.some(isPending)) await changed.promise;
  setText(zone.status, "");
  const chosen = { ...value(), repeated: rows.some((row) => row.state === "submitted") };
  for (const row of rows.filter((candidate) => candidate.state === "ready")) {
    row.state = "submitted"; // a second press must not send it again
    setTimeout(() => giveBack(row), ANSWER_LIMIT_MS);
  }
  return chosen;
}

function giveBack(row) {
  if (row.state === "submitted") row.state = "ready";
}

const isPending = (row) => ["waiting", "sending", "working"].includes(row.state);

function makeSignal() {
  const signal = {};
  signal.promise = new Promise((resolve) => { signal.give = resolve; });
  return signal;
}

function setState(row, state) {
  row.state = state;
  row.element.className = state;
  const old = changed;
  changed = makeSignal();
  old.give();
}

function value() {
  return { ready: rows.filter((row) => row.state === "ready").map((row) => row.id) };
}

function answer(reply) {
  if (!reply?.answer) return; // our own value coming back
  setText(zone.alert, reply.message ?? "");
  for (const id of reply.taken ?? []) {
    const row = rows.find((candidate) => candidate.id === id);
    if (row) drop(row);
  }
  rows.forEach(giveBack);
}

// After a reload: whole files are ready again, what the server does goes on, and files that this browser was sending
// wait for the same file to be chosen once more.
async function restore() {
  const { uploads, hasFolder } = await persist(() => call("GET", "uploads"));
  if (hasFolder) zone.target.nextElementSibling.after(makeFolderList(addFromServer, (text) => setText(zone.alert, text)));
  for (const upload of uploads) {
    if (rows.some((row) => row.id === upload.id)) continue;
    const row = addRow(upload.name, upload.size);
    Object.assign(row, { id: upload.id, fingerprint: upload.fingerprint });
    show(row, upload);
  }
  look();
}

function addFiles(files) {
  for (const file of files) {
    const mark = fingerprint(file);
    const old = rows.find((row) => ["interrupted", "stopped"].includes(row.state) && row.fingerprint === mark);
    const row = old ?? addRow(file.name, file.size);
    Object.assign(row, { file, fingerprint: mark });
    wait(row);
  }
  setText(zone.alert, "");
}

function addFromServer(upload) {
  const row = addRow(upload.name, upload.size);
  row.id = upload.id;
  show(row, upload);
  look();
}

function addRow(name, size) {
  const row = { name, size, state: "waiting", id: null, file: null, fingerprint: null, stop: null };
  row.title = make("span", { class: "name", title: name }, name);
  row.note = make("span", { class: "note" });
  row.bar = makeBar(`Upload of ${name}`);
  row.again = make("button", { type: "button", class: "again", "aria-label": `Go on with ${name}`, onclick: () => wait(row) }, "Go on");
  const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, title: "Remove", onclick: () => discard(row) }, "×");
  row.element = make("li", {}, make("div", { class: "line" }, row.title, row.again, remove), row.bar, row.note);
  setHidden(row.again, true);
  row.bar.show(0);
  rows.push(row);
  zone.list.append(row.element);
  return row;
}

function drop(row) {
  rows.splice(rows.indexOf(row), 1);
  row.element.remove();
  row.stop?.();
  setState(row, "gone");
  zone.tell();
  sendNext();
}

function discard(row) {
  const { id } = row;
  drop(row);
  if (id) call("DELETE", `uploads/${id}`).catch(() => {}); // the age limit removes what could not be removed now
}

function wait(row) {
  setState(row, "waiting");
  setText(row.note, "Waiting");
  row.note.removeAttribute("role");
  setHidden(row.again, true);
  setHidden(row.bar, false);
  sendNext();
}

function sendNext() {
  for (const row of rows.filter((candidate) => candidate.state === "waiting")) {
    if (rows.filter((candidate) => candidate.state === "sending").length >= MAX_AT_ONCE) return;
    begin(row);
  }
}

function begin(row) {
  setState(row, "sending");
  setText(row.note, "Starting");
  const isFree = (id) => !rows.some((other) => other !== row && other.id === id);
  row.stop = send(row.file, row.id, isFree, {
    begin: (id) => {
      row.id = id;
      if (row.state === "gone") call("DELETE", `uploads/${id}`).catch(() => {});
    },
    progress: (sent, rate) => showProgress(row, sent, rate, "Uploading"),
    lost: () => setText(row.note, "The connection was lost; trying again"),
    end: () => {
      if (row.state === "gone") return;
      setState(row, "working");
      showCheck(row);
      sendNext();
      look();
    },
    fail: (reason, canGoOn) => {
      if (row.state === "gone") return;
      if (canGoOn) stopRow(row, "The upload was interrupted. Press “Go on” to continue it.");
      else show(row, { error: reason || "The server did not accept this file; choose another one." });
      sendNext();
    },
  });
}

function stopRow(row, text) {
  setState(row, "stopped");
  setText(row.note, text);
  setHidden(row.again, false);
}

function showCheck(row) {
  row.bar.show(null);
  setText(row.note, "Checking the file");
}

function showProgress(row, received, rate, word) {
  if (row.state === "gone") return;
  const isKnown = row.size !== null && row.size > 0;
  row.bar.show(isKnown ? (100 * received) / row.size : null);
  const parts = [`${word}, ${toSize(received)}${isKnown ? ` of ${toSize(row.size)}` : ""}`];
  if (rate) parts.push(`${toSize(rate)}/s`);
  if (rate && isKnown) parts.push(`${toSpan((row.size - received) / rate)} left`);
  setText(row.note, parts.join(" · "));
}

// What the server says about an upload that this browser is not sending.
function show(row, upload) {
  if (upload.working) return void showWork(row, upload);
  setState(row, upload.ready ? "ready" : upload.error ? "bad" : "interrupted");
  row.bar.show(100);
  setHidden(row.bar, true);
  setText(row.note, upload.ready ? upload.facts : upload.error || "Interrupted. Choose the same file again to continue.");
  if (upload.error) row.note.setAttribute("role", "alert");
  zone.tell();
}

function showWork(row, upload) {
  if (row.state !== "working") setState(row, "working");
  row.size = upload.size;
  if (upload.name !== row.name) setText(row.title, upload.name);
  if (upload.size !== null && upload.received === upload.size) return void showCheck(row);
  const now = performance.now();
  const rate = row.seen && upload.received > row.seen.received ? (1000 * (upload.received - row.seen.received)) / (now - row.seen.now) : null;
  row.seen = { received: upload.received, now };
  showProgress(row, upload.received, rate, upload.origin === "folder" ? "Copying" : "Fetching");
}

// Asks what has become of the files that the server works on, until it works on none.
async function look() {
  if (isLooking) return;
  isLooking = true;
  const working = () => rows.filter((row) => row.state === "working");
  while (working().length) {
    const asked = working(); // one that is added while the server answers is not in its answer
    const { uploads } = await persist(() => call("GET", "uploads"));
    for (const row of asked.filter((candidate) => candidate.state === "working")) {
      const upload = uploads.find((candidate) => candidate.id === row.id);
      show(row, upload ?? { error: "This upload no longer exists; choose the file again." });
    }
    if (working().length) await pause(LOOK_EVERY_MS);
  }
  isLooking = false;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function persist(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch {
      await pause(4 * LOOK_EVERY_MS);
    }
  }
}
