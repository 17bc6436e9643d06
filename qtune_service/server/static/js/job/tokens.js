// A sample's tokens: coloured and underlined by their score, struck where they are out of the loss. All text is text: what
// cannot be seen, or would turn its neighbours round, is written as a sign, as in the report.

import { connectBox } from "../../pictures.js";
import { h } from "../dom.js";
import { count, number } from "../format.js";

const MAX_TOKENS = 1500;
const MAX_CHARS = 200; // of one token; a prompt's are joined
const PROMPT_CHARS = 1200;
const STATES = { prompt: "p", kept: "k", removed: "r" };
const LEVELS = 6;
// Scores at which a level begins. NLL and entropy are in nats; the smoothed score is a perplexity.
const BOUNDS = { nll: [0.5, 1, 2, 4, 7], entropy: [0.5, 1, 1.75, 2.5, 4], smoothed: [1.6, 2.7, 7, 50, 1000] };

export const drawTokens = (sample, colour) => {
  const box = h("div", { class: "tokens", dir: "auto", tabindex: "0", role: "group", "aria-label": `Tokens of ${sample.sample_id}. Arrow keys walk from token to token.` });
  const readout = h("p", { class: "readout", role: "status", "aria-live": "polite" });
  const fill = (most) => {
    box.replaceChildren(...runs(sample, most));
    recolour(box, colour);
  };
  fill(MAX_TOKENS);
  const made = [box, readout];
  if (sample.tokens.length > MAX_TOKENS) made.push(moreButton(sample, box, fill));
  queueMicrotask(() => connectBox(box));
  return made;
};

const moreButton = (sample, box, fill) => {
  const button = h("button", { type: "button" }, `Show all ${count(sample.tokens.length)} tokens`);
  const row = h("p", { class: "under" }, button);
  button.addEventListener("click", () => {
    fill(sample.tokens.length);
    connectBox(box);
    row.remove();
    box.focus();
  });
  return row;
};

function* runs(sample, most) {
  let prompt = "";
  for (const token of sample.tokens.slice(0, most)) {
    if (token.state === "prompt") {
      prompt += token.text;
      continue;
    }
    if (prompt) yield* promptRuns(prompt);
    prompt = "";
    yield trained(token, sample.kept);
  }
  if (prompt) yield* promptRuns(prompt);
}

function* promptRuns(text) {
  if (text.length <= 2 * PROMPT_CHARS) {
    yield h("span", { class: "p" }, ...visible(text));
    return;
  }
  yield h("span", { class: "p" }, ...visible(text.slice(0, PROMPT_CHARS)));
  yield h("span", { class: "o" }, ` … ${count(text.length - 2 * PROMPT_CHARS)} characters are not shown … `);
  yield h("span", { class: "p" }, ...visible(text.slice(-PROMPT_CHARS)));
}

const trained = (token, isKept) => {
  const state = isKept === false ? "d" : STATES[token.state];
  const text = token.text.length > MAX_CHARS ? `${token.text.slice(0, MAX_CHARS)}… (${count(token.text.length)} characters)` : token.text;
  const span = h("span", { class: token.text ? state : `${state} c`, title: title(token) }, ...visible(text));
  for (const [name, field] of [["nll", "nll"], ["entropy", "entropy"], ["smoothed", "score"]]) {
    if (typeof token[field] === "number") span.dataset[name] = level(token[field], BOUNDS[name]);
  }
  return span;
};

const level = (value, bounds) => bounds.filter((bound) => value >= bound).length;

const title = ({ nll, entropy, score }) => [
  nll !== null && `NLL ${number(nll)}`,
  nll !== null && `PPL ${number(typeof nll === "number" ? Math.exp(Math.min(nll, 700)) : nll)}`,
  entropy !== null && `entropy ${number(entropy)}`,
  score !== null && `smoothed ${number(score)}`,
].filter(Boolean).join(" · ");

// By what tokens are coloured, in all boxes below an element.
export const recolour = (element, by) => {
  for (const token of element.querySelectorAll(".tokens :is(.k, .r, .d), :scope > :is(.k, .r, .d)")) {
    for (let i = 0; i < LEVELS; i += 1) token.classList.toggle(`heat-${i}`, token.dataset[by] === String(i));
  }
};

const CODES = /[\u0000-\u0008\u000b-\u001f\u007f]|[\u0080-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const sign = (char) => {
  const code = char.charCodeAt(0);
  if (code < 32) return String.fromCharCode(0x2400 + code);
  return code === 127 ? "␡" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
};

// Line ends and tabs get a sign that CSS draws, so that copied text is the real text.
const visible = (text) => text.replace(CODES, sign).split(/(\n|\t)/).flatMap((piece) => {
  if (piece === "\n") return [h("i", { class: "n" }), "\n"];
  if (piece === "\t") return [h("i", { class: "t" }), "\t"];
  return piece ? [piece] : [];
});
