// What the queue and the player share: the newest snapshot of the server, and which result is being looked at.

const listeners = new Set();
export const store = { jobs: [], selected: null };

export function listen(listener) {
  listeners.add(listener);
  listener(store);
}

export function setJobs(jobs) {
  const known = new Set(store.jobs.filter((job) => job.preview).map((job) => job.id));
  store.jobs = jobs;
  const current = jobs.find((job) => job.id === store.selected);
  if (!current || !current.preview) {
    const done = jobs.filter((job) => job.preview);
    store.selected = (done.find((job) => !known.has(job.id)) ?? done[0])?.id ?? null;
  }
  tell();
}

export function select(id) {
  store.selected = id;
  tell();
}

function tell() {
  for (const listener of listeners) listener(store);
}
