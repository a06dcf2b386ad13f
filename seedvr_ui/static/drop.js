// The drop zone: takes files, sends them in pieces that can be resumed, and tells Python which are ready.
// The server knows how much of a file has arrived, so a lost connection or a reload costs at most one piece.

import { make, makeBar, setHidden, setText, toSize } from "./dom.js";

const ACCEPT = "video/*,image/*,.mkv,.mov,.avi,.ts,.m2ts,.mts,.vob,.wmv,.flv,.mxf,.webm,.tif,.tiff,.webp,.avif";
const ANSWER_LIMIT_MS = 15000;
const RETRY_WAITS_MS = [500, 1000, 2000, 4000, 8000, 15000, 30000];

const rows = []; // one per file on the page, in the order of choice
let zone = null; // set by attach
let sending = Promise.resolve();

class Refusal extends Error {} // the server said no in a sentence; trying again would not help

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
  element.querySelector(".studio-drop").append(target, alert, status, list);

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
  window.addEventListener("beforeunload", (event) => { if (rows.some(isPending)) event.preventDefault(); });
  restore();
}

// Resolves when no upload is under way, with the value for Python. Start awaits it.
export async function settled() {
  setText(zone.status, rows.some(isPending) ? "Starts as soon as the upload is complete." : "");
  while (rows.some(isPending)) await sending;
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

const isPending = (row) => row.state === "waiting" || row.state === "sending";

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

// After a reload: whole files are ready again, unfinished ones wait for the same file to be chosen once more.
async function restore() {
  const { uploads } = await call("GET", "");
  for (const upload of uploads) {
    if (rows.some((row) => row.id === upload.id)) continue;
    const row = addRow(upload.name, upload.size);
    row.id = upload.id;
    finish(row, upload, "Interrupted. Choose the same file again to continue.");
  }
}

function addFiles(files) {
  for (const file of files) {
    const old = rows.find((row) => row.state === "interrupted" && row.name === file.name && row.size === file.size);
    if (old) drop(old);
    const row = addRow(file.name, file.size);
    sending = sending.then(() => send(row, file));
  }
  setText(zone.alert, "");
}

function addRow(name, size) {
  const row = { name, size, state: "waiting", id: null };
  row.note = make("span", { class: "note" }, "Waiting");
  row.bar = makeBar(`Upload of ${name}`);
  const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, title: "Remove", onclick: () => discard(row) }, "×");
  row.element = make(
    "li", {}, make("div", { class: "line" }, make("span", { class: "name", title: name }, name), remove), row.bar, row.note,
  );
  row.bar.show(0);
  rows.push(row);
  zone.list.append(row.element);
  return row;
}

function drop(row) {
  rows.splice(rows.indexOf(row), 1);
  row.element.remove();
  row.state = "gone";
  zone.tell();
}

function discard(row) {
  const { id } = row;
  drop(row);
  if (id) call("DELETE", `/${id}`).catch(() => {}); // the age limit removes what could not be removed now
}

async function send(row, file) {
  if (row.state !== "waiting") return;
  row.state = "sending";
  try {
    const fingerprint = `${file.lastModified}`;
    const begun = await persist(() => call("POST", "", JSON.stringify({ name: file.name, size: file.size, fingerprint })), row);
    row.id = begun.id;
    if (row.state === "gone") return void call("DELETE", `/${row.id}`).catch(() => {});
    let upload = begun;
    while (row.state === "sending" && upload.received < file.size) {
      showProgress(row, upload.received);
      const { received } = upload;
      upload = await persist(() => sendPiece(row, file, received, begun.piece), row);
    }
    if (upload.ready === undefined) { // the answer to the last piece was lost, not the piece
      const { uploads } = await persist(() => call("GET", ""), row);
      upload = uploads.find((candidate) => candidate.id === row.id) ?? {};
    }
    if (row.state === "sending") finish(row, upload, "The upload stopped. Choose the file again.");
  } catch (error) {
    if (row.state === "gone") return;
    finish(row, { error: error instanceof Refusal ? error.message : "The upload failed. Choose the file again to continue it." });
  }
}

async function sendPiece(row, file, received, piece) {
  const end = Math.min(file.size, received + piece);
  if (end === file.size) {
    row.bar.show(null);
    setText(row.note, "Sending the last part and checking the file");
  }
  return call("PUT", `/${row.id}?offset=${received}`, file.slice(received, end));
}

function showProgress(row, received) {
  row.bar.show(row.size ? (100 * received) / row.size : 0);
  setText(row.note, `Uploading, ${toSize(received)} of ${toSize(row.size)}`);
}

function finish(row, upload, unfinished = "") {
  row.state = upload.ready ? "ready" : upload.error ? "bad" : "interrupted";
  row.element.className = row.state;
  row.bar.show(100);
  setHidden(row.bar, true);
  setText(row.note, upload.ready ? upload.facts : upload.error || unfinished);
  if (upload.error) row.note.setAttribute("role", "alert");
  zone.tell();
}

// Repeats `attempt` while the connection is lost, with growing waits. A piece that had arrived after all is no error.
async function persist(attempt, row) {
  for (const wait of RETRY_WAITS_MS) {
    try {
      return await attempt();
    } catch (error) {
      if (error instanceof Refusal || row.state === "gone") throw error;
      if (error.received !== undefined) return error;
      setText(row.note, "The connection was lost; trying again");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
  return attempt();
}

async function call(method, path, body) {
  const headers = method === "POST" ? { "content-type": "application/json" } : {};
  const response = await fetch(new URL(`studio/uploads${path}`, document.baseURI), { method, body, headers });
  if (response.status >= 500) throw new Error(`status ${response.status}`);
  const reply = await response.json();
  if (response.ok) return reply;
  if (response.status === 409) throw Object.assign(new Error("offset"), { received: reply.received });
  throw new Refusal(reply.error ?? (typeof reply.detail === "string" ? reply.detail : "The server did not accept this file."));
}
