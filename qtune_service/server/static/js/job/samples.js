// The sample browser: filters by quadrant, decision and SQL condition, orders, pages, and single samples by their id.

import { get, jobPath, query } from "../api.js";
import { byId, h, setText } from "../dom.js";
import { count, number, sourceLine } from "../format.js";
import { notifyError } from "../notifications.js";
import { recolour, scoredTokens } from "../tokens.js";
import { explain } from "./explain.js";

const PAGE_SIZE = 10;
const OWN_CHARS = 4000;
const form = byId("sample-form");
const list = byId("sample-list");
const where = byId("sample-where");
const colour = byId("sample-colour");

// Connect the browser. Return {load(), showOne(id)}.
export const connectSamples = (job, plane) => {
  let offset = 0;
  let lastRequest = 0; // responses to earlier requests are ignored

  const load = async () => {
    const thisRequest = (lastRequest += 1);
    const values = Object.fromEntries(new FormData(form));
    list.setAttribute("aria-busy", "true");
    try {
      const found = await get(jobPath(job.id, "samples") + query({ ...values, limit: PAGE_SIZE, offset }));
      if (thisRequest !== lastRequest) return;
      showConditionError(null);
      show(found);
    } catch (error) {
      if (thisRequest !== lastRequest) return;
      if (error.name !== "Problem" || error.status !== 422) throw error;
      showConditionError(error);
    } finally {
      if (thisRequest === lastRequest) list.removeAttribute("aria-busy");
    }
  };

  const show = ({ total, samples }) => {
    list.replaceChildren(...samples.map((sample, i) => sampleDetails(sample, plane, i === 0)));
    setText(byId("sample-total"), total === 0
      ? "No sample matches." : `${count(offset + 1)}–${count(offset + samples.length)} of ${count(total)}`);
    byId("sample-pages").hidden = total <= PAGE_SIZE;
    byId("sample-before").disabled = offset === 0;
    byId("sample-after").disabled = offset + PAGE_SIZE >= total;
  };

  const showFirstPage = () => {
    offset = 0;
    load().catch(notifyError);
  };
  const turnPage = (step) => async () => {
    offset = Math.max(offset + step, 0);
    await load().catch(notifyError);
    byId("samples").scrollIntoView({ block: "start" });
  };

  const showOne = async (id) => {
    lastRequest += 1;
    try {
      const sample = await get(jobPath(job.id, "samples", encodeURIComponent(id)));
      const back = h("button", { type: "button" }, "Back to all samples");
      back.addEventListener("click", showFirstPage);
      list.replaceChildren(sampleDetails(sample, plane, true), h("p", {}, back));
      setText(byId("sample-total"), "The sample that you selected in the plane.");
      byId("sample-pages").hidden = true;
      byId("sample-total").scrollIntoView({ block: "start" });
      list.querySelector("summary").focus({ preventScroll: true });
    } catch (error) {
      notifyError(error);
    }
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    showFirstPage();
  });
  form.addEventListener("change", (event) => {
    if (event.target === colour) recolourAll();
    else showFirstPage();
  });
  byId("sample-before").addEventListener("click", turnPage(-PAGE_SIZE));
  byId("sample-after").addEventListener("click", turnPage(PAGE_SIZE));
  if (job.spec.prune === null) removeDecisionFilters();
  return { load, showOne };
};

const recolourAll = () => {
  recolour(list, colour.value);
  const isByDecision = colour.value === "decision";
  byId("decision-legend").hidden = !isByDecision;
  byId("heat-legend").hidden = isByDecision;
};

// An output that was only scored has no quadrants and no decisions.
const removeDecisionFilters = () => {
  byId("sample-tabs").hidden = true;
  byId("sample-kept").closest(".field").hidden = true;
  const sort = byId("sample-sort");
  sort.querySelector("[value=borderline]").remove();
  sort.value = "";
};

// Show the error of the SQL condition with its hint, which lists the columns.
const showConditionError = (error) => {
  const place = byId("where-error");
  place.hidden = error === null;
  where.setAttribute("aria-invalid", String(error !== null));
  setText(place, error ? [error.message, error.hint].filter(Boolean).join("\n") : "");
  if (error) where.focus();
};

// The content is made when the element is first opened.
const sampleDetails = (sample, plane, isOpen) => {
  const { sample_id: id, quadrant, kept } = sample;
  const fact = (name, value) => h("span", {}, `${name} ${value}`);
  const total = count(sample.num_tokens);
  const removed = kept === false ? sample.num_tokens : sample.tokens_removed;
  const summary = h("summary", {},
    quadrant && h("span", { class: "label" }, h("i", { class: `dot ${quadrant}` }), quadrant),
    h("b", { dir: "auto" }, id),
    kept !== undefined && h("span", { class: "why-shown" }, kept ? "kept" : "dropped"),
    fact("perplexity", number(sample.perplexity)), fact("entropy", number(sample.mean_entropy)),
    sample.error_rank !== undefined
      && fact("ranks", `${sample.error_rank.toFixed(3)}, ${sample.entropy_rank.toFixed(3)}`),
    h("span", {}, removed ? `${count(removed)} of ${total} tokens removed` : `${total} tokens`),
    h("span", { class: "muted" }, sourceLine(sample)));
  const details = h("details", { class: "sample" }, summary);
  const fill = () => {
    if (details.childElementCount > 1) return;
    const explanation = plane && h("p", { class: "reason" }, explain(sample, plane));
    const parts = [explanation, ...scoredTokens(sample, colour.value), ownFields(sample.own)];
    details.append(...parts.filter(Boolean));
  };
  details.addEventListener("toggle", fill);
  if (isOpen) {
    fill();
    details.open = true;
  }
  return details;
};

const ownFields = (fields) => {
  if (Object.keys(fields).length === 0) return null;
  const json = JSON.stringify(fields, null, 2);
  const text = json.length > OWN_CHARS ? `${json.slice(0, OWN_CHARS)}…` : json;
  return h("details", { class: "own" },
    h("summary", {}, "The record's own fields"),
    h("pre", { class: "spec", tabindex: "0", dir: "auto" }, text));
};
