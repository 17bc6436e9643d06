// Preview of samples as the model will see them: text, tokens, and which tokens are trained on.

import { h } from "./dom.js";
import { count, percent, sourceLine } from "./format.js";
import { previewTokens } from "./tokens.js";

export const showPreview = (place, { sources, samples, rejected, warnings, template }) => {
  place.hidden = false;
  const trained = samples.reduce((sum, sample) => sum + sample.num_trained, 0);
  const tokens = samples.reduce((sum, sample) => sum + sample.num_tokens, 0);
  const summary = `${count(samples.length)} samples with ${count(tokens)} tokens, of which ${count(trained)} `
    + `(${percent(trained, tokens)}) are trained on. Template: ${template}.`;
  place.querySelector(".summary").textContent = samples.length ? summary : "No sample can be used.";
  place.querySelector(".legend").hidden = samples.length === 0;
  fillList(place.querySelector(".warnings"), warnings.map((text) => h("li", {}, withLabels(text))));
  fillList(place.querySelector(".rejected"), rejected.map(rejectedItem));
  fillList(place.querySelector(".sources"), sources.map(sourceItem));
  place.querySelector(".samples").replaceChildren(...samples.map(sampleCard));
  place.querySelector("h2").focus({ preventScroll: true });
  place.scrollIntoView({ block: "start" });
};

// Put labels of the form in place of the fields that a text names in backticks.
const withLabels = (text) => text.replace(/`([a-z_]+)`/g, (whole, name) => {
  const control = document.querySelector(`[data-field$=".${name}"]`);
  return control?.labels[0] ? `“${control.labels[0].textContent.trim()}”` : whole;
});

const fillList = (box, items) => {
  box.hidden = items.length === 0;
  box.querySelector("ul").replaceChildren(...items);
};

// Show the format of a file, and its columns by use.
const sourceItem = ({ source, format, columns }) => {
  const byUse = Map.groupBy(Object.entries(columns), ([, use]) => use);
  return h("li", {}, h("code", {}, source.split("/").pop()), ` is read as `, h("b", {}, format), ". ",
    ...[...byUse].flatMap(([use, entries], at) => [
      at ? "; " : "", ...entries.flatMap(([column], i) => [i ? ", " : "", h("code", {}, column)]), `: ${use}`]), ".");
};

const rejectedItem = (record) => h("li", {},
  h("b", {}, record.reason), ` ${sourceLine(record)}: ${withLabels(record.detail)}. `, h("span", { class: "muted" }, withLabels(record.hint)),
  record.num_more > 0 && ` ${count(record.num_more)} more for the same reason.`,
  record.record && h("pre", { class: "record" }, record.record));

const sampleCard = (sample) => h("details", { class: "sample", open: true },
  h("summary", {},
    h("b", {}, sourceLine(sample)),
    h("span", {}, `${count(sample.num_trained)} of ${count(sample.num_tokens)} tokens trained on`),
    sample.truncated && h("span", { class: "why-shown" }, "truncated to the model's length")),
  previewTokens(sample, sourceLine(sample)));
