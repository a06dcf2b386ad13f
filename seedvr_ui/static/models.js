// The models of the server, in a dialog: what is installed, and for admins how it comes and goes.
// Everything is asked anew each second while the dialog is open; the work itself goes on without it.

import { make, makeBar, setHidden, setText, toSize } from "./dom.js";
import { send } from "./poll.js";

const LOOK_MS = 1000;
const WORDS = { download: "Downloading", verify: "Verifying", convert: "Converting", import: "Importing" };

let dialog = null;

export function makeModelsButton() {
  return make("button", { type: "button", class: "models-button", onclick: () => { (dialog ??= makeDialog()).open(); } }, "Models");
}

function makeDialog() {
  const rows = new Map(); // name -> { element, key, isAsking }
  const list = make("ul", { class: "models" });
  const problems = make("ul", { class: "problems", "aria-label": "Problems" });
  const space = make("p", { class: "note" });
  const alert = make("p", { class: "alert", role: "alert" });
  const news = make("p", { class: "note", role: "status" });
  const folder = make("input", { type: "text", placeholder: "/workspace/models", "aria-label": "Folder of the server with model files", spellcheck: "false" });
  const bar = makeBar("Import");
  const form = make("form", { class: "import" }, folder, make("button", { type: "submit" }, "Import folder"));
  const element = make("dialog", { class: "studio-dialog", "aria-label": "Models" },
    make("div", { class: "top" }, make("h2", {}, "Models"), make("button", { type: "button", onclick: () => element.close() }, "Close")),
    alert, list, problems, form, bar, news, space);
  document.body.append(element);
  let timer = 0;

  async function ask(address, options = {}) {
    let sentence = "";
    try {
      const response = await send(`api/v1/models${address}`, options);
      if (!response.ok) sentence = (await response.json().catch(() => ({}))).error ?? "The server could not do this; try again.";
    } catch {
      sentence = "The server cannot be reached; try again when the connection is back.";
    }
    setText(alert, sentence);
    look();
    return !sentence;
  }

  async function look() {
    clearTimeout(timer);
    try {
      const response = await send("api/v1/models");
      if (response.ok) show(await response.json());
    } catch {
      setText(alert, "The server cannot be reached; this list may be old.");
    }
    clearTimeout(timer);
    if (element.open) timer = setTimeout(look, LOOK_MS);
  }

  function show(found) {
    for (const model of found.models) {
      const row = rows.get(model.name) ?? { element: make("li"), key: "", isAsking: "" };
      if (!rows.has(model.name)) list.append(row.element);
      rows.set(model.name, row);
      showRow(row, model, found, ask);
    }
    const sentences = JSON.stringify(found.problems);
    if (problems.dataset.key !== sentences) {
      problems.dataset.key = sentences;
      problems.replaceChildren(...found.problems.map((sentence) => make("li", {}, sentence)));
    }
    setHidden(form, !found.may_change);
    const task = found.import_task;
    setHidden(bar, task?.status !== "running");
    bar.show(percentOf(task));
    setText(news, !task ? "" : task.status === "running" ? "Importing: files are verified first." : task.message);
    setText(space, `${toSize(found.free_bytes)} are free on the disk that downloads go to.${found.may_change ? "" : " Only admins change what is installed."}`);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!folder.value.trim()) return folder.focus();
    const options = { method: "POST", body: JSON.stringify({ folder: folder.value.trim() }), headers: { "content-type": "application/json" } };
    if (await ask("/import", options)) folder.value = "";
  });
  element.addEventListener("close", () => clearTimeout(timer));
  element.addEventListener("click", (event) => { if (event.target === element) element.close(); }); // beside it
  return { open: () => { setText(alert, ""); element.showModal(); look(); } };
}

function showRow(row, model, found, ask) {
  const key = JSON.stringify([model, found.may_change, row.isAsking]);
  if (row.key === key) return;
  row.key = key;
  const focused = row.element.contains(document.activeElement) ? document.activeElement.textContent : "";
  const again = () => { row.key = ""; showRow(row, model, found, ask); };
  row.element.dataset.model = model.name;
  row.element.replaceChildren(
    make("div", { class: "top" }, make("strong", {}, model.title), make("span", { class: "note" }, stateOf(model))),
    ...(model.task?.status === "running" ? [barOf(model)] : []),
    ...(model.task?.message ? [make("p", { class: model.task.status === "failed" ? "alert" : "note" }, model.task.message)] : []),
    ...(model.files.length ? [make("ul", { class: "model-files" }, ...model.files.map((file) => fileOf(file)))] : []),
    ...(found.may_change && !model.is_embedded ? [row.isAsking ? questionOf(row, model, ask, again) : actionsOf(row, model, ask, again)] : []),
  );
  const same = focused && [...row.element.querySelectorAll("button")].find((button) => button.textContent === focused);
  if (same) same.focus();
}

function stateOf(model) {
  const task = model.task;
  if (task?.status === "running") {
    const done = task.num_bytes ? ` ${toSize(task.done_bytes)} of ${toSize(task.num_bytes)}` : "";
    return `${WORDS[task.task]}${done}`;
  }
  if (model.is_embedded) return `part of the program, ${toSize(model.num_bytes)}`;
  if (model.is_ready) return `installed, ${toSize(model.num_bytes)}`;
  if (model.partial_bytes) return `paused: ${toSize(model.partial_bytes)} are here, ${toSize(model.missing_bytes)} to come`;
  return `not installed, ${toSize(model.missing_bytes)} to download`;
}

function fileOf(file) {
  const checked = file.is_verified === null ? "" : file.is_verified ? ", verified" : ", not verified yet";
  const shared = file.used_by.length ? `, shared with ${file.used_by.join(" and ")}` : "";
  return make("li", { title: file.path }, `${file.name}: ${toSize(file.num_bytes)}${checked}${shared}`);
}

function barOf(model) {
  const bar = makeBar(`${WORDS[model.task.task]} ${model.title}`);
  bar.show(percentOf(model.task));
  return bar;
}

const percentOf = (task) => (task?.num_bytes ? (100 * task.done_bytes) / task.num_bytes : null);

function actionsOf(row, model, ask, again) {
  const post = (action) => () => ask(`/${model.name}/${action}`, { method: "POST" });
  const question = (kind) => () => { row.isAsking = kind; again(); row.element.querySelector(".question button")?.focus(); };
  const button = (text, onclick) => make("button", { type: "button", onclick }, text);
  if (model.task?.status === "running") {
    return make("div", { class: "buttons" }, button(model.task.task === "download" ? "Pause" : "Stop", post("pause")));
  }
  const buttons = [];
  if (!model.is_ready) buttons.push(button(model.partial_bytes ? "Go on" : "Download", post("download")));
  if (model.files.length) buttons.push(button("Verify", post("verify")));
  if (model.is_ready && model.convert_saves_bytes) buttons.push(button(`Convert to bf16 (saves ${toSize(model.convert_saves_bytes)})`, post("convert")));
  if (model.original_bytes) buttons.push(button(`Delete float32 originals (${toSize(model.original_bytes)})`, question("originals")));
  if (model.files.length || model.partial_bytes) buttons.push(button("Delete", question("model")));
  return make("div", { class: "buttons" }, ...buttons);
}

function questionOf(row, model, ask, again) {
  const isAll = row.isAsking === "model";
  const text = isAll ? `Delete ${model.title}? Files that other models need stay.` : "Delete the float32 files? Their bf16 copies stay.";
  const end = () => { row.isAsking = ""; again(); };
  const remove = () => { end(); ask(`/${model.name}${isAll ? "" : "?originals=true"}`, { method: "DELETE" }); };
  return make("div", { class: "question" }, make("span", {}, text),
    make("button", { type: "button", onclick: end }, "Keep"), make("button", { type: "button", class: "danger", onclick: remove }, "Delete"));
}
