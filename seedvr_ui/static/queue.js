// The queue: one row per job, updated in place so that focus and progress bars do not jump.

import { make, makeBar, setHidden, setText } from "./dom.js";
import { listen, select, setJobs } from "./store.js";

export function attach(element, props, trigger, watch) {
  const rows = new Map();
  const list = make("ol", { class: "jobs", tabindex: "-1" });
  const empty = make("p", { class: "empty" }, "Nothing in the queue. Files that you start run here one after another.");
  const count = make("span", { class: "count" });
  const news = make("div", { class: "sr-only", role: "status", "aria-live": "polite" });
  element.querySelector(".studio-queue").append(make("h2", {}, "Queue", count), empty, list, news);

  const act = (action, id) => trigger("click", { action, id });
  const update = () => { if (props.value?.jobs) setJobs(props.value.jobs); };
  watch("value", update);
  update();

  listen(({ jobs, selected }) => {
    setHidden(empty, jobs.length > 0);
    setHidden(list, jobs.length === 0);
    const active = jobs.filter((job) => job.canCancel).length;
    setText(count, active ? `${active} to do` : "");
    for (const [id, row] of rows) {
      if (jobs.some((job) => job.id === id)) continue;
      if (row.element.contains(document.activeElement)) list.focus();
      row.element.remove();
      rows.delete(id);
    }
    jobs.forEach((job, index) => {
      if (!rows.has(job.id)) rows.set(job.id, makeRow(job, act));
      const row = rows.get(job.id);
      if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
      if (row.status && row.status !== job.status) setText(news, `${job.name}: ${job.text}`);
      showRow(row, job, job.id === selected);
    });
  });
}

function makeRow(job, act) {
  const button = (label, onclick, kind = "") =>
    make("button", { type: "button", class: kind, "aria-label": `${label} ${job.name}`, onclick }, label);
  const row = {
    picture: make("img", { alt: "", class: "thumb" }),
    facts: make("span", { class: "facts" }),
    text: make("span", { class: "text" }),
    percent: make("span", { class: "percent" }),
    bar: makeBar(`Progress of ${job.name}`),
    show: button("Compare", () => {
      select(job.id);
      document.getElementById("result").scrollIntoView({ block: "nearest" });
    }),
    download: make("a", { class: "button", download: "", "aria-label": `Download ${job.name}` }, "Download"),
    pause: button("Pause", () => act("pause", job.id)),
    resume: button("Continue", () => act("resume", job.id)),
    cancel: button("Cancel", () => act("cancel", job.id)),
    retry: button("Try again", () => act("retry", job.id)),
    remove: button("Remove", () => askOnce(row.remove, job, () => act("remove", job.id))),
  };
  row.element = make(
    "li", { "data-job": job.id },
    row.picture,
    make(
      "div", { class: "body" },
      make("div", { class: "line" }, make("span", { class: "name", title: job.name }, job.name), row.facts),
      row.bar,
      make("div", { class: "line status" }, row.text, row.percent),
    ),
    make("div", { class: "actions" }, row.show, row.download, row.pause, row.resume, row.cancel, row.retry, row.remove),
  );
  return row;
}

// A file that is deleted does not come back: the first press asks, a second one within a few seconds does it.
const ASK_MS = 5000;

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

function showRow(row, job, isSelected) {
  row.status = job.status;
  row.element.className = job.status + (isSelected ? " selected" : "");
  if (job.thumbnail && row.picture.getAttribute("src") !== job.thumbnail) row.picture.src = job.thumbnail;
  setText(row.facts, job.facts);
  setText(row.text, job.text);
  setText(row.percent, job.status === "running" && job.percent !== null ? `${job.percent} %` : "");
  setHidden(row.bar, job.status !== "running");
  if (job.status === "running") row.bar.show(job.percent);
  setHidden(row.show, !job.preview);
  row.show.setAttribute("aria-pressed", String(isSelected));
  setHidden(row.download, !job.download);
  if (job.download && row.download.getAttribute("href") !== job.download) row.download.href = job.download;
  setHidden(row.pause, !job.canPause);
  setHidden(row.resume, !job.canResume);
  setHidden(row.cancel, !job.canCancel);
  setHidden(row.retry, !job.canRetry);
  setHidden(row.remove, !job.canRemove);
}
