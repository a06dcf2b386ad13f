// Sends one file with the tus protocol, in parts that a proxy lets through, and goes on where an earlier try stopped.

import "./vendor/tus-4.3.1.min.js";

const { tus } = window;

const PART_BYTES = 8 * 2 ** 20;
const RETRY_WAITS_MS = [500, 1000, 2000, 3000, ...Array(120).fill(5000)]; // ten minutes, then a button
const RATE_WINDOW_S = 4;

export const address = (path) => new URL(`studio/${path}`, document.baseURI).toString();

// What a file is known by, here and on the server: another version of it must not continue this one.
export const fingerprint = (file) => [file.name, file.type, file.size, file.lastModified].join("|");

const idOf = (url) => new URL(url).pathname.split("/").pop();

// Asks the server for JSON; throws an Error with its sentence.
export async function call(method, path, body) {
  const headers = { "Tus-Resumable": "1.0.0", ...(body ? { "content-type": "application/json" } : {}) };
  const response = await fetch(address(path), { method, headers, body: body && JSON.stringify(body) });
  if (response.status === 204) return {};
  const text = await response.text();
  if (!response.ok) throw new Error(sentence(text) || "The server did not answer; try again in a moment.");
  return JSON.parse(text);
}

// Sends `file` until the server has all of it. `known` is the id of an unfinished upload of this file, or null; `isFree`
// says whether an id that this browser remembers may be gone on with. `on` hears:
//   begin(id)            the server knows the file now
//   progress(sent, rate) bytes, and bytes per second or null
//   lost()               the connection is lost; it is tried again
//   end(), fail(sentence, canGoOn)
// Returns stop(), which ends the sending and leaves the upload as it is.
export function send(file, known, isFree, on) {
  let upload = null;
  let isStopped = false;

  const start = (url) => {
    const rate = makeRate();
    upload = new tus.Upload(file, {
      // With an address of its own a failing request must not begin a second upload, which the library would do.
      endpoint: url ? null : address("uploads"),
      uploadUrl: url,
      chunkSize: PART_BYTES,
      retryDelays: RETRY_WAITS_MS,
      metadata: { filename: file.name, filetype: file.type, fingerprint: fingerprint(file) },
      fingerprint: async () => `seedvr|${address("uploads")}|${fingerprint(file)}`,
      removeFingerprintOnSuccess: true,
      onUploadUrlAvailable: () => {
        upload.options.endpoint = null;
        on.begin(idOf(upload.url));
      },
      onProgress: (sent) => on.progress(sent, rate(sent)),
      onShouldRetry: (error) => {
        const status = error.originalResponse?.getStatus() ?? 0;
        const isWorth = status < 400 || status >= 500 || [408, 409, 423, 425, 429].includes(status);
        if (isWorth) on.lost();
        return isWorth;
      },
      onSuccess: () => on.end(),
      onError: (error) => {
        const status = error.originalResponse?.getStatus() ?? 0;
        if (url && (status === 404 || status === 410)) start(null); // it has expired meanwhile
        else on.fail(sentence(error.originalResponse?.getBody()), status < 400 || status >= 500);
      },
    });
    if (url) return upload.start();
    return upload.findPreviousUploads().then((previous) => {
      const last = previous.filter(({ uploadUrl }) => uploadUrl && isFree(idOf(uploadUrl))).pop();
      if (isStopped) return;
      if (!last) return void upload.start();
      forget(upload, previous);
      start(address(`uploads/${idOf(last.uploadUrl)}`));
    });
  };

  start(known && address(`uploads/${known}`));
  return () => {
    isStopped = true;
    upload.abort();
  };
}

// The addresses that this browser remembers are taken out once one of them is used, so none is used twice.
function forget(upload, previous) {
  for (const { urlStorageKey } of previous) upload.options.urlStorage.removeUpload(urlStorageKey);
}

// The sentence in an answer, or "".
function sentence(text) {
  try {
    const reply = JSON.parse(text);
    return reply.error ?? (typeof reply.detail === "string" ? reply.detail : "");
  } catch {
    return "";
  }
}

// A function of the bytes sent so far that gives the bytes per second of the last seconds, or null at the beginning.
function makeRate() {
  const samples = [];
  return (sent) => {
    const now = performance.now() / 1000;
    samples.push({ now, sent });
    while (samples.length > 2 && now - samples[1].now > RATE_WINDOW_S) samples.shift();
    const span = now - samples[0].now;
    return span > 0.5 && sent > samples[0].sent ? (sent - samples[0].sent) / span : null;
  };
}
