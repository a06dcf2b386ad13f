// The before/after player. A video preview holds both sides in one picture, one above the other: one decoder and one
// playhead, so the sides show the same frame always. The canvas cuts them apart at the divider.

import { make, setHidden, setText } from "./dom.js";
import { listen, select, store } from "./store.js";
import { PartPlayer } from "./watch.js";

const STEP = 2; // percent that an arrow key moves the divider

export function attach(element) {
  const player = new Player();
  const download = make("a", { class: "button primary", download: "", id: "download" }, "Download");
  const heading = make("h2", {}, "Result");
  const title = make("span", { class: "name" });
  const empty = make("p", { class: "empty" }, "Your result appears here, beside the original, as soon as the first file is done.");
  const head = make("div", { class: "line head" }, heading, title, download);
  element.querySelector(".studio-compare").append(head, empty, player.element);

  const part = new PartPlayer(() => select(store.selected));
  const panel = element.querySelector(".studio-compare");

  listen(({ jobs, selected, watched }) => {
    const job = jobs.find((candidate) => candidate.id === selected && candidate.preview);
    const unfinished = jobs.find((candidate) => candidate.id === watched) ?? null;
    const isCompared = Boolean(job) && !unfinished;
    setHidden(empty, Boolean(job || unfinished));
    setHidden(download, !isCompared);
    setHidden(player.element, !isCompared);
    if (unfinished) panel.append(part.element);
    else part.element.remove();
    part.show(unfinished);
    element.classList.toggle("has-result", Boolean(job || unfinished));
    setText(heading, unfinished ? "Finished part" : "Result");
    setText(title, (unfinished ?? job)?.name ?? "");
    if (job && download.getAttribute("href") !== job.download) download.href = job.download;
    if (unfinished) player.video.pause();
    player.show(job?.preview ?? null);
  });
}

class Player {
  constructor() {
    this.split = 50; // percent from the left where "after" begins
    this.media = null;
    this.canvas = make("canvas", { role: "img", "aria-label": "The picture before, left of the divider, and after, right of it" });
    this.divider = make("div", {
      class: "divider", role: "slider", tabindex: "0", "aria-label": "Divider between before and after",
      "aria-orientation": "horizontal", "aria-valuemin": "0", "aria-valuemax": "100",
    }, make("span", { class: "grip", "aria-hidden": "true" }, "◂▸"));
    this.stage = make(
      "div", { class: "stage" }, this.canvas, this.divider,
      makeSide("before", "Before"), makeSide("after", "After"),
    );
    this.video = make("video", { playsinline: "", preload: "auto", loop: true, hidden: true });
    this.play = this.button("Play", () => this.toggle());
    this.play.classList.add("play");
    this.back = this.button("Previous frame", () => this.stepFrame(-1), "‹");
    this.forth = this.button("Next frame", () => this.stepFrame(1), "›");
    this.forth.classList.add("forth");
    this.seek = make("input", { type: "range", class: "seek", min: "0", step: "any", value: "0", "aria-label": "Position" });
    this.time = make("span", { class: "time" });
    this.sound = this.button("Mute", () => { this.video.muted = !this.video.muted; });
    this.full = this.button("Full screen", () => this.toggleFull());
    setHidden(this.full, !document.fullscreenEnabled); // phones that have it for videos only
    document.addEventListener("fullscreenchange", () => setText(this.full, document.fullscreenElement ? "Exit full screen" : "Full screen"));
    this.controls = make("div", { class: "controls" }, this.play, this.back, this.forth, this.seek, this.time, this.sound);
    this.problem = make("p", { class: "alert", role: "alert" });
    this.element = make(
      "div", { class: "player", role: "group", "aria-label": "Compare before and after" },
      make("div", { class: "box" }, this.stage), this.video, this.problem,
      make("div", { class: "bottom" }, this.controls, this.full),
    );
    this.listenToPointer();
    this.listenToKeys();
    this.listenToVideo();
    this.setSplit(50);
  }

  // `preview` is null, {kind: "video", video, width, height, after_top, fps} or {kind: "image", before, after, width, height}
  show(preview) {
    const key = preview ? preview.video ?? preview.after : null;
    if (key === this.key) return;
    this.key = key;
    this.video.pause();
    this.media = null;
    setText(this.problem, "");
    if (!preview) {
      this.video.removeAttribute("src");
      return;
    }
    const isVideo = preview.kind === "video";
    this.stage.style.setProperty("--ratio", String(preview.width / preview.height));
    this.canvas.width = preview.width;
    this.canvas.height = preview.height;
    setHidden(this.controls, !isVideo);
    setHidden(this.sound, !preview.has_audio);
    if (isVideo) {
      this.media = preview;
      this.video.src = preview.video;
      this.video.load();
    } else {
      this.showImages(preview, key);
    }
  }

  async showImages(preview, key) {
    const images = [preview.before, preview.after].map((address) => Object.assign(new Image(), { src: address }));
    try {
      await Promise.all(images.map((image) => image.decode()));
    } catch {
      if (key === this.key) this.tellProblem();
      return;
    }
    if (key !== this.key) return;
    this.media = { ...preview, images };
    this.draw();
  }

  draw() {
    const { canvas, media } = this;
    if (!media) return;
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    const cut = Math.round((width * this.split) / 100);
    const side = (source, left, right, top, sourceWidth, sourceHeight) => {
      if (right <= left) return;
      context.save();
      context.beginPath();
      context.rect(left, 0, right - left, height);
      context.clip();
      context.drawImage(source, 0, top, sourceWidth, sourceHeight, 0, 0, width, height);
      context.restore();
    };
    if (media.images) {
      const [before, after] = media.images;
      side(before, 0, cut, 0, before.naturalWidth, before.naturalHeight);
      side(after, cut, width, 0, after.naturalWidth, after.naturalHeight);
    } else if (this.video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) {
      side(this.video, 0, cut, 0, width, height);
      side(this.video, cut, width, media.after_top, width, height);
    }
  }

  setSplit(percent) {
    this.split = Math.min(100, Math.max(0, percent));
    this.stage.style.setProperty("--split", `${this.split}%`);
    this.divider.setAttribute("aria-valuenow", String(Math.round(this.split)));
    this.divider.setAttribute("aria-valuetext", `${Math.round(this.split)} % before`);
    this.draw();
  }

  listenToPointer() {
    const follow = (event) => {
      const box = this.stage.getBoundingClientRect();
      this.setSplit((100 * (event.clientX - box.left)) / box.width);
    };
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.stage.setPointerCapture(event.pointerId);
      this.divider.focus({ preventScroll: true });
      follow(event);
      event.preventDefault();
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (this.stage.hasPointerCapture(event.pointerId)) follow(event);
    });
  }

  listenToKeys() {
    this.divider.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 5 * STEP : STEP;
      const moves = {
        ArrowLeft: this.split - step, ArrowDown: this.split - step, ArrowRight: this.split + step,
        ArrowUp: this.split + step, Home: 0, End: 100,
      };
      if (!(event.key in moves)) return;
      this.setSplit(moves[event.key]);
      event.preventDefault();
    });
    this.element.addEventListener("keydown", (event) => {
      if (this.media?.kind !== "video" || event.target.closest("button")) return;
      const actions = { " ": () => this.toggle(), ",": () => this.stepFrame(-1), ".": () => this.stepFrame(1) };
      if (!(event.key in actions)) return;
      actions[event.key]();
      event.preventDefault();
    });
  }

  listenToVideo() {
    const { video } = this;
    const isSupported = "requestVideoFrameCallback" in HTMLVideoElement.prototype;
    const onFrame = () => {
      this.draw();
      this.showTime();
      if (isSupported) video.requestVideoFrameCallback(onFrame);
      else if (!video.paused) requestAnimationFrame(onFrame);
    };
    if (isSupported) video.requestVideoFrameCallback(onFrame);
    else for (const name of ["play", "seeked", "loadeddata"]) video.addEventListener(name, onFrame);
    video.addEventListener("loadeddata", () => { this.draw(); this.showTime(); });
    video.addEventListener("seeked", () => { this.draw(); this.showTime(); });
    for (const name of ["play", "pause"]) video.addEventListener(name, () => this.showState());
    video.addEventListener("volumechange", () => this.showState());
    video.addEventListener("error", () => { if (video.getAttribute("src")) this.tellProblem(); });
    this.seek.addEventListener("input", () => { video.currentTime = Number(this.seek.value); });
  }

  tellProblem() {
    setText(this.problem, "This browser cannot show the preview. The downloaded file is not affected.");
  }

  toggle() {
    if (this.video.paused) this.video.play().catch(() => this.tellProblem());
    else this.video.pause();
  }

  stepFrame(direction) {
    const frame = 1 / (this.media?.fps || 25);
    this.video.pause();
    const index = Math.floor(this.video.currentTime / frame + 1e-3) + direction;
    this.video.currentTime = Math.min(this.video.duration, Math.max(0, (index + 0.5) * frame));
  }

  showTime() {
    const { currentTime, duration } = this.video;
    if (!Number.isFinite(duration)) return;
    this.seek.max = String(duration);
    if (document.activeElement !== this.seek || !this.video.paused) this.seek.value = String(currentTime);
    this.seek.setAttribute("aria-valuetext", `${currentTime.toFixed(1)} of ${duration.toFixed(1)} seconds`);
    setText(this.time, `${toClock(currentTime)} / ${toClock(duration)}`);
  }

  showState() {
    setText(this.play, this.video.paused ? "Play" : "Pause");
    setText(this.sound, this.video.muted ? "Unmute" : "Mute");
  }

  toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen?.();
  }

  button(label, onclick, symbol = "") {
    const attributes = symbol ? { "aria-label": label, title: label } : {};
    return make("button", { type: "button", ...attributes, onclick }, symbol || label);
  }
}

// The label of one side; the divider covers it as it covers its side.
function makeSide(name, label) {
  return make("div", { class: `side ${name}`, "aria-hidden": "true" }, make("span", { class: "badge" }, label));
}

function toClock(seconds) {
  const whole = Math.floor(seconds);
  const tenths = Math.floor((seconds - whole) * 10);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}.${tenths}`;
}
