// The header of a job's page: name, status, facts, and the reason of a failure.

import { byId, h, setText, time } from "../dom.js";
import { ago, count, duration, moment, percent } from "../format.js";

const SIGNS = { queued: "○", running: "◐", succeeded: "✓", failed: "✕", cancelled: "–" };
let ticker = 0;

export const showHeader = (job) => {
  const sign = SIGNS[job.status];
  document.title = `${sign} ${job.name} · Q-Tuning`;
  setText(byId("name"), job.name);
  byId("name").classList.toggle("long", job.name.length > 60);
  byId("status").dataset.status = job.status;
  setText(byId("status"), `${sign} ${job.status}`);
  showStatusText(job);
  clearInterval(ticker);
  if (job.status === "running") ticker = setInterval(showStatusText, 1000, job);
  showFacts(job);
  showFailure(job);
};

const showStatusText = (job) => setText(byId("status-text"), STATUS_TEXTS[job.status](job));

const elapsed = (job) => {
  const end = job.finished_at ? new Date(job.finished_at) : Date.now();
  return duration(Math.max(0, (end - new Date(job.started_at)) / 1000));
};

const STATUS_TEXTS = {
  queued: () => "Waiting in the queue.",
  running: (job) => (job.cancel_requested ? "Stopping. Work in progress is being saved." : `For ${elapsed(job)}.`),
  succeeded: (job) => {
    const { kept, scored } = job.counts;
    if (kept === undefined) return `Scored ${count(scored)} samples in ${elapsed(job)}.`;
    return `Kept ${count(kept)} of ${count(scored)} samples (${percent(kept, scored)}) in ${elapsed(job)}.`;
  },
  failed: (job) => `${ago(job.finished_at)}. Finished work is saved.`,
  cancelled: (job) => `${ago(job.finished_at)}. Finished work is saved, and the job can be resumed.`,
};

const fact = (label, ...value) => h("li", {}, `${label} `, h("b", {}, ...value));

const showFacts = (job) => {
  const { spec } = job;
  const timeFact = (label, at) => at && fact(label, time(at, ago(at), moment(at)));
  byId("facts").replaceChildren(...[
    fact("Model", spec.model.name),
    fact("Data", spec.input.paths.join(", ")),
    spec.prune && fact("Samples to keep", percent(spec.prune.sample_keep_ratio, 1)),
    fact("Owner", job.owner),
    timeFact("Submitted", job.created_at),
    timeFact("Ended", job.finished_at),
    job.attempts > 1 && fact("Attempt", String(job.attempts)),
    fact("Id", h("code", {}, job.id)),
  ].filter(Boolean));
};

const NEXT_STEPS = {
  data: "Correct the data, or how it is read: “New job like this” starts with the same settings.",
  spec: "Correct the settings: “New job like this” starts with the same ones.",
  model: "Check that the model is complete where the job runs, then resume.",
  launch_failed: "Resume when the cause is fixed. The job continues where it stopped.",
};
const OTHER_STEP = "The log below may say more. A resumed job does not score its finished samples again.";

const showFailure = (job) => {
  const section = byId("failure");
  section.hidden = !job.error;
  if (!job.error) return;
  const { code, message, hint } = job.error;
  setText(section.querySelector(".message"), message);
  setText(section.querySelector(".hint"), hint);
  setText(section.querySelector(".next"), NEXT_STEPS[code] ?? OTHER_STEP);
  setText(section.querySelector("code"), code);
};
