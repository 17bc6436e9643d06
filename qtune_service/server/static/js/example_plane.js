// Illustration of the ratios in the form of a new job, on samples that are spread evenly over the plane. On real data
// the thresholds depend on the scores.

import { entryAlpha } from "./corner_rule.js";
import { h } from "./dom.js";
import { count } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 240;
const NUM_SAMPLES = 200;
const WORDS = "Both sides times six gives 42 , hmm , so x is 7 well I guess , the end .".split(" ");
const NOISE_RANKS = [6, 2, 1, 3, 4, 7, 13, 19, 14, 9, 10, 5, 0, 17, 18, 16, 15, 12, 11, 8]; // of the words

// Evenly spread without a grid (Roberts' R2 sequence): ranks of entropy e and perplexity p, and a random number, in
// (0, 1).
const SAMPLES = Array.from({ length: NUM_SAMPLES }, (_, i) => ({
  e: (0.5 + (i + 1) * 0.7548776662466927) % 1,
  p: (0.5 + (i + 1) * 0.5698402909980532) % 1,
  draw: ((i + 1) * 0.6180339887498949) % 1,
}));

// Sort keys by strategy. The samples with the lowest keys are kept.
const SORT_KEYS = {
  q_tuning: ({ e, p }) => entryAlpha(p, e),
  random: ({ draw }) => draw,
  longest: ({ draw }) => draw,
  perplexity: ({ p }) => -p,
  entropy: ({ e }) => -e,
  infobatch: ({ p, draw }) => draw + (p >= 0.5 ? 0 : 1),
};
const REVERSIBLE = new Set(["longest", "perplexity", "entropy"]);

const EXPLANATIONS = {
  random: "Samples are chosen at random, wherever they are on the plane.",
  longest: "The longest responses are chosen, or the shortest in the other order, wherever they are on the plane.",
  perplexity: "Samples with the highest perplexity are chosen, or with the lowest in the other order.",
  entropy: "Samples with the highest entropy are chosen, or with the lowest in the other order.",
  infobatch: "Samples with a loss above the mean are chosen, and random others up to the share.",
};

const quadrant = ({ e, p }, isKept) => {
  if (isKept) return p >= e ? "Q2" : "Q4";
  return p + e > 1 ? "Q1" : "Q3";
};

export const drawExamplePlane = (figure, { ratio, strategy, order }) => {
  const sign = order === "lowest" && REVERSIBLE.has(strategy) ? -1 : 1;
  const keys = SAMPLES.map((sample) => sign * SORT_KEYS[strategy](sample));
  const numKept = Math.min(Math.max(Math.ceil(ratio * NUM_SAMPLES), 0), NUM_SAMPLES);
  const limit = numKept ? [...keys].sort((a, b) => a - b)[numKept - 1] : -Infinity;
  const samples = SAMPLES.map((sample, i) => ({ ...sample, isKept: keys[i] <= limit }));
  const isMethod = strategy === "q_tuning";
  figure.querySelector(".drawing").replaceChildren(drawing(samples, isMethod ? Math.max(limit, 0) : null));
  figure.querySelector("figcaption").replaceChildren(...caption(samples, isMethod ? limit : null, strategy));
};

// alpha: side of the kept corners, null where another strategy chooses.
const drawing = (samples, alpha) => {
  const svg = shape("svg", { viewBox: `-22 -6 ${SIZE + 28} ${SIZE + 30}`, width: SIZE + 28, height: SIZE + 30 });
  svg.append(shape("rect", { class: "frame", x: 0, y: 0, width: SIZE, height: SIZE }));
  if (alpha !== null) {
    const side = Math.min(alpha, 1) * SIZE;
    svg.append(shape("rect", { class: "corner q2", x: 0, y: 0, width: side, height: side }));
    svg.append(shape("rect", { class: "corner q4", x: SIZE - side, y: SIZE - side, width: side, height: side }));
  }
  for (const sample of samples) {
    const name = alpha === null ? "any" : quadrant(sample, sample.isKept).toLowerCase();
    const css = `${sample.isKept ? "in" : "out"} ${name}`;
    svg.append(shape("circle", { class: css, cx: sample.e * SIZE, cy: (1 - sample.p) * SIZE, r: 3.1 }));
  }
  const [left, right, top, bottom] = [7, SIZE - 7, 16, SIZE - 8];
  const names = [
    ["Q2", left, top, "start"], ["Q1", right, top, "end"],
    ["Q3", left, bottom, "start"], ["Q4", right, bottom, "end"],
  ];
  for (const [text, x, y, anchor] of alpha === null ? [] : names) {
    svg.append(label(text, { class: `name ${text.toLowerCase()}`, x, y, "text-anchor": anchor }));
  }
  svg.append(label("uncertainty →", { class: "axis", x: SIZE, y: SIZE + 17, "text-anchor": "end" }));
  svg.append(label("error →", { class: "axis", x: 0, y: -9, "text-anchor": "end", transform: "rotate(-90)" }));
  return svg;
};

const shape = (tag, attributes) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

const label = (text, attributes) => {
  const element = shape("text", attributes);
  element.textContent = text;
  return element;
};

const caption = (samples, alpha, strategy) => {
  const numKept = samples.filter((sample) => sample.isKept).length;
  const size = (name) => samples.filter((sample) => quadrant(sample, sample.isKept) === name).length;
  const first = `Illustration: ${count(numKept)} of ${NUM_SAMPLES} evenly spread samples are kept. `;
  if (alpha === null) return [first + EXPLANATIONS[strategy]];
  const overlap = alpha > 0.5 ? "At this ratio the two kept corners overlap. " : "";
  const item = (name, text) => h("li", {}, h("i", { class: `dot ${name}` }), h("b", {}, name), ` ${text}`);
  return [first, overlap, h("ul", { class: "decisions" },
    item("Q1", `wrong and unsure: ${size("Q1")} dropped as noise`),
    item("Q2", `wrong but sure: ${size("Q2")} kept, their noisy tokens masked`),
    item("Q3", `right and sure: ${size("Q3")} dropped as known`),
    item("Q4", `right but unsure: ${size("Q4")} kept whole`))];
};

export const drawExampleTokens = (place, ratio) => {
  const numKept = Math.ceil(ratio * WORDS.length);
  const span = (word, i) => h("span", { class: NOISE_RANKS[i] < numKept ? "k" : "r" }, word);
  place.replaceChildren(...WORDS.flatMap((word, i) => [span(word, i), " "]));
};
