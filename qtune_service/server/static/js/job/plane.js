// The plane by value and by rank, the table of quadrants, and the keep ratio slider. The report's modules draw them.

import { drawCharts } from "../../report/js/charts.js";
import { connectPlanes } from "../../report/js/picking.js";
import { connectSlider } from "../../report/js/what_if.js";
import { byId, h, setText } from "../dom.js";
import { count, percent } from "../format.js";
import { loadVega } from "./chart_library.js";

export const showPlane = async (plane, samples, setRatio) => {
  byId("charts").hidden = false;
  showCaption(plane);
  showQuadrants(plane);
  if (plane.what_if) prepareSlider(plane);
  else hideSlider(plane);
  await loadVega();
  plane.datasets.examples = []; // the report rings its examples; this page has the tokens of every sample
  const hasPoints = (plane.datasets.samples?.id ?? []).length > 0;
  const views = {};
  await drawCharts(plane, views);
  if (hasPoints) {
    connectPlanes(views, plane, {
      link: (row) => (row.cut ? null : "#samples"),
      open: (row) => samples.showOne(row.id),
    });
  }
  // Last, because the slider's first choice updates the charts.
  const ratios = plane.what_if?.points.sample_keep_ratio;
  if (ratios) connectSlider(views, plane.what_if, (index) => setRatio(ratios[index]));
  byId("job").dataset.charts = "drawn";
};

const showCaption = (plane) => {
  const { strategy, quadrant_rule: rule, thresholds, datasets, counts } = plane;
  setText(byId("plane-rule"), strategy
    ? `Q-Tuning would keep the two shaded corners, but another strategy chose: ${strategy}.`
    : "Q-Tuning keeps the two shaded corners.");
  const numDrawn = datasets.samples?.id?.length ?? 0;
  setText(byId("plane-caption"), [
    numDrawn === counts.scored
      ? `All ${count(numDrawn)} samples are drawn.`
      : `${count(numDrawn)} of ${count(counts.scored)} samples are drawn as points. The shading counts the others too.`,
    "Filled points are kept, hollow ones dropped. Dashed lines are the thresholds.",
    thresholds.alpha > 0.5 && "Alpha is above 1/2, so the corners overlap and each pair of thresholds crosses.",
    rule && `The labels come from the rule ${rule}, so a point's colour may differ from its corner's.`,
  ].filter(Boolean).join(" "));
};

const MEANINGS = {
  Q1: "The model is wrong and unsure: noise, or too hard to learn from this data.",
  Q2: "The model is wrong and sure: training can correct this.",
  Q3: "The model is right and sure: it already knows this.",
  Q4: "The model is right and unsure: this keeps its confidence calibrated.",
};

const showQuadrants = (plane) => {
  const { quadrant_counts: quadrants, counts } = plane;
  const title = (q) => [h("i", { class: `dot ${q.label}` }), `${q.label} ${q.name}`];
  byId("cards").replaceChildren(...quadrants.map((q) => {
    const card = h("li", { class: q.fate === "" || q.fate.startsWith("kept") ? "kept" : "gone" },
      h("div", { class: "head" }, title(q)),
      h("div", { class: "decision" },
        h("b", {}, count(q.count)), ` (${percent(q.count, counts.scored)})${q.fate && `, ${q.fate}`}`),
      h("div", { class: "place" }, q.place));
    card.style.setProperty("--here", `var(--${q.label.toLowerCase()})`);
    return card;
  }));
  byId("quadrant-rows").replaceChildren(...quadrants.map((q) => h("tr", {},
    h("th", { scope: "row" }, title(q)),
    h("td", {}, count(q.count)), h("td", {}, percent(q.count, counts.scored)),
    h("td", { class: "text" }, MEANINGS[q.label]),
    h("td", { class: "text" }, q.fate || "decided by another strategy"))));
  for (const q of quadrants) {
    for (const place of document.querySelectorAll(`[data-decision="${q.label}"]`)) setText(place, q.fate);
    for (const place of document.querySelectorAll(`[data-count="${q.label}"]`)) setText(place, count(q.count));
  }
};

const hideSlider = (plane) => {
  byId("with-curve").hidden = true;
  byId("curve").hidden = true;
  byId("no-curve").hidden = false;
  setText(byId("no-curve"), plane.why_no_curve);
};

// Set the parts of the slider that do not change when it moves.
const prepareSlider = (plane) => {
  const { points, here: jobIndex, all_tokens: allTokens } = plane.what_if;
  const lastIndex = points.alpha.length - 1;
  byId("ratio").max = lastIndex;
  byId("ratio").value = jobIndex;
  for (const key of ["q1", "q2", "q3", "q4", "kept", "tokens"]) setJobCell(key, count(points[key][jobIndex]));
  setJobCell("token_share", percent(points.tokens[jobIndex], allTokens));
  setJobCell("alpha", points.alpha[jobIndex].toFixed(3));
  const { disjoint_capacity: capacity, counts } = plane;
  const share = percent(capacity, counts.scored);
  setText(byId("capacity"), `Disjoint corners hold at most ${count(capacity)} samples, ${share}.`);
  const length = Math.max(lastIndex, 1);
  placeMark("job", jobIndex / length);
  const overlapIndex = points.alpha.findIndex((alpha) => alpha > 0.5);
  if (overlapIndex < 0) return;
  const mark = placeMark("overlap", overlapIndex / length);
  mark.hidden = false;
  if (Math.abs(overlapIndex - jobIndex) > length / 4) setText(mark, "corners overlap"); // else the labels would collide
};

const setJobCell = (key, text) => setText(document.querySelector(`[data-job="${key}"]`), text);

const placeMark = (name, share) => {
  const mark = document.querySelector(`.mark.${name}`);
  mark.style.setProperty("--at", share.toFixed(4));
  return mark;
};
