// Errors of the form: each next to its field, and all of them in a summary at the top that links to the fields.

import { byId, h } from "./dom.js";
import { controlOf, controls } from "./form.js";

const FIELD_PREFIX = /^([a-z_]+(?:\.[a-z_0-9]+)*): /; // as in "input.paths: '/etc' is not allowed here"

// Return the errors that the browser finds: [{field, message}].
export const browserErrors = (form) => controls(form)
  .filter((control) => !control.disabled && !control.validity.valid)
  .map((control) => ({ field: control.dataset.field, message: control.validationMessage }));

// Return the errors of a Problem. A message of the server's policy begins with the field.
export const problemErrors = (problem) => {
  if (problem.errors.length) return problem.errors;
  const field = FIELD_PREFIX.exec(problem.message)?.[1];
  const message = field ? problem.message.slice(field.length + 2) : problem.message;
  return [{ field: field ?? "", message: [message, problem.hint].filter(Boolean).join(". ").replace(/\.\. /g, ". ") }];
};

export const clearErrors = (form, summary) => {
  summary.hidden = true;
  summary.replaceChildren();
  for (const control of controls(form)) clearError(control, summary);
};

// Clear the error of a field that was changed. The next attempt validates it.
export const clearError = (control, summary) => {
  summary.querySelector(`a[href="#${control.id}"]`)?.parentElement.remove();
  summary.hidden ||= !summary.querySelector("li");
  control.removeAttribute("aria-invalid");
  const place = byId(`${control.id}-error`);
  place.hidden = true;
  place.textContent = "";
};

// Put labels in place of the fields that a message names, as in "`take` needs `category_field`". An error of a part of
// the job is shown at the first of these fields.
const withLabels = (form, { field, message }) => {
  const named = (name) => controlOf(form, `${field}.${name}`);
  const first = [...message.matchAll(/`([a-z_]+)`/g)].map((match) => match[1]).find(named);
  const labelOf = (name) => `“${named(name).labels[0].textContent.trim()}”`;
  const text = message.replace(/`([a-z_]+)`/g, (whole, name) => (named(name) ? labelOf(name) : whole));
  return { field: first && !controlOf(form, field) ? `${field}.${first}` : field, message: text };
};

export const showErrors = (form, summary, found) => {
  const errors = found.map((error) => withLabels(form, error));
  clearErrors(form, summary);
  const items = errors.map(({ field, message }) => {
    const control = nearestControl(form, field);
    if (!control) return h("li", {}, field ? `${field}: ${message}` : message);
    showError(control, message);
    const link = h("a", { href: `#${control.id}` }, `${control.labels[0].textContent.trim()}: ${message}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      unfold(control);
      control.focus();
    });
    return h("li", {}, link);
  });
  const title = errors.length === 1 ? "1 problem" : `${errors.length} problems`;
  summary.replaceChildren(h("p", {}, h("strong", {}, title)), h("ul", {}, items));
  summary.hidden = false;
  summary.focus();
};

const showError = (control, message) => {
  control.setAttribute("aria-invalid", "true");
  const place = byId(`${control.id}-error`);
  place.textContent = place.textContent ? `${place.textContent} ${message}` : message;
  place.hidden = false;
  unfold(control);
};

// "input.paths.0" belongs to the control of input.paths.
const nearestControl = (form, field) => {
  const parts = field.split(".");
  while (parts.length && parts[0]) {
    const control = controlOf(form, parts.join("."));
    if (control) return control;
    parts.pop();
  }
  return null;
};

const unfold = (control) => {
  for (let fold = control.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
};
