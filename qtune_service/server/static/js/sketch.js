// What the ratios mean, on samples that lie evenly on the plane: which are kept, by the method's own rule (selection/plane.py).
// It is a sketch: where the thresholds of real data fall, their scores decide.

import { h } from "./dom.js";
import { count } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 240;
const NUM_SAMPLES = 200;
const WORDS = "Both sides times six gives 42 , hmm , so x is 7 well I guess , the end .".split(" ");
const NOISE = [6, 2, 1, 3, 4, 7, 13, 19, 14, 9, 10, 5, 0, 17, 18, 16, 15, 12, 11, 8];

// Spread evenly, and without a grid (Roberts' R2 sequence). e: rank of entropy, p: of perplexity, in (0, 1).
const SAMPLES = Array.from({ length: NUM_SAMPLES }, (_, i) => ({
  e: (0.5 + (i + 1) * 0.7548776662466927) % 1,
  p: (0.5 + (i + 1) * 0.5698402909980532) % 1,
  draw: ((i + 1) * 0.6180339887498949) % 1,
}));

const entry = ({ e, p }) => Math.min(Math.max(1 - p, e), Math.max(p, 1 - e));

// The lowest are kept.
const ORDERS = {
  q_tuning: entry,
  random: ({ draw }) => draw,
  longest: ({ draw }) => draw,
  perplexity: ({ p }) => -p,
  entropy: ({ e }) => -e,
  infobatch: ({ p, draw }) => draw + (p >= 0.5 ? 0 : 1),
};
const TURNED = new Set(["longest", "perplexity", "entropy"]);

const quadrant = ({ e, p }, isKept) => {
  if (isKept) return p >= e ? "Q2" : "Q4";
  return p + e > 1 ? "Q1" : "Q3";
};

const WHY = {
  random: "A draw: where a sample lies on the plane does not count.",
  longest: "The longest answers (the shortest, turned round): where a sample lies on the plane does not count.",
  perplexity: "Those that the model is most wrong about (least, turned round).",
  entropy: "Those that the model is most unsure of (least, turned round).",
  infobatch: "All with a loss over the mean, and a draw of the others, as far as the share allows.",
};

export const drawSamples = (figure, { ratio, strategy, order }) => {
  const sign = order === "lowest" && TURNED.has(strategy) ? -1 : 1;
  const keys = SAMPLES.map((sample) => sign * ORDERS[strategy](sample));
  const num = Math.min(Math.max(Math.ceil(ratio * NUM_SAMPLES), 0), NUM_SAMPLES);
  const limit = num ? [...keys].sort((a, b) => a - b)[num - 1] : -Infinity;
  const placed = SAMPLES.map((sample, i) => ({ ...sample, isKept: keys[i] <= limit }));
  const isMethod = strategy === "q_tuning";
  figure.querySelector(".drawing").replaceChildren(drawing(placed, isMethod ? Math.max(limit, 0) : null));
  figure.querySelector("figcaption").replaceChildren(...caption(placed, isMethod ? limit : null, strategy));
};

const drawing = (placed, corner) => {
  const svg = shape("svg", { viewBox: `-22 -6 ${SIZE + 28} ${SIZE + 30}`, width: SIZE + 28, height: SIZE + 30 });
  svg.append(shape("rect", { class: "frame", x: 0, y: 0, width: SIZE, height: SIZE }));
  if (corner !== null) {
    const side = Math.min(corner, 1) * SIZE;
    svg.append(shape("rect", { class: "corner q2", x: 0, y: 0, width: side, height: side }));
    svg.append(shape("rect", { class: "corner q4", x: SIZE - side, y: SIZE - side, width: side, height: side }));
  }
  for (const sample of placed) {
    const name = corner === null ? "any" : quadrant(sample, sample.isKept).toLowerCase();
    svg.append(shape("circle", { class: `${sample.isKept ? "in" : "out"} ${name}`, cx: sample.e * SIZE, cy: (1 - sample.p) * SIZE, r: 3.1 }));
  }
  const names = corner === null ? [] : [["Q2", 7, 16, "start"], ["Q1", SIZE - 7, 16, "end"], ["Q3", 7, SIZE - 8, "start"], ["Q4", SIZE - 7, SIZE - 8, "end"]];
  for (const [text, x, y, anchor] of names) svg.append(label(text, { class: `name ${text.toLowerCase()}`, x, y, "text-anchor": anchor }));
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

const caption = (placed, corner, strategy) => {
  const kept = placed.filter((sample) => sample.isKept).length;
  const size = (name) => placed.filter((sample) => quadrant(sample, sample.isKept) === name).length;
  const first = `A sketch: of ${NUM_SAMPLES} evenly spread samples ${count(kept)} are kept. `;
  if (corner === null) return [first + WHY[strategy]];
  const list = h("ul", { class: "fates" },
    fate("Q1", `wrong and unsure: ${size("Q1")} dropped as noise`), fate("Q2", `wrong but sure: ${size("Q2")} kept, their noisy tokens masked`),
    fate("Q3", `right and sure: ${size("Q3")} dropped as known`), fate("Q4", `right but unsure: ${size("Q4")} kept whole`));
  const overlap = corner > 0.5 ? "At this ratio the two kept corners overlap. " : "";
  return [first, overlap, list];
};

const fate = (name, text) => h("li", {}, h("i", { class: `dot ${name}` }), h("b", {}, name), ` ${text}`);

export const drawTokens = (place, ratio) => {
  const kept = Math.ceil(ratio * WORDS.length);
  place.replaceChildren(...WORDS.flatMap((word, i) => [h("span", { class: NOISE[i] < kept ? "k" : "r" }, word), " "]));
};
