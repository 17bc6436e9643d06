// What every page has: who is signed in, which page this is, and whether the server can be reached.

import { remove, session, toSignIn } from "./api.js";
import { onBack, watchConnection } from "./connection.js";
import { notifyError } from "./notices.js";

const SCOPES = ["read", "submit", "admin"];

// Whether the caller may do what needs `scope`.
export const may = async (scope) => SCOPES.indexOf((await session()).scope) >= SCOPES.indexOf(scope);

const showCaller = async () => {
  const caller = await session();
  if (!caller.is_signed_in && caller.needs_token) {
    if (location.pathname !== "/sign-in") toSignIn();
    return;
  }
  document.documentElement.dataset.scope = caller.scope;
  const who = document.getElementById("who");
  who.hidden = !caller.needs_token;
  who.querySelector(".name").textContent = caller.name;
  who.querySelector(".scope").textContent = caller.scope;
};

const signOut = async () => {
  try {
    await remove("/api/v1/session");
    location.assign("/sign-in");
  } catch (error) {
    notifyError(error);
  }
};

const markPage = () => {
  for (const link of document.querySelectorAll("header.site nav a")) {
    if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
  }
};

markPage();
watchConnection();
onBack(() => showCaller().catch(notifyError));
document.getElementById("sign-out").addEventListener("click", signOut);
showCaller().catch(notifyError);
