// Controls with dotted names, and the request's body that they make. Only what is not a default is in the body, so that a
// job says what was chosen, and the server's defaults stay the server's.

const EMPTY = new Set(["", null]);

export const controls = (form) => [...form.querySelectorAll("[data-field]")];
export const controlOf = (form, name) => form.querySelector(`[data-field="${CSS.escape(name)}"]`);
const defaultOf = (control) => JSON.parse(control.dataset.default);

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// "math=100" in lines -> {math: 100}. What is no number stays text, for the server to refuse.
const pairs = (text) => Object.fromEntries(lines(text).map((line) => {
  const at = line.lastIndexOf("=");
  const value = line.slice(at + 1).trim();
  return [line.slice(0, Math.max(at, 0)).trim(), /^\d+$/.test(value) ? Number(value) : value];
}));

export const valueOf = (control) => {
  const { kind } = control.dataset;
  if (kind === "checkbox") return control.checked;
  if (kind === "lines") return lines(control.value);
  if (kind === "pairs") return pairs(control.value);
  if (EMPTY.has(control.value.trim())) return null;
  return kind === "number" ? Number(control.value) : control.value.trim();
};

const setValue = (control, value) => {
  const { kind } = control.dataset;
  if (kind === "checkbox") control.checked = value;
  else if (kind === "lines") control.value = value.join("\n");
  else if (kind === "pairs") control.value = Object.entries(value).map(([name, number]) => `${name}=${number}`).join("\n");
  else control.value = Array.isArray(value) ? [...new Set(value)].join("-") : (value ?? "");
};

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// Those that say something else than the default.
export const changed = (form) => controls(form).filter((control) => !control.disabled && !same(valueOf(control), defaultOf(control)));

export const bodyOf = (form) => {
  const body = {};
  for (const control of controls(form)) {
    const isAsked = control.required || changed(form).includes(control);
    if (control.disabled || !isAsked) continue;
    const parts = control.dataset.field.split(".");
    const last = parts.pop();
    const place = parts.reduce((at, part) => (at[part] ??= {}), body);
    const value = valueOf(control);
    if (value !== null) place[last] = value;
  }
  return { input: {}, model: {}, ...body };
};

// From a job's spec; what it does not name keeps the default.
export const fill = (form, spec) => {
  for (const control of controls(form)) {
    const value = control.dataset.field.split(".").reduce((at, part) => at?.[part], spec);
    if (value !== undefined) setValue(control, value);
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
};
