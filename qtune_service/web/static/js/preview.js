// Samples as the model will see them: text, tokens, and which of them are trained on.

import { h } from "./dom.js";
import { count, percent } from "./format.js";
import { visible } from "./sample_card.js";

const SPECIAL = /^<[|/]?[^<>\s]{1,60}>$/;

export const showPreview = (place, { samples, rejected, warnings }) => {
  place.hidden = false;
  const trained = samples.reduce((sum, sample) => sum + sample.num_trained, 0);
  const tokens = samples.reduce((sum, sample) => sum + sample.num_tokens, 0);
  place.querySelector(".summary").textContent = samples.length
    ? `${count(samples.length)} samples, ${count(tokens)} tokens; ${count(trained)} of them (${percent(trained, tokens)}) are trained on.`
    : "No sample can be used.";
  place.querySelector(".legend").hidden = samples.length === 0;
  fillList(place.querySelector(".warnings"), warnings.map((text) => h("li", {}, text)));
  fillList(place.querySelector(".rejected"), rejected.map(refused));
  place.querySelector(".samples").replaceChildren(...samples.map(card));
  place.querySelector("h2").focus();
};

const fillList = (box, items) => {
  box.hidden = items.length === 0;
  box.querySelector("ul").replaceChildren(...items);
};

const refused = ({ reason, hint, source, line }) =>
  h("li", {}, h("b", {}, String(reason)), source && ` ${source}${line ? `, line ${line}` : ""}`, hint && h("span", { class: "muted" }, ` ${hint}`));

const card = (sample) => h("details", { class: "sample", open: true },
  h("summary", {}, h("b", {}, sample.id), h("span", {}, `${count(sample.num_trained)} of ${count(sample.num_tokens)} tokens trained on`)),
  h("div", { class: "tokens", dir: "auto", tabindex: 0, role: "group", "aria-label": `Tokens of ${sample.id}` },
    sample.tokens.map((text, i) => token(text, sample.token_ids[i], sample.loss_mask[i] === 1))));

const token = (text, id, isTrained) => {
  const kind = [isTrained ? "k" : "p", SPECIAL.test(text) && "special"].filter(Boolean).join(" ");
  return h(isTrained ? "mark" : "span", { class: kind, title: `token ${id}${isTrained ? ", trained on" : ""}` }, visible(text));
};
