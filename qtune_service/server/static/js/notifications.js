// Messages to the user: announcements for screen readers, visible notices, and questions in a dialog.

import { byId, h } from "./dom.js";

const SHOWN_MS = 8000;
const NEXT_PAGE = "qtune-notice";

let announcements = [];

// Announce to screen readers only: changes that happen by themselves or far from the focus. Announcements made at the
// same time are read together.
export const announce = (text) => {
  announcements.push(text);
  if (announcements.length > 1) return;
  setTimeout(() => {
    byId("announcements").textContent = announcements.join(" ");
    announcements = [];
  });
};

// Show a notice for a while. An error stays until the user closes it.
export const notify = (text, { isError = false, hint = "" } = {}) => {
  const close = h("button", { type: "button", "aria-label": "Close this notice" }, "×");
  const notice = h("div", { class: isError ? "notice error" : "notice" },
    h("p", {}, text, hint && h("span", { class: "hint" }, ` ${hint}`)), close);
  close.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
  if (!isError) setTimeout(() => notice.remove(), SHOWN_MS);
};

// Show a notice on the next page, after an action that leaves this one.
export const notifyOnNextPage = (text) => sessionStorage.setItem(NEXT_PAGE, text);

const fromLastPage = sessionStorage.getItem(NEXT_PAGE);
if (fromLastPage) {
  sessionStorage.removeItem(NEXT_PAGE);
  notify(fromLastPage);
}

// Show an error, unless the connection banner or the sign-in page reports it.
export const notifyError = (error) => {
  if (error.name === "Unreachable" || error.name === "AbortError" || error.status === 401) return;
  if (error.name !== "Problem") throw error;
  notify(error.message, { isError: true, hint: error.hint });
};

// Ask a question in a dialog. Resolve to the values of `fields`, or to null if the user declines.
export const ask = ({ title, text, action, isDangerous = false, decline = "Cancel", fields = [] }) => {
  const yes = h("button", { type: "submit", value: "yes", class: isDangerous ? "primary danger" : "primary" }, action);
  const no = h("button", { type: "submit", value: "no", formnovalidate: "" }, decline);
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
