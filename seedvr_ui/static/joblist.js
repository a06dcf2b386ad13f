// A list of rows that follows a list of jobs; rows that stay keep their focus, their open details and their place.

import { make } from "./dom.js";
import { makeRow, showRow } from "./row.js";

export function makeJobList(label, does) {
  const rows = new Map();
  const element = make("ol", { class: "jobs", tabindex: "-1", "aria-label": label });
  let dragged = null;

  element.addEventListener("dragstart", (event) => {
    dragged = event.target.closest?.("li")?.dataset.job ?? null;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", dragged ?? "");
  });
  element.addEventListener("dragover", (event) => {
    const over = event.target.closest("li");
    if (!dragged || !over || !rows.get(over.dataset.job)?.canMove) return;
    event.preventDefault();
    for (const row of rows.values()) row.element.classList.toggle("target", row.element === over);
  });
  element.addEventListener("drop", (event) => {
    const over = event.target.closest("li");
    if (!dragged || !over) return;
    event.preventDefault();
    if (over.dataset.job !== dragged) does.act("before", dragged, { before: over.dataset.job });
  });
  element.addEventListener("dragend", () => {
    dragged = null;
    for (const row of rows.values()) row.element.classList.remove("target");
  });

  function show(jobs, selected) {
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) {
      if (ids.has(id)) continue;
      if (row.element.contains(focused)) element.focus();
      row.element.remove();
      rows.delete(id);
    }
    const movable = jobs.filter((job) => job.canMove).map((job) => job.id);
    jobs.forEach((job, index) => {
      if (!rows.has(job.id)) rows.set(job.id, makeRow(job, does));
      const row = rows.get(job.id);
      if (element.children[index] !== row.element) element.insertBefore(row.element, element.children[index] ?? null);
      const place = movable.indexOf(job.id);
      showRow(row, job, {
        isSelected: job.id === selected, canMoveUp: place > 0, canMoveDown: place >= 0 && place < movable.length - 1,
      });
    });
    if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true }); // moving loses it
  }

  return { element, show };
}
