// Name, status, times and place of a job; and why it failed.

import { h, setText, time } from "../dom.js";
import { ago, count, duration, moment, percent } from "../format.js";

const STATUSES = {
  queued: ["○", "queued"],
  running: ["◐", "running"],
  succeeded: ["✓", "succeeded"],
  failed: ["✕", "failed"],
  cancelled: ["–", "cancelled"],
};
let ticking = 0;

export const showHead = (job) => {
  const [sign, word] = STATUSES[job.status];
  document.title = `${sign} ${job.name} · Q-Tuning`;
  const name = document.getElementById("name");
  setText(name, job.name);
  name.classList.toggle("long", job.name.length > 60);
  const status = document.getElementById("status");
  status.dataset.status = job.status;
  setText(status, `${sign} ${word}`);
  tell(job);
  clearInterval(ticking);
  if (job.status === "running") ticking = setInterval(tell, 1000, job);
  showFacts(job);
  showFailure(job);
};

const tell = (job) => setText(document.getElementById("told"), TOLD[job.status](job));

const elapsed = (job) => duration(Math.max(0, ((job.finished_at ? new Date(job.finished_at) : Date.now()) - new Date(job.started_at)) / 1000));

const TOLD = {
  queued: () => "It waits for its turn.",
  running: (job) => (job.cancel_requested ? "It is stopping, and saves what it has in hand." : `For ${elapsed(job)}.`),
  succeeded: (job) => {
    const { kept, scored } = job.counts;
    const took = `It took ${elapsed(job)}.`;
    return kept === undefined ? took : `Kept ${count(kept)} of ${count(scored)} samples (${percent(kept, scored)}). ${took}`;
  },
  failed: (job) => `${ago(job.finished_at)}. What was finished is saved.`,
  cancelled: (job) => `${ago(job.finished_at)}. What was finished is saved; resuming goes on from there.`,
};

const fact = (label, ...value) => h("li", {}, `${label} `, h("b", {}, ...value));

const showFacts = (job) => {
  const { spec } = job;
  const when = (label, at) => at && fact(label, time(at, ago(at), moment(at)));
  document.getElementById("facts").replaceChildren(...[
    fact("Model", spec.model.name),
    fact("Data", spec.input.paths.join(", ")),
    spec.prune && fact("Samples to keep", percent(spec.prune.sample_keep_ratio, 1)),
    fact("By", job.owner),
    when("Submitted", job.created_at),
    when("Ended", job.finished_at),
    job.attempts > 1 && fact("Attempt", String(job.attempts)),
    fact("Id", h("code", {}, job.id)),
  ].filter(Boolean));
};

const NEXT = {
  data: "Change the data or what is read of them: “New job like this” starts from the same answers.",
  spec: "Change what was asked: “New job like this” starts from the same answers.",
  model: "Look whether the model is complete where the job runs, then resume.",
  launch_failed: "When the reason is gone, resume: the job goes on where it was.",
};

const showFailure = (job) => {
  const section = document.getElementById("failure");
  section.hidden = !job.error;
  if (!job.error) return;
  const { code, message, hint } = job.error;
  setText(section.querySelector(".message"), message);
  setText(section.querySelector(".hint"), hint);
  setText(section.querySelector(".next"), NEXT[code] ?? "The log below may say more. Resume goes on where it was: what is scored is not scored again.");
  setText(section.querySelector("code"), code);
};
