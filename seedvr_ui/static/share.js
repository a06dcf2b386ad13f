// The public link of the server with its QR code, in a dialog for admins.

import { make, setHidden, setText } from "./dom.js";
import { send } from "./poll.js";

const LOOK_MS = 2000;

// Resolves to the button, or null where there is no link to show.
export async function makeShareButton() {
  const found = await ask();
  if (!found?.isShared) return null;
  let dialog = null;
  return make("button", { type: "button", onclick: () => { (dialog ??= makeDialog()).open(); } }, "Share");
}

async function ask() {
  try {
    const response = await send("studio/share");
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

function makeDialog() {
  const link = make("a", { target: "_blank", rel: "noopener" });
  const code = make("img", { class: "qr", alt: "QR code of the link" });
  const note = make("p", { class: "note" });
  const alert = make("p", { class: "alert", role: "status" });
  const element = make("dialog", { class: "studio-dialog", "aria-label": "Share" },
    make("div", { class: "top" }, make("h2", {}, "Public link"), make("button", { type: "button", onclick: () => element.close() }, "Close")),
    alert, link, code, note);
  document.body.append(element);
  let timer = 0;

  async function look() {
    clearTimeout(timer);
    const found = await ask();
    const hasLink = Boolean(found?.link);
    setText(alert, found ? found.message : "The server cannot be reached; try again when the connection is back.");
    setHidden(link, !hasLink);
    setHidden(code, !hasLink);
    setText(note, hasLink ? `Whoever opens it has to sign in. ${found.expiry}` : "");
    if (hasLink && link.href !== found.link) {
      link.href = found.link;
      code.src = found.code;
    }
    setText(link, found?.link ?? "");
    if (element.open) timer = setTimeout(look, LOOK_MS);
  }

  element.addEventListener("close", () => clearTimeout(timer));
  element.addEventListener("click", (event) => { if (event.target === element) element.close(); }); // beside it
  return { open: () => { element.showModal(); look(); } };
}
