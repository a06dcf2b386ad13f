// One row of a job: made once, then brought up to date in place, so that focus and progress bars do not jump.

import { make, makeBar, setHidden, setText } from "./dom.js";

const ASK_MS = 5000;

// `does` has what the buttons do: act(action, id, choice), compare(id), watch(id), form(action, id).
export function makeRow(job, does) {
  const { id } = job;
  const button = (label, onclick, symbol = "") =>
    make(
      "button", { type: "button", "aria-label": `${label} ${job.name}`, ...(symbol ? { title: label, class: "symbol" } : {}), onclick },
      symbol || label,
    );
  const row = {
    id,
    picture: make("img", { alt: "", class: "thumb", draggable: "false" }),
    owner: make("span", { class: "owner" }),
    facts: make("span", { class: "facts" }),
    text: make("span", { class: "text" }),
    cost: make("span", { class: "cost" }),
    percent: make("span", { class: "percent" }),
    bar: makeBar(`Progress of ${job.name}`),
    show: button("Compare", () => does.compare(id)),
    watch: button("Watch part", () => does.watch(id)),
    download: make("a", { class: "button", download: "", "aria-label": `Download ${job.name}` }, "Download"),
    up: button("Move up", () => does.act("up", id), "↑"),
    down: button("Move down", () => does.act("down", id), "↓"),
    pause: button("Pause", () => does.act("pause", id)),
    resume: button("Continue", () => does.act("resume", id)),
    cancel: button("Cancel", () => (row.hasPart ? askToKeep(row, does) : does.act("cancel", id))),
    retry: button("Try again", () => does.act("retry", id)),
    remove: button("Remove", () => askOnce(row.remove, job, () => does.act("remove", id))),
    more: button("Details of", () => toggleDetails(row), "⋯"),
    first: button("Run before all others", () => does.act("priority", id, { priority: 1 })),
    usual: button("Usual priority", () => does.act("priority", id, { priority: 0 })),
    question: make("div", { class: "question", role: "group", "aria-label": "Keep the finished part?", hidden: true }),
    log: make("a", { class: "button", download: "", "aria-label": `Log of ${job.name}` }, "Log"),
    settings: make("dl", {}),
    stays: make("p", {}),
  };
  row.more.setAttribute("aria-expanded", "false");
  row.details = make(
    "div", { class: "details", hidden: true }, row.settings, row.stays,
    make(
      "div", { class: "actions" },
      button("Duplicate", () => does.act("duplicate", id)),
      button("Use these settings", () => does.form("use", id)),
      button("Run with the form's settings", () => does.form("again", id)),
      row.first, row.usual, row.log,
    ),
  );
  row.element = make(
    "li", { "data-job": id },
    row.picture,
    make(
      "div", { class: "body" },
      make("div", { class: "line" }, make("span", { class: "name", title: job.name }, job.name), row.owner, row.facts),
      row.bar,
      make("div", { class: "line status" }, row.text, row.cost, row.percent),
    ),
    make(
      "div", { class: "actions" },
      row.show, row.watch, row.download, row.up, row.down, row.pause, row.resume, row.cancel, row.retry, row.remove, row.more,
    ),
    row.question,
    row.details,
  );
  return row;
}

export function showRow(row, job, { isSelected, canMoveUp, canMoveDown }) {
  row.hasPart = Boolean(job.part);
  row.canMove = job.canMove;
  const open = row.details.hidden ? "" : " open";
  row.element.className = job.status + (isSelected ? " selected" : "") + open;
  row.element.draggable = job.canMove && (canMoveUp || canMoveDown);
  if (job.thumbnail && row.picture.getAttribute("src") !== job.thumbnail) row.picture.src = job.thumbnail;
  setText(row.owner, job.owner ?? "");
  setText(row.facts, job.facts);
  setHidden(row.first, !job.owner || !job.canMove || job.isFirst);
  setHidden(row.usual, !job.owner || !job.canMove || !job.isFirst);
  setText(row.text, job.text);
  setText(row.cost, job.cost);
  setText(row.percent, job.status === "running" && job.percent !== null ? `${job.percent} %` : "");
  setHidden(row.bar, job.status !== "running");
  if (job.status === "running") row.bar.show(job.percent);
  setHidden(row.show, !job.preview);
  row.show.setAttribute("aria-pressed", String(isSelected));
  setHidden(row.watch, !job.part);
  setHidden(row.download, !job.download);
  if (job.download && row.download.getAttribute("href") !== job.download) row.download.href = job.download;
  setHidden(row.log, !job.log);
  if (job.log && row.log.getAttribute("href") !== job.log) row.log.href = job.log;
  setHidden(row.up, !canMoveUp && !canMoveDown);
  setHidden(row.down, !canMoveUp && !canMoveDown);
  setDisabled(row.up, !canMoveUp);
  setDisabled(row.down, !canMoveDown);
  setHidden(row.pause, !job.canPause);
  setHidden(row.resume, !job.canResume);
  setHidden(row.cancel, !job.canCancel);
  setHidden(row.retry, !job.canRetry);
  setHidden(row.remove, !job.canRemove || job.canCancel);
  if (!job.canCancel && !row.question.hidden) setHidden(row.question, true);
  showSettings(row, job);
}

// aria-disabled keeps the focus where it is when a job has come to the top or the bottom.
function setDisabled(button, isDisabled) {
  button.setAttribute("aria-disabled", String(isDisabled));
}

function showSettings(row, job) {
  const key = JSON.stringify(job.settings);
  if (row.settingsKey !== key) {
    row.settingsKey = key;
    row.settings.replaceChildren(...job.settings.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]));
  }
  setText(row.stays, job.staysUntil ? `Is removed on ${toDay(job.staysUntil)}.` : "");
}

function toDay(seconds) {
  return new Date(1000 * seconds).toLocaleDateString(undefined, { day: "numeric", month: "long", hour: "numeric", minute: "2-digit" });
}

function toggleDetails(row) {
  const isOpen = row.details.hidden;
  setHidden(row.details, !isOpen);
  row.element.classList.toggle("open", isOpen);
  row.more.setAttribute("aria-expanded", String(isOpen));
}

// A cancelled job may keep what is finished of it: that is asked, and the job goes on until there is an answer.
function askToKeep(row, does) {
  const answer = (label, onclick) => make("button", { type: "button", onclick: () => { setHidden(row.question, true); onclick(); } }, label);
  const keep = answer("Keep", () => does.act("cancel", row.id, { keep: true }));
  row.question.replaceChildren(
    make("span", {}, "Keep the finished part?"), keep, answer("Discard", () => does.act("cancel", row.id)),
    answer("Go on", () => row.cancel.focus()),
  );
  setHidden(row.question, false);
  keep.focus();
}

// A file that is deleted does not come back: the first press asks, a second one within a few seconds does it.
function askOnce(button, job, action) {
  if (button.dataset.asked) {
    action();
    return;
  }
  button.dataset.asked = "yes";
  setText(button, "Delete file?");
  button.setAttribute("aria-label", `Really delete ${job.name}`);
  setTimeout(() => {
    delete button.dataset.asked;
    setText(button, "Remove");
    button.setAttribute("aria-label", `Remove ${job.name}`);
  }, ASK_MS);
}
