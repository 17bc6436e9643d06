// Errors beside the fields that they are about, and all of them at the top with links there.

import { h } from "./dom.js";
import { controlOf, controls } from "./form.js";

const NAMED = /^([a-z_]+(?:\.[a-z_0-9]+)*): /; // as in "input.paths: '/etc' is not allowed here"

// What the browser itself finds wrong, as the server would say it.
export const foundHere = (form) => controls(form)
  .filter((control) => !control.disabled && !control.validity.valid)
  .map((control) => ({ field: control.dataset.field, message: control.validationMessage }));

// The fields of a Problem. A refusal by the server's policy names its field at the beginning.
export const foundThere = (problem) => {
  if (problem.errors.length) return problem.errors;
  const name = NAMED.exec(problem.message)?.[1];
  const text = [name ? problem.message.slice(name.length + 2) : problem.message, problem.hint].filter(Boolean).join(". ");
  return [{ field: name ?? "", message: text.replace(/\.\. /g, ". ") }];
};

export const clearErrors = (form, summary) => {
  summary.hidden = true;
  summary.replaceChildren();
  for (const control of controls(form)) clearError(control, summary);
};

// Of a field that is changed: whether it is right now, the next try tells.
export const clearError = (control, summary) => {
  summary.querySelector(`a[href="#${control.id}"]`)?.parentElement.remove();
  summary.hidden ||= !summary.querySelector("li");
  control.removeAttribute("aria-invalid");
  const place = document.getElementById(`${control.id}-error`);
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
    const control = nearest(form, field);
    if (!control) return h("li", {}, field ? `${field}: ${message}` : message);
    showError(control, message);
    const link = h("a", { href: `#${control.id}` }, `${labelOf(control)}: ${message}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      open(control);
      control.focus();
    });
    return h("li", {}, link);
  });
  const title = errors.length === 1 ? "One thing is wrong" : `${errors.length} things are wrong`;
  summary.replaceChildren(h("p", {}, h("strong", {}, title)), h("ul", {}, items));
  summary.hidden = false;
  summary.focus();
};

const showError = (control, message) => {
  control.setAttribute("aria-invalid", "true");
  const place = document.getElementById(`${control.id}-error`);
  place.textContent = place.textContent ? `${place.textContent} ${message}` : message;
  place.hidden = false;
  open(control);
};

// "input.paths.0" is about input.paths.
const nearest = (form, field) => {
  const parts = field.split(".");
  while (parts.length && parts[0]) {
    const control = controlOf(form, parts.join("."));
    if (control) return control;
    parts.pop();
  }
  return null;
};

const labelOf = (control) => control.labels[0].textContent.trim();

const open = (control) => {
  for (let at = control.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
};
