// The other ways to a file than this device: a link that the server fetches, and the server's own folder.

import { make, setText, toSize } from "./dom.js";
import { call } from "./send.js";

// A field for links. `onUpload` gets each upload that the server has begun, `onError` a sentence.
export function makeLinkField(onUpload, onError) {
  const input = make("input", {
    type: "text", inputmode: "url", autocomplete: "off", spellcheck: "false", placeholder: "or paste a link", "aria-label": "Link to a video or an image",
  });
  const button = make("button", { type: "button", onclick: add }, "Add");
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    add();
  });

  async function add() {
    const links = input.value.trim().split(/\s+/).filter(Boolean);
    button.disabled = true;
    onError("");
    try {
      while (links.length) {
        onUpload(await call("POST", "links", { link: links[0] }));
        links.shift();
      }
    } catch (error) {
      onError(error.message);
    }
    input.value = links.join(" "); // what was not taken stays, to be corrected
    button.disabled = false;
  }

  return make("div", { class: "link" }, input, button);
}

// The list of the server's folder, read when it is opened.
export function makeFolderList(onUpload, onError) {
  const list = make("ul", { "aria-label": "Files on the server" });
  const state = make("p", { class: "waiting", role: "status" });
  const button = make("button", { type: "button", onclick: add }, "Add chosen files");
  const details = make("details", { class: "server-folder", ontoggle: () => { if (details.open) show(); } }, make("summary", {}, "Server folder"), state, list, button);
  button.disabled = true;

  async function show() {
    setText(state, "Looking");
    try {
      const { files } = await call("GET", "folder");
      list.replaceChildren(...files.map(makeEntry));
      setText(state, files.length ? "" : "There are no videos or images in this folder.");
    } catch (error) {
      setText(state, error.message);
    }
    update();
  }

  function makeEntry(file) {
    const box = make("input", { type: "checkbox", value: file.id, onchange: update });
    return make(
      "li", {}, make("label", {}, box, make("span", { class: "path", title: file.path }, file.path), make("span", { class: "size" }, toSize(file.size))),
    );
  }

  const chosen = () => [...list.querySelectorAll("input:checked")];

  function update() {
    button.disabled = chosen().length === 0;
  }

  async function add() {
    button.disabled = true;
    onError("");
    try {
      for (const box of chosen()) {
        onUpload(await call("POST", "folder", { file: box.value }));
        box.checked = false;
      }
      details.open = false;
    } catch (error) {
      onError(error.message);
    }
    update();
  }

  return details;
}
