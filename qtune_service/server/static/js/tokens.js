// The view of a sample's tokens on the service's pages. A token's class is its state: p prompt, k kept, r removed
// from the loss, d dropped with its sample, o omitted. Text stays text: characters that are invisible, or would
// reorder their neighbours, become signs, as in the report (report/token_view.py).

import { connectTokens } from "../report/js/tokens.js";
import { h } from "./dom.js";
import { count, number } from "./format.js";

const MAX_TOKENS = 1500;
const MAX_CHARS = 200; // of one token, not of a prompt
const PROMPT_CHARS = 1200; // at each end of a long prompt
const SPECIAL = /^<[|/]?[^<>\s]{1,60}>$/;
const CLASSES = { prompt: "p", kept: "k", removed: "r" };
const LEVELS = 6;
// Scores at which a colour level begins. NLL and entropy are in nats, the smoothed score is a perplexity.
const BOUNDS = { nll: [0.5, 1, 2, 4, 7], entropy: [0.5, 1, 1.75, 2.5, 4], smoothed: [1.6, 2.7, 7, 50, 1000] };

// Return the tokens of a scored sample, its readout line and, for a long sample, a button for the rest.
export const scoredTokens = (sample, colour) => {
  const box = tokenBox(`${sample.sample_id}. Arrow keys move from token to token.`);
  const readout = h("p", { class: "readout", role: "status", "aria-live": "polite" });
  const fill = (maxTokens) => {
    box.replaceChildren(...runs(sample, maxTokens));
    recolour(box, colour);
  };
  fill(MAX_TOKENS);
  const elements = [box, readout];
  if (sample.tokens.length > MAX_TOKENS) elements.push(moreButton(sample, box, fill));
  queueMicrotask(() => connectTokens(box)); // when the readout is next to the box
  return elements;
};

// Return the tokens of a sample that was not scored. The server leaves out the middle of a long sample.
export const previewTokens = ({ tokens, token_ids: ids, loss_mask: mask, num_left_out: numOmitted }, name) => {
  const spans = tokens.map((text, i) => {
    const isTrained = mask[i] === 1;
    const state = [isTrained ? "k" : "p", SPECIAL.test(text) && "special"].filter(Boolean).join(" ");
    const name = `token ${ids[i]}${isTrained ? ", trained on" : ""}`;
    return h(isTrained ? "mark" : "span", { class: state, title: name }, visibleText(text));
  });
  if (numOmitted) spans.splice(tokens.length / 2, 0, h("span", { class: "o" }, ` … ${count(numOmitted)} tokens … `));
  return tokenBox(name, spans);
};

const tokenBox = (name, spans = []) =>
  h("div", { class: "tokens", dir: "auto", tabindex: "0", role: "group", "aria-label": `Tokens of ${name}` }, spans);

const moreButton = (sample, box, fill) => {
  const button = h("button", { type: "button" }, `Show all ${count(sample.tokens.length)} tokens`);
  const row = h("p", { class: "under" }, button);
  button.addEventListener("click", () => {
    fill(sample.tokens.length);
    connectTokens(box);
    row.remove();
    box.focus();
  });
  return row;
};

// Consecutive prompt tokens make one run.
function* runs(sample, maxTokens) {
  let prompt = "";
  for (const token of sample.tokens.slice(0, maxTokens)) {
    if (token.state === "prompt") {
      prompt += token.text;
      continue;
    }
    if (prompt) yield* promptRuns(prompt);
    prompt = "";
    yield trainedToken(token, sample.kept);
  }
  if (prompt) yield* promptRuns(prompt);
}

function* promptRuns(text) {
  if (text.length <= 2 * PROMPT_CHARS) {
    yield h("span", { class: "p" }, ...visibleText(text));
    return;
  }
  yield h("span", { class: "p" }, ...visibleText(text.slice(0, PROMPT_CHARS)));
  yield h("span", { class: "o" }, ` … ${count(text.length - 2 * PROMPT_CHARS)} characters are not shown … `);
  yield h("span", { class: "p" }, ...visibleText(text.slice(-PROMPT_CHARS)));
}

const trainedToken = (token, isKept) => {
  const state = isKept === false ? "d" : CLASSES[token.state];
  const length = token.text.length;
  const text = length > MAX_CHARS ? `${token.text.slice(0, MAX_CHARS)}… (${count(length)} characters)` : token.text;
  const continues = token.text ? "" : " c"; // an empty token continues the previous character
  const span = h("span", { class: state + continues, title: title(token) }, ...visibleText(text));
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

// Colour the tokens below an element by a score: nll, entropy or smoothed. Any other name removes the colours.
export const recolour = (element, score) => {
  for (const token of element.querySelectorAll(".tokens :is(.k, .r, .d), :scope > :is(.k, .r, .d)")) {
    for (let i = 0; i < LEVELS; i += 1) token.classList.toggle(`heat-${i}`, token.dataset[score] === String(i));
  }
};

// Control codes, invisible and bidirectional characters, and half surrogate pairs.
const CODES = new RegExp([
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f]",
  "[\\u0080-\\u009f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]",
  "[\\ud800-\\udbff](?![\\udc00-\\udfff])",
  "(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
].join("|"), "g");
const sign = (char) => {
  const code = char.charCodeAt(0);
  if (code < 32) return String.fromCharCode(0x2400 + code);
  return code === 127 ? "␡" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
};

// Return the nodes of a text. CSS draws the signs of line ends and tabs, so that copied text is the real text.
const visibleText = (text) => text.replace(CODES, sign).split(/(\n|\t)/).flatMap((piece) => {
  if (piece === "\n") return [h("i", { class: "n" }), "\n"];
  if (piece === "\t") return [h("i", { class: "t" }), "\t"];
  return piece ? [piece] : [];
});
