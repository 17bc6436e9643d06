// Parts of every page: the signed-in user, the current page in the navigation, and the connection banner.

import { openSignIn, remove, session } from "./api.js";
import { onReconnect, watchConnection } from "./connection.js";
import { byId } from "./dom.js";
import { notifyError } from "./notifications.js";

const showUser = async () => {
  const user = await session();
  if (!user.is_signed_in && user.needs_token) {
    if (location.pathname !== "/sign-in") openSignIn();
    return;
  }
  document.documentElement.dataset.scope = user.scope;
  const place = byId("user");
  place.hidden = !user.needs_token;
  place.querySelector(".name").textContent = user.name;
  place.querySelector(".scope").textContent = user.scope;
};

const signOut = async () => {
  try {
    await remove("/api/v1/session");
    location.assign("/sign-in");
  } catch (error) {
    notifyError(error);
  }
};

const markCurrentPage = () => {
  for (const link of document.querySelectorAll("header.site nav a")) {
    if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
  }
};

markCurrentPage();
watchConnection();
onReconnect(() => showUser().catch(notifyError));
byId("sign-out").addEventListener("click", signOut);
showUser().catch(notifyError);
