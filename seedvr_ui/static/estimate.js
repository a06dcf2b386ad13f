// What the chosen files will take, as Python has worked it out, and what will not fit.

import { make } from "./dom.js";

const AGAIN_MS = 2500;

export function attach(element, props, trigger, watch) {
  const lines = make("div", { class: "lines", role: "status" });
  const warnings = make("div", { class: "warnings", role: "alert" });
  element.querySelector(".studio-estimate").append(lines, warnings);
  let timer = 0;
  const show = () => {
    const about = props.value ?? {};
    fill(lines, about.lines ?? []);
    fill(warnings, about.warnings ?? []);
    clearInterval(timer); // an equal answer is no change, so asking goes on until there is another one
    timer = about.pending ? setInterval(() => trigger("click", {}), AGAIN_MS) : 0;
  };
  watch("value", show);
  show();
}

function fill(element, sentences) {
  if (element.dataset.key === JSON.stringify(sentences)) return;
  element.dataset.key = JSON.stringify(sentences);
  element.replaceChildren(...sentences.map((sentence) => make("p", {}, sentence)));
}
