// Who is signed in, and the way out; nothing where nobody has to sign in.

import { make } from "./dom.js";
import { send } from "./poll.js";

let asked = null;

// Resolves to { name, isAdmin }; asked once a page.
export function whoAmI() {
  asked ??= send("studio/me").then((response) => (response.ok ? response.json() : Promise.reject(response.status)));
  asked.catch(() => { asked = null; });
  return asked;
}

export async function attach(element) {
  const { name, isAdmin } = await whoAmI().catch(() => ({ name: "", isAdmin: false }));
  const system = make("a", { href: "studio/system" }, "System");
  if (!name) {
    element.querySelector(".studio-account").replaceChildren(system);
    return;
  }
  const title = isAdmin ? `${name}, an admin` : name;
  element.querySelector(".studio-account").replaceChildren(
    ...(isAdmin ? [system] : []),
    make("span", { class: "user", title }, name),
    make("form", { method: "post", action: "logout" }, make("button", { type: "submit" }, "Sign out")),
  );
}
