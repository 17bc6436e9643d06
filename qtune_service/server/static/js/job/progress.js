// Progress of a job: its stages, the scored samples and tokens, and a chart of the speed over time.

import { drawChart } from "../../report/js/charts.js";
import { get, jobPath } from "../api.js";
import { byId, h, setText } from "../dom.js";
import { count, duration, percent } from "../format.js";
import { isFinal } from "../updates.js";
import { loadVega } from "./chart_library.js";

const STAGES = {
  prepare: "Prepare", plan: "Plan shards", score: "Score with the model", thresholds: "Find thresholds",
  prune: "Prune", report: "Report",
};
const SCORING_STAGES = new Set(["plan", "score"]);
const PRUNING_STAGES = new Set(["thresholds", "prune", "report"]);
let attempt = 0;
let history = null; // [{at, rate}] of this attempt: seconds since the epoch, tokens per second
let historyLoaded = null; // a promise

export const showProgress = (job) => {
  showStages(job);
  showWaiting(job);
  showRates(job);
  if (job.attempts !== attempt || isFinal(job)) {
    attempt = job.attempts;
    historyLoaded = loadHistory(job);
  }
  const last = history?.at(-1);
  const at = new Date(job.updated_at) / 1000;
  if (job.stage === "score" && job.status === "running" && history && !(last && at <= last.at)) {
    history.push({ at, rate: job.progress.tokens_per_s });
    historyLoaded.then(() => showSpeed(history));
  }
};

// Load what the driver recorded before this page was opened. On failure the chart shows less.
const loadHistory = async (job) => {
  history = [];
  const recorded = await get(jobPath(job.id, "history")).catch(() => null);
  if (recorded) history = recorded.at_s.map((at, i) => ({ at, rate: recorded.tokens_per_s[i] }));
  showSpeed(history);
};

const STATES = {
  done: ["✓", "done"], now: ["●", "in progress"], stopped: ["✕", "stopped here"], ahead: ["○", "to do"],
};

const showStages = (job) => {
  const names = Object.keys(STAGES).filter((name) =>
    !(job.spec.from_scores && SCORING_STAGES.has(name)) && !(job.spec.prune === null && PRUNING_STAGES.has(name)));
  const current = job.status === "succeeded" ? names.length : names.indexOf(job.stage);
  const isStopped = job.status === "failed" || job.status === "cancelled";
  const items = names.map((name, i) => {
    let state = isStopped ? "stopped" : "now";
    if (i < current) state = "done";
    else if (i > current || job.status === "queued") state = "ahead";
    const [sign, text] = STATES[state];
    return h("li", { class: state, "aria-current": state === "now" ? "step" : null },
      h("span", { "aria-hidden": "true" }, sign), ` ${STAGES[name]} `, h("span", { class: "unseen" }, text));
  });
  const list = byId("stages");
  const text = items.map((item) => item.textContent).join();
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...items);
};

// What the job waits for, and actors that failed or hang, as its driver last reported them.
const showWaiting = (job) => {
  const { waiting = "", problems = [] } = job.progress;
  const isRunning = job.status === "running";
  byId("waiting").hidden = !(isRunning && waiting);
  setText(byId("waiting"), waiting ? `${waiting[0].toUpperCase()}${waiting.slice(1)}.` : "");
  byId("problems").hidden = !(isRunning && problems.length > 0);
  byId("problems").replaceChildren(...problems.map((problem) => h("li", {}, problem)));
};

const showRates = (job) => {
  const { samples_done: done, samples_total: total, tokens_per_s: tokensPerS, eta_s: etaS } = job.progress;
  const { actors = 0, actors_wanted: wanted = 0 } = job.progress;
  byId("scoring").hidden = !(total > 0);
  if (!(total > 0)) return;
  byId("bar").max = total;
  byId("bar").value = done;
  const isScoring = job.status === "running" && job.stage === "score";
  const figures = [
    ["Samples scored", percent(done, total), `${count(done)} of ${count(total)}`],
    ["Tokens scored", count(job.progress.tokens_done), "in this attempt"],
    isScoring && ["Tokens per second", count(tokensPerS), "over the last 30 s"],
    isScoring && ["Time left", duration(etaS), "for scoring"],
    isScoring && wanted > 0 && ["Actors", count(actors), `of ${count(wanted)} requested`],
  ].filter(Boolean);
  byId("rates").replaceChildren(...figures.map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "note" }, note))));
};

// --- the chart of the speed

const AXIS = {
  labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--muted)",
  tickColor: "var(--muted)", labelFontSize: 11, titleFontSize: 12, titleFontWeight: 500,
};
const SPEED_CHART = {
  width: "container", height: 130, padding: 4, background: "transparent",
  config: { aria: false, font: "inherit", view: { stroke: null }, axis: AXIS },
  encoding: {
    x: {
      field: "minutes", type: "quantitative", title: "minutes",
      axis: { tickCount: 6, grid: false }, scale: { nice: false },
    },
    y: {
      field: "rate", type: "quantitative", title: null,
      axis: { tickCount: 4, format: "~s" }, scale: { zero: true },
    },
  },
  layer: [
    { mark: { type: "area", color: "var(--q2)", opacity: 0.15 } },
    { mark: { type: "line", color: "var(--q2)", strokeWidth: 1.8 } },
  ],
};
let view = null;
let drawing = null; // a promise, once drawing has begun
let rows = [];

const showSpeed = async (points) => {
  const figure = byId("speed");
  const scored = points.filter(({ rate }) => rate > 0);
  figure.hidden = scored.length < 2;
  if (figure.hidden) return;
  rows = points.map(({ at, rate }) => ({ minutes: (at - points[0].at) / 60, rate }));
  const highest = Math.max(...scored.map(({ rate }) => rate));
  const time = duration(60 * rows.at(-1).minutes);
  const text = `latest ${count(scored.at(-1).rate)}, highest ${count(highest)}, over ${time}`;
  setText(byId("speed-now"), text);
  figure.querySelector(".drawing").setAttribute("aria-label", `Tokens scored per second over time: ${text}`);
  if (drawing === null) {
    drawing = drawSpeed(figure.querySelector(".drawing"));
    return;
  }
  await drawing;
  view?.data("history", rows).runAsync();
};

const drawSpeed = async (element) => {
  try {
    await loadVega();
  } catch {
    drawing = null; // the next update tries again, and the connection banner shows the reason
    return;
  }
  const spec = { ...structuredClone(SPEED_CHART), data: { name: "history" }, datasets: { history: rows } };
  view = await drawChart(element, spec);
};
