// Plays what is finished of a job while the rest runs, or what a cancelled job has kept. The server joins it on request.

import { make, setHidden, setText } from "./dom.js";
import { send } from "./poll.js";

const ASK_MS = 700;

export class PartPlayer {
  constructor(onClose) {
    this.job = null;
    this.video = make("video", { controls: "", playsinline: "", preload: "auto" });
    this.note = make("p", { class: "waiting", role: "status" });
    this.newest = make("button", { type: "button", onclick: () => this.ask() }, "Show the newest");
    this.download = make("a", { class: "button", download: "" }, "Download part");
    const close = make("button", { type: "button", onclick: onClose }, "Close");
    this.element = make(
      "div", { class: "part-player", role: "group", "aria-label": "The finished part" }, make("div", { class: "box" }, this.video),
      this.note, make("div", { class: "bottom" }, this.newest, this.download, close),
    );
    this.video.addEventListener("error", () => {
      if (this.video.getAttribute("src")) setText(this.note, "This browser cannot play the part. The downloaded file is not affected.");
    });
  }

  // `job` is a view with a `part`, or null.
  show(job) {
    setHidden(this.newest, !job?.canCancel); // nothing is added to a job that has ended
    if (job?.id === this.job?.id) return;
    this.job = job;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    setHidden(this.download, true);
    setText(this.note, "");
    if (job) this.ask();
  }

  async ask() {
    const { job } = this;
    setText(this.note, "Putting the finished part together…");
    try {
      let response = await send(job.part, { method: "POST" });
      let part = await response.json();
      while (response.ok && part.making && this.job === job) {
        await new Promise((resolve) => setTimeout(resolve, ASK_MS));
        response = await send(job.part);
        part = await response.json();
      }
      if (this.job !== job) return;
      if (!response.ok) throw new Error(part.error ?? "");
      setText(this.note, part.message);
      if (part.video) this.play(part);
    } catch (error) {
      if (this.job === job) setText(this.note, (error.name === "Error" && error.message) || "The part could not be fetched; try again.");
    }
  }

  play(part) {
    const { video } = this;
    this.download.href = part.download;
    setHidden(this.download, false);
    if (video.getAttribute("src") === part.video) return;
    const time = video.currentTime || 0; // a newer part begins with the same frames
    video.src = part.video;
    video.currentTime = time;
  }
}
