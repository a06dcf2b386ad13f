// The queue and the finished jobs below it: lists, search, what is used, and whether the server can be reached.

import { whoAmI } from "./account.js";
import { make, setHidden, setText, toSize } from "./dom.js";
import { makeJobList } from "./joblist.js";
import { follow, makeBell } from "./notify.js";
import { act, look, shown, start } from "./poll.js";
import { listen, select, setParts, watchPart } from "./store.js";

const PAGE = 50;
const PHONE_PAGE = 5; // the result must stay within reach of a thumb
const TYPING_MS = 300;
const TROUBLE = {
  lost: "The connection to the server is lost. Jobs go on there; this page comes back by itself.",
  ended: "This page is no longer signed in. Your jobs go on; reload the page to see them.",
};

export function attach(element, props, trigger) {
  const isPhone = window.matchMedia("(max-width: 860px)").matches;
  const parts = makeParts();
  const tell = (sentence) => setText(parts.alert, sentence);
  const does = {
    act: async (action, id, choice) => tell(await act(action, id, choice)),
    compare: (id) => { select(id); showResult(); },
    watch: (id) => { watchPart(id); showResult(); },
    form: (action, id) => trigger("click", { action, id }),
  };
  const onNews = (job) => setText(parts.news, `${job.name}: ${job.text}`);
  const queue = makeJobList("Queue", does);
  const history = makeJobList("Finished", does);
  const state = new Map(); // id -> status, to tell what ends; rows move from one list to the other
  parts.queue.replaceWith(queue.element);
  parts.history.replaceWith(history.element);
  element.querySelector(".studio-queue").append(parts.element);

  let typing = 0;
  parts.search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => look({ search: parts.search.value.trim(), limit: isPhone ? PHONE_PAGE : PAGE }), TYPING_MS);
  });
  parts.everybody.firstChild.addEventListener("change", (event) => look({ everybody: event.target.checked }));
  whoAmI().then(({ isAdmin }) => setHidden(parts.everybody, !isAdmin), () => {});
  parts.more.addEventListener("click", () => look({ limit: shown().limit + PAGE }));

  listen(({ running, waiting, finished, space, selected, jobs, isKnown }) => {
    const unfinished = [...running, ...waiting];
    for (const job of jobs) {
      if (state.has(job.id) && state.get(job.id) !== job.status) onNews(job);
      state.set(job.id, job.status);
    }
    queue.show(unfinished, selected);
    history.show(finished.jobs, selected);
    const hasHistory = finished.number > 0 || Boolean(finished.search) || Boolean(parts.search.value);
    setHidden(parts.empty, !isKnown || unfinished.length > 0 || hasHistory);
    setHidden(queue.element, unfinished.length === 0);
    setHidden(parts.past, !hasHistory);
    const active = unfinished.filter((job) => job.canCancel).length;
    setText(parts.count, active ? `${active} to do` : "");
    setText(parts.number, finished.number ? String(finished.number) : "");
    setText(parts.none, finished.number === 0 && finished.search ? `Nothing finished has “${finished.search}” in its name, state or settings.` : "");
    setHidden(parts.more, finished.jobs.length >= finished.number);
    setText(parts.more, `Show more (${finished.number - finished.jobs.length})`);
    if (space) setText(parts.space, toWords(space));
  });

  follow();
  start(isPhone ? PHONE_PAGE : PAGE, setParts, (trouble) => {
    setText(parts.trouble, TROUBLE[trouble] ?? "");
    element.classList.toggle("is-lost", Boolean(trouble));
  });
}

function makeParts() {
  const parts = {
    count: make("span", { class: "count" }),
    trouble: make("p", { class: "trouble", role: "status" }),
    alert: make("p", { class: "alert", role: "alert" }),
    everybody: make("label", { class: "everybody", hidden: true }, make("input", { type: "checkbox" }), "All users"),
    empty: make("p", { class: "empty", hidden: true }, "Nothing in the queue. Files that you start run here one after another."),
    queue: make("ol"),
    history: make("ol"),
    number: make("span", { class: "count" }),
    search: make("input", { type: "search", placeholder: "Search", maxlength: "200", "aria-label": "Search finished jobs by name, state or setting" }),
    none: make("p", { class: "none" }),
    more: make("button", { type: "button", class: "more" }),
    space: make("p", { class: "space" }),
    news: make("div", { class: "sr-only", role: "status", "aria-live": "polite" }),
  };
  parts.past = make(
    "section", { class: "past", "aria-label": "Finished", hidden: true },
    make("div", { class: "line head" }, make("h3", {}, "Finished", parts.number), parts.search),
    parts.none, parts.history, parts.more, parts.space,
  );
  parts.element = make(
    "div", { class: "panel" },
    make("div", { class: "line title" }, make("h2", {}, "Queue", parts.count), parts.everybody, makeBell()),
    parts.trouble, parts.alert, parts.empty,
    make("div", { class: "scroll" }, parts.queue, parts.past),
    parts.news,
  );
  return parts;
}

function showResult() {
  document.getElementById("result").scrollIntoView({ block: "nearest" });
}

function toWords({ used, limit, keepDays }) {
  const days = keepDays === 1 ? "a day" : `${keepDays} days`;
  return `Finished jobs stay ${days}, results that nobody has looked at twice as long. ${toSize(used)} of ${toSize(limit)} used.`;
}
