// The command and the job file that do what the form says.

import { shellQuote } from "./format.js";
import { bodyOf, changed, valueOf } from "./form.js";

const OUTPUT = "out";

// A dataset lies on the server: a command elsewhere reads the file that was uploaded.
const fileOf = (path, datasets) => datasets.get(path)?.name ?? path;

const words = (control, datasets) => {
  const { field, flag, kind } = control.dataset;
  const value = valueOf(control);
  if (field === "input.paths") return value.map((path) => fileOf(path, datasets));
  if (kind === "pairs") return Object.entries(value).flatMap(([name, number]) => [flag, `${name}=${number}`]);
  if (kind === "checkbox") return [value ? flag : flag.replace(/^--/, "--no-")];
  return [flag, String(value)];
};

// The command; a job file where a field has no flag.
export const commandOf = (form, datasets, isScoreOnly) => {
  const asked = changed(form).filter((control) => control.dataset.field !== "name");
  if (asked.some((control) => control.dataset.flag === undefined)) return "qtune run job.json";
  const start = ["qtune", isScoreOnly ? "score" : "prune"];
  const names = asked.map((control) => control.dataset.field);
  const output = names.includes("output.path") ? [] : ["--output", OUTPUT];
  return [...start, ...asked.flatMap((control) => words(control, datasets)), ...output].map(shellQuote).join(" ");
};

export const jobFileOf = (form, datasets, isScoreOnly) => {
  const { name: _, ...body } = bodyOf(form);
  const paths = (body.input.paths ?? []).map((path) => fileOf(path, datasets));
  const spec = { ...body, input: { ...body.input, paths }, output: body.output ?? { path: OUTPUT } };
  return JSON.stringify(isScoreOnly ? { ...spec, prune: null } : spec, null, 2);
};
