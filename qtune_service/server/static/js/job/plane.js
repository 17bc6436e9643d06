// The plane by value and by rank, the table of quadrants, and the slider: drawn from /plane by the report's own scripts.

import { connectPlanes, connectSlider, drawCharts } from "../../pictures.js";
import { h, setText } from "../dom.js";
import { count, percent } from "../format.js";
import { loadVega } from "./library.js";

export const showPlane = async (plane, samples, chooseRatio) => {
  document.getElementById("pictures").hidden = false;
  describe(plane);
  showQuadrants(plane);
  const views = {};
  if (plane.what_if) prepareSlider(plane);
  else withoutCurve(plane);
  await loadVega();
  plane.datasets.examples = []; // rings of what stands in the report with its tokens: here every sample has them
  const points = [].concat(plane.datasets.samples?.id ?? []);
  await drawCharts(plane, views);
  if (points.length) {
    connectPlanes(views, plane, { link: (row) => (row.cut ? null : "#samples"), open: (row) => samples.showOne(row.id) });
  }
  // Not before the charts are there: the first choice moves them.
  if (plane.what_if) connectSlider(views, plane.what_if, (at) => chooseRatio(plane.what_if.points.sample_keep_ratio[at]));
  document.getElementById("job").dataset.pictures = "drawn";
};

const describe = (plane) => {
  const { strategy, quadrant_rule: rule, thresholds, datasets, counts } = plane;
  setText(document.getElementById("plane-rule"), strategy
    ? `Q-Tuning would keep the two shaded corners; here another strategy chose: ${strategy}.`
    : "Q-Tuning keeps the two shaded corners.");
  const drawn = datasets.samples?.id?.length ?? 0;
  const all = drawn === counts.scored ? `All ${count(drawn)} samples are drawn.` : `${count(drawn)} of ${count(counts.scored)} samples are drawn as points; the shading counts the others too.`;
  const crossed = thresholds.alpha > 0.5 ? " Alpha is over a half, so the corners overlap and each pair of thresholds crosses." : "";
  const own = rule ? ` The rule ${rule} gave the labels, so a point's colour may differ from the corner that it is in.` : "";
  setText(document.getElementById("plane-caption"), `${all} Filled points are kept, hollow ones dropped. Dashed lines are the thresholds.${crossed}${own}`);
};

const MEANINGS = {
  Q1: "The model is wrong and unsure: noise, or beyond what it can learn here.",
  Q2: "The model is wrong and sure: what training can correct.",
  Q3: "The model is right and sure: it knows this already.",
  Q4: "The model is right and unsure: keeps its doubts honest.",
};

const showQuadrants = (plane) => {
  const { quadrant_counts: quadrants, counts } = plane;
  document.getElementById("cards").replaceChildren(...quadrants.map((q) => {
    const card = h("li", { class: q.fate === "" || q.fate.startsWith("kept") ? "kept" : "gone" },
      h("div", { class: "head" }, h("i", { class: `dot ${q.label}` }), `${q.label} ${q.name}`),
      h("div", { class: "fate" }, h("b", {}, count(q.count)), ` (${percent(q.count, counts.scored)})${q.fate && `, ${q.fate}`}`),
      h("div", { class: "place" }, q.place));
    card.style.setProperty("--here", `var(--${q.label.toLowerCase()})`);
    return card;
  }));
  document.getElementById("quadrant-rows").replaceChildren(...quadrants.map((q) => h("tr", {},
    h("th", { scope: "row" }, h("i", { class: `dot ${q.label}` }), `${q.label} ${q.name}`),
    h("td", {}, count(q.count)), h("td", {}, percent(q.count, counts.scored)),
    h("td", { class: "text" }, MEANINGS[q.label]), h("td", { class: "text" }, q.fate || "another strategy chose"))));
  for (const q of quadrants) {
    for (const place of document.querySelectorAll(`[data-fate="${q.label}"]`)) setText(place, q.fate);
    for (const place of document.querySelectorAll(`[data-count="${q.label}"]`)) setText(place, count(q.count));
  }
};

const withoutCurve = (plane) => {
  document.getElementById("with-curve").hidden = true;
  document.getElementById("curve").hidden = true;
  const told = document.getElementById("no-curve");
  told.hidden = false;
  setText(told, plane.why_no_curve);
};

// What stands still while the slider moves.
const prepareSlider = (plane) => {
  const { points, here, all_tokens: allTokens } = plane.what_if;
  const last = points.alpha.length - 1;
  const slider = document.getElementById("ratio");
  slider.max = last;
  slider.value = here;
  for (const key of ["q1", "q2", "q3", "q4", "kept", "tokens"]) say(key, count(points[key][here]));
  say("token_share", percent(points.tokens[here], allTokens));
  say("alpha", points.alpha[here].toFixed(3));
  setText(document.getElementById("capacity"), `Disjoint corners hold at most ${count(plane.disjoint_capacity)} samples, ${percent(plane.disjoint_capacity, plane.counts.scored)}.`);
  const way = Math.max(last, 1);
  mark("job", here / way);
  const overlap = points.alpha.findIndex((alpha) => alpha > 0.5);
  if (overlap < 0) return;
  mark("overlap", overlap / way).hidden = false;
  if (Math.abs(overlap - here) > way / 4) setText(document.querySelector(".mark.overlap"), "corners overlap");
};

const say = (key, text) => setText(document.querySelector(`[data-job="${key}"]`), text);

const mark = (name, at) => {
  const element = document.querySelector(`.mark.${name}`);
  element.style.setProperty("--at", at.toFixed(4));
  return element;
};
