// Samples as the model will see them: text, tokens, and which of them are trained on.

import { h } from "./dom.js";
import { count, lastPart, percent } from "./format.js";
import { visible } from "./sample_card.js";

const SPECIAL = /^<[|/]?[^<>\s]{1,60}>$/;

export const showPreview = (place, { samples, rejected, warnings, template }) => {
  place.hidden = false;
  const trained = samples.reduce((sum, sample) => sum + sample.num_trained, 0);
  const tokens = samples.reduce((sum, sample) => sum + sample.num_tokens, 0);
  place.querySelector(".summary").textContent = samples.length
    ? `${count(samples.length)} samples, ${count(tokens)} tokens; ${count(trained)} of them (${percent(trained, tokens)}) are trained on. Template: ${template}.`
    : "No sample can be used.";
  place.querySelector(".legend").hidden = samples.length === 0;
  fillList(place.querySelector(".warnings"), warnings.map((text) => h("li", {}, text)));
  fillList(place.querySelector(".rejected"), rejected.map(refused));
  place.querySelector(".samples").replaceChildren(...samples.map(card));
  place.querySelector("h2").focus({ preventScroll: true });
  place.scrollIntoView({ block: "start" });
};

const fillList = (box, items) => {
  box.hidden = items.length === 0;
  box.querySelector("ul").replaceChildren(...items);
};

const placeOf = ({ source, line }) => `${lastPart(source)}, line ${count(line)}`;

const refused = (record) => h("li", {}, h("b", {}, record.reason), ` ${placeOf(record)}: ${record.detail}. `, h("span", { class: "muted" }, record.hint),
  record.record && h("pre", { class: "record" }, record.record));

const card = (sample) => h("details", { class: "sample", open: true },
  h("summary", {}, h("b", {}, placeOf(sample)), h("span", {}, `${count(sample.num_trained)} of ${count(sample.num_tokens)} tokens trained on`),
    sample.truncated && h("span", { class: "why-shown" }, "cut to the model's length")),
  h("div", { class: "tokens", dir: "auto", tabindex: 0, role: "group", "aria-label": `Tokens of ${placeOf(sample)}` }, shownTokens(sample)));

// Of a long sample the middle is left out.
const shownTokens = ({ tokens, token_ids: ids, loss_mask: mask, num_left_out: leftOut }) => {
  const shown = tokens.map((text, i) => token(text, ids[i], mask[i] === 1));
  if (leftOut) shown.splice(tokens.length / 2, 0, h("span", { class: "o" }, ` … ${count(leftOut)} tokens … `));
  return shown;
};

const token = (text, id, isTrained) => {
  const kind = [isTrained ? "k" : "p", SPECIAL.test(text) && "special"].filter(Boolean).join(" ");
  return h(isTrained ? "mark" : "span", { class: kind, title: `token ${id}${isTrained ? ", trained on" : ""}` }, visible(text));
};
