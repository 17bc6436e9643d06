// Comparison of two jobs: settings, counts, thresholds, overlap of the kept samples, and examples.

import { get, query } from "./api.js";
import { byId, h } from "./dom.js";
import { ago, count, lastPart, number, percent, signedCount } from "./format.js";
import { notifyError } from "./notifications.js";
import { scoredTokens } from "./tokens.js";

const QUADRANTS = {
  Q1: "harmful noise", Q2: "valuable misconception", Q3: "redundant knowledge", Q4: "calibration data",
};
const KEPT = new Set(["Q2", "Q4"]);
const THRESHOLDS = {
  alpha: "Alpha", ppl_low: "Perplexity, low", ppl_high: "Perplexity, high", ent_low: "Entropy, low",
  ent_high: "Entropy, high",
};
const START_CHARS = 110; // of a response, in the summary of a sample

// --- choice of jobs

const idsInAddress = () => {
  const params = new URLSearchParams(location.search);
  return { a: params.get("a") ?? "", b: params.get("b") ?? "" };
};

const showChoices = async ({ a, b }) => {
  const { jobs } = await get("/api/v1/jobs?status=succeeded&limit=100");
  for (const [select, id] of [[byId("pick-a"), a], [byId("pick-b"), b]]) {
    const options = jobs.map((job) => h("option", { value: job.id }, `${job.name} (${ago(job.created_at)})`));
    if (id && !jobs.some((job) => job.id === id)) options.unshift(h("option", { value: id }, id));
    select.replaceChildren(...options);
    if (id) select.value = id;
  }
  if (!a && jobs.length > 1) byId("pick-a").value = jobs[1].id;
  byId("too-few").hidden = jobs.length > 1 || Boolean(a && b);
  byId("pick").hidden = jobs.length < 2 && !(a && b);
};

// --- parts of the comparison

const section = (id, title, ...content) =>
  h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...content.flat());

const table = (caption, head, rows, attributes = {}) => h("div", { class: "scroll" }, h("table", attributes,
  h("caption", {}, caption),
  h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
  h("tbody", {}, rows.map(([first, ...cells]) =>
    h("tr", {}, h("th", { scope: "row" }, first), cells.map((cell) => h("td", {}, cell)))))));

const dot = (name) => h("i", { class: `dot ${name}` });

const jobCards = (found) => h("div", { class: "jobs" }, ["a", "b"].map((name) => {
  const job = found[name];
  const { kept, scored } = job.counts;
  const model = job.spec.model.name;
  return h("article", { class: "job" },
    h("p", { class: "eyebrow" }, name.toUpperCase()),
    h("h2", {}, h("a", { href: `/jobs/${job.id}` }, job.name)),
    h("p", { class: "muted small" },
      h("span", { class: `status ${job.status}` }, job.status), " · ",
      h("span", { title: model }, lastPart(model)), ` · ${ago(job.created_at)} by ${job.owner}`),
    kept !== undefined && h("p", { class: "kept" },
      h("b", {}, percent(kept, scored)), ` kept: ${count(kept)} of ${count(scored)} samples`));
}));

const settings = ({ settings: differences }) => {
  const rows = differences.map(({ field, a, b }) => [h("code", {}, field), valueCode(a), valueCode(b)]);
  return section("settings", "Settings that differ", rows.length
    ? table("", ["Field", "A", "B"], rows, { class: "settings" })
    : h("p", {}, "None. Both jobs have the same settings."));
};

const valueCode = (value) => {
  if (value === null || value === undefined) return h("span", { class: "muted" }, "not set");
  return h("code", {}, Array.isArray(value) ? value.join("\n") : String(value));
};

const figures = ({ a, b, tokens_a: tokensA, tokens_b: tokensB }) => {
  const row = (name, inA, inB) =>
    [name, count(inA), count(inB), inA === undefined || inB === undefined ? count(null) : signedCount(inB - inA)];
  const countRow = (label, key) => row(label, a.counts[key], b.counts[key]);
  const quadrantLabel = (name, meaning) =>
    h("span", {}, dot(name), `${name} ${meaning}, ${KEPT.has(name) ? "kept" : "dropped"}`);
  const rows = [
    countRow("Records read", "read"), countRow("Rejected", "rejected"),
    countRow("Scored", "scored"), countRow("Kept", "kept"),
    ...Object.entries(QUADRANTS).map(([name, meaning]) => countRow(quadrantLabel(name, meaning), name)),
    row("Tokens trained on", tokensA.after, tokensB.after),
  ];
  const limits = Object.entries(THRESHOLDS)
    .map(([key, label]) => [label, number(a.thresholds[key]), number(b.thresholds[key])]);
  return section("figures", "Counts and thresholds", h("div", { class: "pair" },
    table("Counts", ["", "A", "B", "B − A"], rows), table("Thresholds", ["", "A", "B"], limits)));
};

const overlap = ({ samples }) => {
  const { kept_by_both: both, kept_by_a: onlyA, kept_by_b: onlyB, kept_by_neither: neither, common } = samples;
  const parts = [
    ["both", both, "Kept by both"], ["only-a", onlyA, "Kept by A only"],
    ["only-b", onlyB, "Kept by B only"], ["none", neither, "Dropped by both"],
  ];
  const bar = h("div", { class: "flow", "aria-hidden": "true" });
  for (const [name, size] of parts) {
    if (size === 0) continue;
    const part = h("i", { class: name });
    part.style.flexGrow = size;
    bar.append(part);
  }
  const key = h("ul", { class: "key" }, parts.map(([name, size, label]) =>
    h("li", {}, dot(name), `${label} `, h("b", {}, count(size)), ` (${percent(size, common)})`)));
  const share = samples.overlap === null ? "Neither job keeps any of the common samples."
    : `Of the samples that either job keeps, both keep ${percent(both, both + onlyA + onlyB)}.`;
  const { only_in_a: inA, only_in_b: inB } = samples;
  const others = inA + inB
    ? ` ${count(inA)} samples are only in A and ${count(inB)} only in B. They are not counted here.` : "";
  const text = `${share} The jobs have ${count(common)} samples in common.${others}`;
  return section("overlap", "Overlap", h("p", {}, text), bar, key);
};

const moves = ({ samples }) => {
  const names = Object.keys(QUADRANTS);
  const rows = names.map((from) => [
    h("span", {}, dot(from), `${from} in A`), ...names.map((to) => moveCell(samples.moves[from][to], from, to)),
  ]);
  return section("moves", "Changes of quadrant",
    h("p", {}, "Samples by their quadrant in A (rows) and in B (columns).",
      " Frames mark samples that one job keeps and the other drops."),
    table("", ["", ...names.map((name) => `${name} in B`)], rows, { class: "moves" }));
};

const moveCell = (size, from, to) => {
  if (!size) return h("span", { class: "muted" }, "0");
  if (from === to) return h("b", {}, count(size));
  return h("span", { class: KEPT.has(from) === KEPT.has(to) ? "" : "crossed" }, count(size));
};

const examples = ({ samples }) => {
  const title = "Samples that only one job keeps";
  if (samples.kept_by_a + samples.kept_by_b === 0) {
    return section("examples", title, h("p", {}, "None. Both jobs keep the same samples."));
  }
  const groups = [["A", samples.examples_a, samples.kept_by_a], ["B", samples.examples_b, samples.kept_by_b]];
  return section("examples", title, groups.map(([name, shown, all]) => {
    const amount = shown.length ? `– ${count(shown.length)} of ${count(all)}` : "– none";
    return h("div", { class: "group" },
      h("h3", {}, `Only ${name} `, h("span", { class: "muted" }, amount)), shown.map(sampleCard));
  }));
};

const sampleCard = (sample) => h("details", { class: "sample" },
  h("summary", {},
    h("b", {}, sample.sample_id),
    sample.quadrant && h("span", {}, dot(sample.quadrant), sample.quadrant),
    h("span", {}, `perplexity ${number(sample.perplexity)}`),
    h("span", {}, `entropy ${number(sample.mean_entropy)}`),
    h("span", {}, `${count(sample.num_tokens)} tokens`),
    h("span", { class: "muted" }, startOfResponse(sample))),
  ...scoredTokens(sample, "decision"));

const startOfResponse = ({ tokens }) => {
  const text = tokens.filter(({ state }) => state !== "prompt").map((token) => token.text).join("").trim();
  return text.length > START_CHARS ? `${text.slice(0, START_CHARS)}…` : text;
};

// --- the page

const show = (found) => {
  const parts = [jobCards(found), settings(found), figures(found)];
  if (found.samples) parts.push(overlap(found), moves(found), examples(found));
  else parts.push(section("overlap", "Samples", h("p", { class: "warnings" }, found.why_no_samples)));
  byId("comparison").replaceChildren(...parts);
  document.title = `${found.a.name} and ${found.b.name} · Q-Tuning`;
};

const compare = async () => {
  try {
    show(await get(`/api/v1/compare${query(ids)}`));
  } catch (error) {
    if (error.name !== "Problem") throw error;
    byId("compare-problem").textContent = `${error.message} ${error.hint}`;
    byId("compare-problem").hidden = false;
  }
};

const ids = idsInAddress();
showChoices(ids).catch(notifyError);
if (ids.a && ids.b) compare().catch(notifyError);
