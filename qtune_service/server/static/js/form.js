// The form of a new job: controls with dotted names, and the request body, command and job file that they make. These
// contain only values that differ from the defaults, so that the server's defaults apply.

import { shellQuote } from "./format.js";

export const controls = (form) => [...form.querySelectorAll("[data-field]")];
export const controlOf = (form, name) => form.querySelector(`[data-field="${CSS.escape(name)}"]`);

// --- values

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// Parse lines "math=100" into {math: 100}, or "bot=assistant" into {bot: "assistant"}. In a mapping to numbers, a value
// that is no number stays text, and the server rejects it.
const pairs = (text, isNumeric) => Object.fromEntries(lines(text).map((line) => {
  const at = isNumeric ? line.lastIndexOf("=") : line.indexOf("=");
  const value = line.slice(at + 1).trim();
  return [line.slice(0, Math.max(at, 0)).trim(), isNumeric && /^\d+$/.test(value) ? Number(value) : value];
}));

const valueOf = (control) => {
  const { kind } = control.dataset;
  if (kind === "checkbox") return control.checked;
  if (kind === "lines") return lines(control.value);
  if (kind === "pairs") return pairs(control.value, control.dataset.numeric !== undefined);
  if (control.value.trim() === "") return null;
  return kind === "number" ? Number(control.value) : control.value.trim();
};

const setValue = (control, value) => {
  const { kind } = control.dataset;
  if (kind === "checkbox") control.checked = value;
  else if (kind === "lines") control.value = value.join("\n");
  else if (kind === "pairs") control.value = Object.entries(value).map((pair) => pair.join("=")).join("\n");
  else control.value = Array.isArray(value) ? [...new Set(value)].join("-") : (value ?? "");
};

const isChanged = (control) =>
  !control.disabled && JSON.stringify(valueOf(control)) !== JSON.stringify(JSON.parse(control.dataset.default));

// Fill the form from a job's spec. Fields that the spec does not contain keep their value.
export const fill = (form, spec) => {
  for (const control of controls(form)) {
    const value = control.dataset.field.split(".").reduce((body, part) => body?.[part], spec);
    if (value !== undefined) setValue(control, value);
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
};

// --- request, command and job file

export const bodyOf = (form) => {
  const body = {};
  for (const control of controls(form)) {
    if (control.disabled || !(control.required || isChanged(control))) continue;
    const parts = control.dataset.field.split(".");
    const last = parts.pop();
    const parent = parts.reduce((at, part) => (at[part] ??= {}), body);
    const value = valueOf(control);
    if (value !== null) parent[last] = value;
  }
  return { input: {}, model: {}, ...body };
};

const OUTPUT = "out";

// The server stores datasets. A command that runs elsewhere reads the file that was uploaded.
const fileOf = (path, datasets) => datasets.get(path)?.name ?? path;

const argumentsOf = (control, datasets) => {
  const { field, flag, kind } = control.dataset;
  const value = valueOf(control);
  if (field === "input.paths") return value.map((path) => fileOf(path, datasets));
  if (kind === "pairs") return Object.entries(value).flatMap(([name, to]) => [flag, `${name}=${to}`]);
  if (kind === "checkbox") return [value ? flag : flag.replace(/^--/, "--no-")];
  return [flag, String(value)];
};

// Return a `qtune` command that does the same. It reads the job file if a changed field has no flag.
export const commandOf = (form, datasets, isScoreOnly) => {
  const changed = controls(form).filter((control) => isChanged(control) && control.dataset.field !== "name");
  if (changed.some((control) => control.dataset.flag === undefined)) return "qtune run job.json";
  const hasOutput = changed.some((control) => control.dataset.field === "output.path");
  const output = hasOutput ? [] : ["--output", OUTPUT];
  const values = changed.flatMap((control) => argumentsOf(control, datasets));
  return ["qtune", isScoreOnly ? "score" : "prune", ...values, ...output].map(shellQuote).join(" ");
};

export const jobFileOf = (form, datasets, isScoreOnly) => {
  const { name: _, ...body } = bodyOf(form);
  const paths = (body.input.paths ?? []).map((path) => fileOf(path, datasets));
  const spec = { ...body, input: { ...body.input, paths }, output: body.output ?? { path: OUTPUT } };
  return JSON.stringify(isScoreOnly ? { ...spec, prune: null } : spec, null, 2);
};
