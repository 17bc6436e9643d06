// Results of a finished job. The parts load independently, so that one that fails does not hide the others.

import { get, jobPath } from "../api.js";
import { byId, h } from "../dom.js";
import { count, number, percent } from "../format.js";
import { showFiles } from "./files.js";
import { showPlane } from "./plane.js";
import { showRejected } from "./rejected.js";
import { connectReprune } from "./reprune.js";
import { connectSamples } from "./samples.js";

const SECTIONS = {
  plane: "Plane", quadrants: "Quadrants", "what-if": "Keep ratio", reprune: "Prune again", samples: "Samples",
  rejected: "Rejected", files: "Download", progress: "Progress", log: "Log", settings: "Settings",
};
const PRUNED_ONLY = new Set(["plane", "quadrants", "what-if"]);
const MAX_WARNINGS = 40;

export const showResults = async (job) => {
  const isPruned = job.spec.prune !== null;
  byId("results").hidden = false;
  showFigures(job, null);
  showNavigation(Object.keys(SECTIONS).filter((name) => isPruned || !PRUNED_ONLY.has(name)));
  const plane = isPruned ? await loadPlane(job) : null;
  if (plane) showFigures(job, plane);
  const setRatio = connectReprune(job);
  const samples = connectSamples(job, plane);
  const others = Promise.all([samples.load(), showRejected(job), showFiles(job), isPruned && showWarnings(job)]);
  if (plane?.thresholds) await showPlane(plane, samples, setRatio);
  await others;
};

const loadPlane = async (job) => {
  try {
    return await get(jobPath(job.id, "plane"));
  } catch (error) {
    if (error.name !== "Problem") throw error;
    addWarnings([`The charts are missing: ${error.message}. ${error.hint}`]);
    return null;
  }
};

const showNavigation = (names) => {
  byId("sections").hidden = false;
  byId("sections").replaceChildren(...names.map((name) => h("a", { href: `#${name}` }, SECTIONS[name])));
};

const showFigures = (job, plane) => {
  const { counts, thresholds } = job;
  const figures = [["Records read", count(counts.read), `${count(counts.rejected)} rejected`]];
  if (job.spec.prune === null) {
    figures.push(["Samples scored", count(counts.scored), "not pruned"]);
  } else {
    figures.push(["Samples kept", count(counts.kept), `${percent(counts.kept, counts.scored)} of those scored`]);
    figures.push(["Samples dropped", count(counts.pruned), `${percent(counts.pruned, counts.scored)} of those scored`]);
  }
  if (plane) {
    const { after, scored } = plane.tokens;
    figures.push(["Tokens trained on", count(after), `${percent(after, scored)} of all ${count(scored)}`]);
  }
  if (thresholds.alpha !== undefined) {
    const corners = thresholds.alpha > 0.5 ? "corners overlap" : "corners are disjoint";
    figures.push(["Alpha", number(thresholds.alpha), corners]);
  }
  byId("figures").replaceChildren(...figures.map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "note" }, note))));
};

const showWarnings = async (job) => {
  const { warnings } = await get(jobPath(job.id, "summary"));
  addWarnings(warnings.slice(0, MAX_WARNINGS));
};

const addWarnings = (texts) => {
  if (texts.length === 0) return;
  byId("warnings").hidden = false;
  byId("warnings").querySelector("ul").append(...texts.map((text) => h("li", {}, text)));
};
