// The buttons of the head: models, and who is signed in with the way out where people have to sign in.

import { make } from "./dom.js";
import { makeModelsButton } from "./models.js";
import { send } from "./poll.js";
import { makeShareButton } from "./share.js";

let asked = null;

// Resolves to { name, isAdmin }; asked once a page.
export function whoAmI() {
  asked ??= send("studio/me").then((response) => (response.ok ? response.json() : Promise.reject(response.status)));
  asked.catch(() => { asked = null; });
  return asked;
}

export async function attach(element) {
  const { name, isAdmin } = await whoAmI().catch(() => ({ name: "", isAdmin: false }));
  const head = element.querySelector(".studio-account");
  head.replaceChildren(makeModelsButton());
  if (!name || isAdmin) head.append(make("a", { href: "studio/system" }, "System"));
  if (!name) return;
  const title = isAdmin ? `${name}, an admin` : name;
  head.append(
    make("span", { class: "user", title }, name),
    make("form", { method: "post", action: "logout" }, make("button", { type: "submit" }, "Sign out")),
  );
  if (!isAdmin) return;
  const share = await makeShareButton();
  if (share) head.prepend(share);
}
