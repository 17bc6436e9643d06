// A sample with its tokens, as GET .../samples gives it: prompt, kept, or removed from the loss.

import { h } from "./dom.js";
import { count, number } from "./format.js";

const KINDS = { prompt: "p", kept: "k", removed: "r" };
const SPOKEN = { kept: "kept", removed: "removed" };

export const sampleCard = (sample) => h("details", { class: "sample" },
  h("summary", {}, h("b", {}, sample.sample_id), sample.quadrant && h("span", {}, h("i", { class: `dot ${sample.quadrant}` }), sample.quadrant),
    h("span", {}, `perplexity ${number(sample.perplexity)}`), h("span", {}, `entropy ${number(sample.mean_entropy)}`), h("span", {}, `${count(sample.num_tokens)} tokens`),
    h("span", { class: "muted" }, beginning(sample))),
  h("div", { class: "tokens", dir: "auto", tabindex: 0, role: "group", "aria-label": `Tokens of ${sample.sample_id}` }, sample.tokens.map(token)));

const MAX_CHARS = 110;

// What the sample answers, to tell samples apart before they are opened.
const beginning = ({ tokens }) => {
  const text = tokens.filter((one) => one.state !== "prompt").map((one) => one.text).join("").trim();
  return text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS)}…` : text;
};

const token = ({ text, state, nll, entropy }) => {
  const title = state === "prompt" ? null : `${SPOKEN[state]}: ${number(nll)} nats, entropy ${number(entropy)}`;
  return h("span", { class: KINDS[state], title }, visible(text));
};

// Line ends and tabs have signs; a line end also ends the line.
export const visible = (text) => text.split(/(\n|\t)/).filter(Boolean).flatMap((part) => {
  if (part === "\n") return [h("i", { class: "n" }), "\n"];
  if (part === "\t") return [h("i", { class: "t" }), "\t"];
  return [part];
});
