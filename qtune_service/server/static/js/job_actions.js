// What can be done with a job, by its status: used by the list and by a job's own page.

import { get, post, query, remove } from "./api.js";
import { h } from "./dom.js";
import { confirmed, notify, notifyError } from "./notices.js";

const path = (job) => `/api/v1/jobs/${encodeURIComponent(job.id)}`;

export const cancel = async (job) => {
  const text = "What it has in hand is saved first: it can be resumed where it stopped.";
  if (!(await confirmed({ title: `Cancel ${job.name}?`, text, action: "Cancel the job", isDangerous: true, stay: "Let it run" }))) return false;
  await post(`${path(job)}/cancel`);
  notify(`${job.name} is told to stop.`);
  return true;
};

export const resume = async (job) => {
  await post(`${path(job)}/resume`);
  notify(`${job.name} is queued again. It goes on where it was.`);
  return true;
};

// tell: `notifyNext` where the page is left.
export const forget = async (job, tell = notify) => {
  const keep = h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep" }), " Keep its output files");
  const text = "The job is forgotten. Its output is removed too, and cannot be brought back.";
  const said = await confirmed({ title: `Delete ${job.name}?`, text, action: "Delete", isDangerous: true, fields: [keep] });
  if (!said) return false;
  const kept = await remove(`${path(job)}${query({ keep_output: said.keep ? "true" : "" })}`);
  tell(`${job.name} is deleted${kept ? `; its output is kept: ${decodeURIComponent(kept)}` : ""}.`);
  return true;
};

// Other ratios from the same scores. Leads to the new job.
export const pruneAgain = async (job) => {
  const { spec } = job.spec ? job : await get(path(job)); // lists have no specs
  const prune = spec.prune ?? {};
  const said = await confirmed({
    title: `Prune ${job.name} again`,
    text: "A new job from the same scores: no model is run, it takes seconds.",
    action: "Prune again",
    fields: [
      ratio("sample_keep_ratio", "Share of samples to keep", prune.sample_keep_ratio ?? 0.5),
      ratio("token_keep_ratio", "Share of tokens to keep in Q2 samples", prune.token_keep_ratio ?? 0.7),
    ],
  });
  if (!said) return false;
  const changed = { sample_keep_ratio: Number(said.sample_keep_ratio), token_keep_ratio: Number(said.token_keep_ratio) };
  const made = await post(`${path(job)}/reprune`, { prune: { ...prune, ...changed } });
  location.assign(`/jobs/${made.id}`);
  return true;
};

const ratio = (name, label, value) =>
  h("div", { class: "field" }, h("label", { for: `dialog-${name}` }, label),
    h("input", { id: `dialog-${name}`, name, type: "number", min: 0.001, max: 1, step: "any", required: true, value }));

const ACTIONS = {
  queued: [["Cancel", cancel]],
  running: [["Cancel", cancel]],
  succeeded: [["Prune again", pruneAgain], ["Delete", forget]],
  failed: [["Resume", resume], ["Delete", forget]],
  cancelled: [["Resume", resume], ["Delete", forget]],
};

// Buttons for a job's status into an element. `onChange` is called after one has done something.
export const fillMenu = (list, job, onChange) => {
  const buttons = ACTIONS[job.status].map(([label, act]) => {
    const button = h("button", { type: "button", "data-needs": "submit" }, label);
    button.addEventListener("click", () => act(job).then((done) => done && onChange()).catch(notifyError));
    return button;
  });
  const again = h("a", { href: `/new${query({ from: job.id })}`, "data-needs": "submit" }, "New job like this");
  const deletion = ACTIONS[job.status].some(([, act]) => act === forget) ? [buttons.pop()] : []; // last, apart from the rest
  list.replaceChildren(h("a", { href: `/jobs/${job.id}` }, "Open"), ...buttons, again, ...deletion);
};
