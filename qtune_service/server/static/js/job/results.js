// What a finished job gave: each part is read by itself, so that one that cannot be read leaves the others.

import { get } from "../api.js";
import { h } from "../dom.js";
import { count, number, percent } from "../format.js";
import { jobPath } from "./actions.js";
import { connectAgain } from "./again.js";
import { showFiles } from "./files.js";
import { showPlane } from "./plane.js";
import { showRejected } from "./rejected.js";
import { connectSamples } from "./samples.js";

const PARTS = { plane: "Plane", quadrants: "Quadrants", "what-if": "Keep ratio", again: "Prune again", samples: "Samples", rejected: "Rejected", files: "Download", course: "How it ran", log: "Log", spec: "What was asked" };

export const showResults = async (job) => {
  document.getElementById("results").hidden = false;
  showFigures(job, null);
  showParts(job.spec.prune === null ? ["again", "samples", "rejected", "files", "course", "log", "spec"] : Object.keys(PARTS));
  const plane = job.spec.prune === null ? null : await readPlane(job);
  if (plane) showFigures(job, plane);
  const chooseRatio = connectAgain(job);
  const samples = connectSamples(job, plane);
  const rest = Promise.all([samples.load(), showRejected(job), showFiles(job), showWarnings(job)]);
  if (plane?.thresholds) await showPlane(plane, samples, chooseRatio);
  await rest;
};

const readPlane = async (job) => {
  try {
    return await get(jobPath(job, "plane"));
  } catch (error) {
    if (error.name !== "Problem") throw error;
    warn([`There are no pictures: ${error.message}. ${error.hint}`]);
    return null;
  }
};

const showParts = (names) => {
  const nav = document.getElementById("parts");
  nav.hidden = false;
  nav.replaceChildren(...names.map((name) => h("a", { href: `#${name}` }, PARTS[name])));
};

const showFigures = (job, plane) => {
  const c = job.counts;
  const figures = [["Records read", count(c.read), `${count(c.rejected)} rejected`]];
  if (job.spec.prune === null) figures.push(["Samples scored", count(c.scored), "not pruned"]);
  else figures.push(["Samples kept", count(c.kept), `${percent(c.kept, c.scored)} of those scored`], ["Samples dropped", count(c.pruned), `${percent(c.pruned, c.scored)} of those scored`]);
  if (plane) figures.push(["Tokens trained on", count(plane.tokens.after), `${percent(plane.tokens.after, plane.tokens.scored)} of all ${count(plane.tokens.scored)}`]);
  if (job.thresholds.alpha !== undefined) figures.push(["Alpha", number(job.thresholds.alpha), job.thresholds.alpha > 0.5 ? "corners overlap" : "corners are disjoint"]);
  document.getElementById("figures").replaceChildren(...figures.map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "note" }, note))));
};

const showWarnings = async (job) => {
  if (job.spec.prune === null) return;
  const { warnings } = await get(jobPath(job, "summary"));
  warn(warnings.slice(0, 40));
};

const warn = (texts) => {
  if (texts.length === 0) return;
  const box = document.getElementById("warnings");
  box.hidden = false;
  box.querySelector("ul").append(...texts.map((text) => h("li", {}, text)));
};
