// What the queue and the player share: the newest truth of the server, and which result is being looked at.

const listeners = new Set();

// `running`, `waiting` and `finished.jobs` are views of jobs; `jobs` is all of them. `ended` are the latest that have ended, whatever is searched for. `selected` is the job whose result
// is compared, `watched` the one whose finished part plays instead.
export const store = {
  running: [], waiting: [], finished: { jobs: [], number: 0, search: "" }, ended: [], space: null, jobs: [], selected: null, watched: null,
  isKnown: false,
};

export function listen(listener) {
  listeners.add(listener);
  listener(store);
}

// Takes over the parts that have changed.
export function setParts({ running, waiting, finished, ended, space }) {
  const known = new Set(store.jobs.map((job) => job.id));
  const before = new Map(store.jobs.map((job) => [job.id, job]));
  Object.assign(store, { running: running ?? store.running, waiting: waiting ?? store.waiting });
  Object.assign(store, { finished: finished ?? store.finished, ended: ended ?? store.ended, space: space ?? store.space });
  store.jobs = [...store.running, ...store.waiting, ...store.finished.jobs];
  const current = store.jobs.find((job) => job.id === store.selected);
  const done = store.jobs.filter((job) => job.preview);
  if (!current?.preview) {
    const fresh = done.find((job) => known.has(job.id) && !before.get(job.id).preview);
    store.selected = (fresh ?? done[0])?.id ?? null;
  }
  if (!store.jobs.some((job) => job.id === store.watched && job.part)) {
    if (store.watched && store.jobs.some((job) => job.id === store.watched && job.preview)) store.selected = store.watched;
    store.watched = null;
  }
  store.isKnown = true;
  tell();
}

export function select(id) {
  Object.assign(store, { selected: id, watched: null });
  tell();
}

export function watchPart(id) {
  store.watched = id;
  tell();
}

function tell() {
  for (const listener of listeners) listener(store);
}
