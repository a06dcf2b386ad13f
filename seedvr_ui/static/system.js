// What the doctor has found, the worst first, and a button that examines the machine again.

import { make, setText } from "./dom.js";

const EVERY_MS = 1000;
const LIMIT_MS = 15000;
const ORDER = ["error", "warning", "note", "ok"];
const button = document.getElementById("examine");
const state = document.getElementById("state");
const list = document.getElementById("findings");
let shown = "";

const ask = (address, options = {}) =>
  fetch(new URL(address, document.baseURI), { cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS), ...options });

function show(findings) {
  const key = JSON.stringify(findings);
  if (key === shown) return;
  shown = key;
  const sorted = findings.toSorted((one, other) => ORDER.indexOf(one.severity) - ORDER.indexOf(other.severity));
  list.replaceChildren(...sorted.map((finding) => make(
    "li", { class: finding.severity },
    make("span", { class: "severity" }, finding.severity), make("span", {}, finding.sentence),
    ...(finding.action ? [make("p", { class: "action" }, finding.action)] : []),
  )));
}

function tell({ report, coming }) {
  button.setAttribute("aria-disabled", String(coming !== null));
  if (coming !== null) {
    show(coming);
    setText(state, "Examining …");
  } else if (report === null) {
    setText(state, "This machine was not examined yet.");
  } else {
    show(report.findings);
    setText(state, `Examined on ${new Date(1000 * report.at).toLocaleString()}`);
  }
  return coming !== null;
}

async function watch() {
  let isGoing = false;
  try {
    const answer = await ask("system/report");
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error ?? content.detail);
    isGoing = tell(content);
  } catch (error) {
    setText(state, `The server does not answer: ${error.message}`);
    isGoing = true;
  }
  if (isGoing) setTimeout(watch, EVERY_MS);
}

button.addEventListener("click", async () => {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  setText(state, "Examining …");
  await ask("system/examine", { method: "POST" }).catch((error) => setText(state, `The server does not answer: ${error.message}`));
  watch();
});
watch();
