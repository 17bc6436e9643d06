// How far a job is: its stages, its progress while it scores, and its speed over time.

import { get } from "../api.js";
import { h, setText } from "../dom.js";
import { count, duration, percent } from "../format.js";
import { isFinal } from "../live.js";
import { jobPath } from "./actions.js";
import { showSpeed } from "./speed.js";

const STAGES = {
  prepare: "Prepare", plan: "Plan shards", score: "Score with the model", thresholds: "Find thresholds", prune: "Prune", report: "Report",
};
const FROM_SCORES = new Set(["plan", "score"]);
const ONLY_SCORED = new Set(["thresholds", "prune", "report"]);
let history = null; // of this attempt: [{at, rate}]
let attempt = 0;
let reading = null;

export const showCourse = (job) => {
  setText(document.getElementById("course-title"), isFinal(job) ? "How it ran" : "Progress");
  showStages(job);
  showRates(job);
  if (job.attempts !== attempt || isFinal(job)) {
    attempt = job.attempts;
    reading = readHistory(job);
  }
  const last = history?.at(-1);
  const at = new Date(job.updated_at) / 1000;
  if (job.stage === "score" && job.status === "running" && history && !(last && at <= last.at)) {
    history.push({ at, rate: job.progress.tokens_per_s });
    reading.then(() => showSpeed(job, history));
  }
};

// What the driver noted before this page was opened.
const readHistory = async (job) => {
  history = [];
  const found = await get(jobPath(job, "history")).catch(() => null); // a chart less; the page is no worse
  if (found) history = found.at_s.map((at, i) => ({ at, rate: found.tokens_per_s[i] }));
  showSpeed(job, history);
};

const showStages = (job) => {
  const names = Object.keys(STAGES).filter((name) =>
    !(job.spec.from_scores && FROM_SCORES.has(name)) && !(job.spec.prune === null && ONLY_SCORED.has(name)));
  const here = job.status === "succeeded" ? names.length : names.indexOf(job.stage);
  const isStopped = job.status === "failed" || job.status === "cancelled";
  const items = names.map((name, at) => {
    const state = at < here ? "done" : at > here || job.status === "queued" ? "ahead" : isStopped ? "stopped" : "now";
    const sign = { done: "✓", ahead: "○", stopped: "✕", now: "●" }[state];
    const told = { done: "done", ahead: "to come", stopped: "it stopped here", now: "now" }[state];
    return h("li", { class: state, "aria-current": state === "now" ? "step" : null },
      h("span", { "aria-hidden": "true" }, sign), ` ${STAGES[name]} `, h("span", { class: "unseen" }, told));
  });
  const list = document.getElementById("stages");
  const text = items.map((item) => item.textContent).join();
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...items);
};

const showRates = (job) => {
  const { progress } = job;
  const total = progress.samples_total;
  document.getElementById("scoring").hidden = !(total > 0);
  if (!(total > 0)) return;
  const bar = document.getElementById("bar");
  bar.max = total;
  bar.value = progress.samples_done;
  const isScoring = job.status === "running" && job.stage === "score";
  const figures = [
    ["Samples scored", percent(progress.samples_done, total), `${count(progress.samples_done)} of ${count(total)}`],
    ["Tokens scored", count(progress.tokens_done), "in this attempt"],
    isScoring && ["Tokens per second", count(progress.tokens_per_s), "over the last half minute"],
    isScoring && ["Time left", progress.eta_s === null ? "–" : duration(progress.eta_s), "for scoring"],
  ].filter(Boolean);
  document.getElementById("rates").replaceChildren(...figures.map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "note" }, note))));
};
