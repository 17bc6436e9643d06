// Sign in with an API token, then return to the page that was requested, if it is a page of this server.

import { post, session } from "./api.js";
import { byId } from "./dom.js";
import { notifyError } from "./notifications.js";

const form = byId("sign-in");
const field = form.elements.token;
const errorText = byId("token-error");

// Use the href of the parsed URL. Joining its parts again could name another host ("/.//evil.example").
const leave = () => location.replace(localUrl(new URLSearchParams(location.search).get("next") ?? "/"));

const localUrl = (text) => {
  try {
    const next = new URL(text, location.origin);
    return next.origin === location.origin && next.protocol === location.protocol ? next.href : "/";
  } catch {
    return "/";
  }
};

const showError = (text) => {
  errorText.hidden = false;
  errorText.textContent = text;
  field.setAttribute("aria-invalid", "true");
  field.select();
  field.focus();
};

const signIn = async () => {
  try {
    await post("/api/v1/session", { token: field.value.trim() }, { signsIn: false });
    leave();
  } catch (error) {
    if (error.name === "Problem") showError(`${error.message}. ${error.hint}`);
    else notifyError(error);
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn();
});

// A link from another site sends no cookie, so a signed-in user can arrive here too.
session().then((user) => { if (user.is_signed_in || !user.needs_token) leave(); }, notifyError);
field.focus();
