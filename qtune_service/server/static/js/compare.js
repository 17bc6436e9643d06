// Two jobs side by side.

import { get, query } from "./api.js";
import { h } from "./dom.js";
import { ago, count, lastPart, number, percent } from "./format.js";
import { notifyError } from "./notices.js";
import { sampleCard } from "./sample_card.js";

const byId = (id) => document.getElementById(id);
const QUADRANTS = { Q1: "harmful noise", Q2: "valuable misconception", Q3: "redundant knowledge", Q4: "calibration data" };
const KEPT = new Set(["Q2", "Q4"]);
const THRESHOLDS = { alpha: "Alpha", ppl_low: "Perplexity, low", ppl_high: "Perplexity, high", ent_low: "Entropy, low", ent_high: "Entropy, high" };

const asked = () => {
  const found = new URLSearchParams(location.search);
  return { a: found.get("a") ?? "", b: found.get("b") ?? "" };
};

// --- choosing

const offer = async ({ a, b }) => {
  const { jobs } = await get("/api/v1/jobs?status=succeeded&limit=100");
  const options = () => jobs.map((job) => h("option", { value: job.id }, `${job.name} (${ago(job.created_at)})`));
  for (const [select, id] of [[byId("pick-a"), a], [byId("pick-b"), b]]) {
    const listed = options();
    if (id && !jobs.some((job) => job.id === id)) listed.unshift(h("option", { value: id }, id));
    select.replaceChildren(...listed);
    if (id) select.value = id;
  }
  if (!a && jobs.length > 1) byId("pick-a").value = jobs[1].id;
  byId("too-few").hidden = jobs.length > 1 || Boolean(a && b);
  byId("pick").hidden = jobs.length < 2 && !(a && b);
};

// --- showing

const table = (caption, head, rows, options = {}) => h("div", { class: "scroll" }, h("table", options,
  h("caption", {}, caption),
  h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
  h("tbody", {}, rows.map(([first, ...cells]) => h("tr", {}, h("th", { scope: "row" }, first), cells.map((cell) => h("td", {}, cell)))))));

const change = (a, b) => {
  if (a === undefined || b === undefined || a === b) return "–";
  return `${b > a ? "+" : "−"}${count(Math.abs(b - a))}`;
};

const both = (name, a, b) => [name, count(a), count(b), change(a, b)];

const heads = (found) => h("div", { class: "sides" }, ["a", "b"].map((side) => {
  const job = found[side];
  const { kept, scored } = job.counts;
  return h("article", { class: "side" }, h("p", { class: "eyebrow" }, side.toUpperCase()), h("h2", {}, h("a", { href: `/jobs/${job.id}` }, job.name)),
    h("p", { class: "muted small" }, h("span", { class: `status ${job.status}` }, job.status), " · ", h("span", { title: job.spec.model.name }, lastPart(job.spec.model.name)), ` · ${ago(job.created_at)} by ${job.owner}`),
    kept !== undefined && h("p", { class: "kept" }, h("b", {}, percent(kept, scored)), ` kept: ${count(kept)} of ${count(scored)} samples`));
}));

const settings = ({ settings: differences }) => section("settings", "Settings that differ", differences.length
  ? table("", ["Field", "A", "B"], differences.map(({ field, a, b }) => [h("code", {}, field), said(a), said(b)]), { class: "settings" })
  : h("p", {}, "None: both jobs were asked for the same."));

const said = (value) => {
  if (value === null || value === undefined) return h("span", { class: "muted" }, "not set");
  return h("code", {}, Array.isArray(value) ? value.join("\n") : String(value));
};

const figures = ({ a, b, tokens_a: ta, tokens_b: tb }) => {
  const rows = [both("Records read", a.counts.read, b.counts.read), both("Rejected", a.counts.rejected, b.counts.rejected), both("Scored", a.counts.scored, b.counts.scored),
    both("Kept", a.counts.kept, b.counts.kept), ...Object.entries(QUADRANTS).map(([name, meaning]) =>
      both(h("span", {}, h("i", { class: `dot ${name}` }), `${name} ${meaning}, ${KEPT.has(name) ? "kept" : "dropped"}`), a.counts[name], b.counts[name])),
    both("Tokens trained on", ta.after, tb.after)];
  const limits = Object.entries(THRESHOLDS).map(([key, label]) => [label, number(a.thresholds[key]), number(b.thresholds[key])]);
  return section("figures", "Counts and thresholds", h("div", { class: "pair" },
    table("Counts", ["", "A", "B", "B − A"], rows), table("Thresholds", ["", "A", "B"], limits)));
};

const overlap = ({ samples }) => {
  const { kept_by_both: two, kept_by_a: a, kept_by_b: b, kept_by_neither: none, common } = samples;
  const parts = [["both", two, "Kept by both"], ["only-a", a, "Kept by A only"], ["only-b", b, "Kept by B only"], ["none", none, "Dropped by both"]];
  const bar = h("div", { class: "flow", "aria-hidden": "true" }, parts.filter(([, size]) => size > 0).map(([name, size]) => {
    const part = h("i", { class: name });
    part.style.flexGrow = size;
    return part;
  }));
  const key = h("ul", { class: "key" }, parts.map(([name, size, label]) => h("li", {}, h("i", { class: `dot ${name}` }), `${label} `, h("b", {}, count(size)), ` (${percent(size, common)})`)));
  const lede = samples.overlap === null ? "Neither keeps any of the common samples."
    : `Of what either keeps, ${percent(two, two + a + b)} is kept by both.`;
  const others = samples.only_in_a + samples.only_in_b
    ? ` ${count(samples.only_in_a)} samples are only in A, ${count(samples.only_in_b)} only in B; they are left out here.` : "";
  return section("overlap", "What both keep", h("p", {}, `${lede} Both have ${count(common)} samples in common.${others}`), bar, key);
};

const moves = ({ samples }) => {
  const names = Object.keys(QUADRANTS);
  const rows = names.map((from) => [h("span", {}, h("i", { class: `dot ${from}` }), `${from} in A`), ...names.map((to) => cell(samples.moves[from][to], from, to))]);
  return section("moves", "What changed sides", h("p", {}, "Samples by their quadrant in A (rows) and in B (columns). Framed: kept by one and dropped by the other."),
    table("", ["", ...names.map((name) => `${name} in B`)], rows, { class: "moves" }));
};

const cell = (size, from, to) => {
  if (!size) return h("span", { class: "muted" }, "0");
  if (from === to) return h("b", {}, count(size));
  return h("span", { class: KEPT.has(from) === KEPT.has(to) ? "" : "crossed" }, count(size));
};

const examples = ({ samples }) => section("examples", "Samples that only one keeps", samples.kept_by_a + samples.kept_by_b === 0
  ? h("p", {}, "There are none: both keep the same samples.")
  : [["A", samples.examples_a, samples.kept_by_a], ["B", samples.examples_b, samples.kept_by_b]].map(([side, shown, all]) =>
    h("div", { class: "group" }, h("h3", {}, `Only ${side} `, h("span", { class: "muted" }, shown.length ? `– ${count(shown.length)} of ${count(all)}` : "– none")), shown.map(sampleCard))));

const section = (id, title, ...content) => h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...content.flat());

const show = (found) => {
  const parts = [heads(found), settings(found), figures(found)];
  if (found.samples) parts.push(overlap(found), moves(found), examples(found));
  else parts.push(section("overlap", "Samples", h("p", { class: "warnings" }, found.why_no_samples)));
  byId("comparison").replaceChildren(...parts);
  document.title = `${found.a.name} and ${found.b.name} · Q-Tuning`;
};

const compare = async (ids) => {
  try {
    show(await get(`/api/v1/compare${query(ids)}`));
  } catch (error) {
    if (error.name !== "Problem") throw error;
    byId("compare-problem").textContent = `${error.message} ${error.hint}`;
    byId("compare-problem").hidden = false;
  }
};

const ids = asked();
offer(ids).catch(notifyError);
if (ids.a && ids.b) compare(ids).catch(notifyError);
