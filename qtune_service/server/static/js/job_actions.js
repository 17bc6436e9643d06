// Actions on a job by its status: the menu of a row in the list, and the buttons of a job's own page.

import { get, jobPath, post, query, remove } from "./api.js";
import { byId, h } from "./dom.js";
import { ask, notify, notifyError, notifyOnNextPage } from "./notifications.js";

// --- the menu. Each action resolves to true when it has changed something.

const cancel = async (job) => {
  const isConfirmed = await ask({
    title: `Cancel ${job.name}?`,
    text: "Work in progress is saved first, so that you can resume the job later.",
    action: "Cancel the job",
    decline: "Keep it running",
    isDangerous: true,
  });
  if (!isConfirmed) return false;
  await post(jobPath(job.id, "cancel"));
  notify(`${job.name} is stopping.`);
  return true;
};

const resume = async (job) => {
  await post(jobPath(job.id, "resume"));
  notify(`${job.name} is queued again and will continue where it stopped.`);
  return true;
};

const deleteJob = async (job, notifyDone = notify) => {
  const keep = h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep" }), " Keep its output files");
  const text = "This deletes the job and its output. It cannot be undone.";
  const answer = await ask({ title: `Delete ${job.name}?`, text, action: "Delete", isDangerous: true, fields: [keep] });
  if (!answer) return false;
  const reason = await remove(jobPath(job.id) + query({ keep_output: answer.keep ? "true" : "" }));
  notifyDone(`${job.name} is deleted.${reason ? ` Its output is kept: ${decodeURIComponent(reason)}.` : ""}`);
  return true;
};

const reprune = async (job) => {
  const { spec } = job.spec ? job : await get(jobPath(job.id)); // jobs in a list have no spec
  const prune = spec.prune ?? {};
  const answer = await ask({
    title: `Prune ${job.name} again`,
    text: "This starts a new job from the same scores. It runs no model and takes seconds.",
    action: "Prune again",
    fields: [
      ratioField("sample_keep_ratio", "Share of samples to keep", prune.sample_keep_ratio ?? 0.5),
      ratioField("token_keep_ratio", "Share of tokens to keep in Q2 samples", prune.token_keep_ratio ?? 0.7),
    ],
  });
  if (!answer) return false;
  const ratios = Object.fromEntries(Object.entries(answer).map(([name, ratio]) => [name, Number(ratio)]));
  const newJob = await post(jobPath(job.id, "reprune"), { prune: { ...prune, ...ratios } });
  location.assign(`/jobs/${newJob.id}`);
  return true;
};

const ratioField = (name, label, value) =>
  h("div", { class: "field" }, h("label", { for: `dialog-${name}` }, label),
    h("input", { id: `dialog-${name}`, name, type: "number", min: 0.001, max: 1, step: "any", required: true, value }));

const MENU = {
  queued: [["Cancel", cancel]],
  running: [["Cancel", cancel]],
  succeeded: [["Prune again", reprune], ["Delete", deleteJob]],
  failed: [["Resume", resume], ["Delete", deleteJob]],
  cancelled: [["Resume", resume], ["Delete", deleteJob]],
};

// Fill a menu with the actions of a job. `onChange` is called after an action has changed something.
export const fillMenu = (list, job, onChange) => {
  const buttons = MENU[job.status].map(([label, act]) => {
    const button = h("button", { type: "button", "data-needs": "submit" }, label);
    button.addEventListener("click", () => act(job).then((hasChanged) => hasChanged && onChange()).catch(notifyError));
    return button;
  });
  const similar = h("a", { href: `/new${query({ from: job.id })}`, "data-needs": "submit" }, "New job like this");
  const isDeletable = MENU[job.status].some(([, act]) => act === deleteJob);
  const deletion = isDeletable ? [buttons.pop()] : []; // last, apart from the others
  list.replaceChildren(h("a", { href: `/jobs/${job.id}` }, "Open"), ...buttons, similar, ...deletion);
};

// --- the buttons of a job's page. `onJob` gets the job as an action returned it.

const button = (label, act, attributes = {}) => {
  const element = h("button", { type: "button", "data-needs": "submit", ...attributes }, label);
  element.addEventListener("click", async () => {
    if (element.ariaDisabled === "true") return;
    element.ariaDisabled = "true"; // not `disabled`, which would move the focus
    try {
      await act();
    } catch (error) {
      notifyError(error);
    }
    element.ariaDisabled = null;
  });
  return element;
};

const link = (label, href, attributes = {}) => h("a", { class: "button", href, ...attributes }, label);

const cancelButton = (job, onJob) => {
  if (job.cancel_requested) return button("Stopping…", null, { "aria-disabled": "true" });
  return button("Cancel", async () => onJob(await post(jobPath(job.id, "cancel"))));
};

const resumeButton = (job, onJob) =>
  button("Resume", async () => onJob(await post(jobPath(job.id, "resume"))), { class: "primary" });

const deleteButton = (job) => button("Delete…", async () => {
  if (await deleteJob(job, notifyOnNextPage)) location.assign("/");
});

const downloadLink = (job) => link("Download", jobPath(job.id, "archive"), { class: "button primary", download: "" });
const repruneLink = () => link("Prune again", "#reprune", { "data-needs": "submit" });
const similarLink = (job) => link("New job like this", `/new${query({ from: job.id })}`, { "data-needs": "submit" });
const compareLink = (job) => link("Compare", `/compare${query({ a: job.id })}`);

const BUTTONS = {
  queued: [cancelButton, similarLink],
  running: [cancelButton, similarLink],
  succeeded: [downloadLink, repruneLink, compareLink, similarLink, deleteButton],
  failed: [resumeButton, similarLink, deleteButton],
  cancelled: [resumeButton, similarLink, deleteButton],
};

// Show the buttons of a job. They are replaced only when the set changes, and keep the focus.
export const showActions = (job, onJob) => {
  const place = byId("actions");
  const state = `${job.status} ${job.cancel_requested}`;
  if (place.dataset.state === state) return;
  const hadFocus = place.contains(document.activeElement);
  place.dataset.state = state;
  place.replaceChildren(...BUTTONS[job.status].map((make) => make(job, onJob)));
  if (hadFocus) place.querySelector("a, button")?.focus();
};
