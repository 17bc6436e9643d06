// A token for a cookie, and back to where one was going: a place of this server only.

import { post, session } from "./api.js";
import { notifyError } from "./notices.js";

const form = document.getElementById("sign-in");
const field = form.elements.token;
const place = document.getElementById("token-error");

// The parsed address itself is passed on: its parts, put together anew, may name another host ("/.//evil.example").
const goOn = () => location.replace(placeToGo(new URLSearchParams(location.search).get("next") ?? "/"));

const placeToGo = (text) => {
  try {
    const next = new URL(text, location.origin);
    return next.origin === location.origin && next.protocol === location.protocol ? next.href : "/";
  } catch {
    return "/";
  }
};

const show = (text) => {
  place.hidden = false;
  place.textContent = text;
  field.setAttribute("aria-invalid", "true");
  field.select();
  field.focus();
};

const signIn = async () => {
  try {
    await post("/api/v1/session", { token: field.value.trim() }, { stays: true });
    goOn();
  } catch (error) {
    if (error.name === "Problem") show(`${error.message}. ${error.hint}`);
    else notifyError(error);
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn();
});

// Whoever comes by a link from another site brings no cookie, and may be signed in all the same.
session().then((caller) => { if (caller.is_signed_in || !caller.needs_token) goOn(); }, notifyError);
field.focus();
