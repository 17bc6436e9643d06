// Preview of samples as the model will see them: text, tokens, and which tokens are trained on.

import { h } from "./dom.js";
import { count, percent, sourceLine } from "./format.js";
import { previewTokens } from "./tokens.js";

export const showPreview = (place, { samples, rejected, warnings, template }) => {
  place.hidden = false;
  const trained = samples.reduce((sum, sample) => sum + sample.num_trained, 0);
  const tokens = samples.reduce((sum, sample) => sum + sample.num_tokens, 0);
  const summary = `${count(samples.length)} samples with ${count(tokens)} tokens, of which ${count(trained)} `
    + `(${percent(trained, tokens)}) are trained on. Template: ${template}.`;
  place.querySelector(".summary").textContent = samples.length ? summary : "No sample can be used.";
  place.querySelector(".legend").hidden = samples.length === 0;
  fillList(place.querySelector(".warnings"), warnings.map((text) => h("li", {}, text)));
  fillList(place.querySelector(".rejected"), rejected.map(rejectedItem));
  place.querySelector(".samples").replaceChildren(...samples.map(sampleCard));
  place.querySelector("h2").focus({ preventScroll: true });
  place.scrollIntoView({ block: "start" });
};

const fillList = (box, items) => {
  box.hidden = items.length === 0;
  box.querySelector("ul").replaceChildren(...items);
};

const rejectedItem = (record) => h("li", {},
  h("b", {}, record.reason), ` ${sourceLine(record)}: ${record.detail}. `, h("span", { class: "muted" }, record.hint),
  record.record && h("pre", { class: "record" }, record.record));

const sampleCard = (sample) => h("details", { class: "sample", open: true },
  h("summary", {},
    h("b", {}, sourceLine(sample)),
    h("span", {}, `${count(sample.num_trained)} of ${count(sample.num_tokens)} tokens trained on`),
    sample.truncated && h("span", { class: "why-shown" }, "truncated to the model's length")),
  previewTokens(sample, sourceLine(sample)));
