// What the page tells: quietly to screen readers, visibly for a while, or as a question that must be answered.

import { h } from "./dom.js";

const SHOWN_MS = 8000;

let waiting = [];

// To screen readers only. Use it sparingly: for what happened by itself or far from the focus. What comes at one time is
// said at one time.
export const announce = (text) => {
  waiting.push(text);
  if (waiting.length > 1) return;
  setTimeout(() => {
    document.getElementById("announcements").textContent = waiting.join(" ");
    waiting = [];
  });
};

// For all, and for a while. An error stays until it is closed.
export const notify = (text, { isError = false, hint = "" } = {}) => {
  const close = h("button", { type: "button", "aria-label": "Close this notice" }, "×");
  const notice = h("div", { class: isError ? "notice error" : "notice" },
    h("p", {}, text, hint && h("span", { class: "hint" }, ` ${hint}`)), close);
  close.addEventListener("click", () => notice.remove());
  document.getElementById("notices").append(notice);
  if (!isError) setTimeout(() => notice.remove(), SHOWN_MS);
};

const NEXT = "qtune-notice";

// The same on the page that comes next: for what leads away from this one.
export const notifyNext = (text) => sessionStorage.setItem(NEXT, text);

const left = sessionStorage.getItem(NEXT);
if (left) {
  sessionStorage.removeItem(NEXT);
  notify(left);
}

// An error as a notice. What the connection's banner or the sign-in page tells is not told again.
export const notifyError = (error) => {
  if (error.name === "Unreachable" || error.name === "AbortError" || error.status === 401) return;
  if (error.name !== "Problem") throw error;
  notify(error.message, { isError: true, hint: error.hint });
};

// Ask before something that cannot be undone. Resolves to null where the answer is no, else to the form's values.
export const confirmed = ({ title, text, action, isDangerous = false, stay = "Cancel", fields = [] }) => {
  const yes = h("button", { type: "submit", value: "yes", class: isDangerous ? "primary danger" : "primary" }, action);
  const no = h("button", { type: "submit", value: "no", formnovalidate: "" }, stay);
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, title), h("p", {}, text), ...fields, h("div", { class: "buttons" }, no, yes));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  no.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
  });
};
