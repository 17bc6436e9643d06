// The browser of samples: by quadrant, fate, order and condition, page by page; and one sample by its id.

import { get, query } from "../api.js";
import { h, setText } from "../dom.js";
import { count, number } from "../format.js";
import { notifyError } from "../notices.js";
import { jobPath } from "./actions.js";
import { reason } from "./reason.js";
import { drawTokens, recolour } from "./tokens.js";

const PAGE = 10;
const OWN_CHARS = 4000;
const form = document.getElementById("sample-form");
const list = document.getElementById("sample-list");
const where = document.getElementById("sample-where");
const colour = document.getElementById("sample-colour");

export const connectSamples = (job, plane) => {
  let offset = 0;
  let asked = 0; // answers to earlier questions are left aside

  const load = async () => {
    const turn = ++asked;
    const values = Object.fromEntries(new FormData(form));
    list.setAttribute("aria-busy", "true");
    try {
      const found = await get(jobPath(job, "samples") + query({ ...values, limit: PAGE, offset }));
      if (turn !== asked) return;
      complain(null);
      show(found);
    } catch (error) {
      if (turn !== asked) return;
      if (error.name !== "Problem" || error.status !== 422) throw error;
      complain(error);
    } finally {
      if (turn === asked) list.removeAttribute("aria-busy");
    }
  };

  const show = ({ total, samples }) => {
    list.replaceChildren(...samples.map((sample, at) => entry(sample, plane, job, at === 0)));
    setText(document.getElementById("sample-total"), total === 0
      ? "No sample matches." : `${count(offset + 1)}–${count(offset + samples.length)} of ${count(total)}`);
    document.getElementById("sample-pages").hidden = total <= PAGE;
    document.getElementById("sample-before").disabled = offset === 0;
    document.getElementById("sample-after").disabled = offset + PAGE >= total;
  };

  const restart = () => { offset = 0; load().catch(notifyError); };
  const turn = (step) => async () => {
    offset = Math.max(offset + step, 0);
    await load().catch(notifyError);
    document.getElementById("samples").scrollIntoView({ block: "start" });
  };

  form.addEventListener("submit", (event) => { event.preventDefault(); restart(); });
  form.addEventListener("change", (event) => {
    if (event.target === colour) recolourAll();
    else restart();
  });
  document.getElementById("sample-before").addEventListener("click", turn(-PAGE));
  document.getElementById("sample-after").addEventListener("click", turn(PAGE));
  if (job.spec.prune === null) withoutPlane();

  const showOne = async (id) => {
    asked += 1;
    try {
      const sample = await get(jobPath(job, "samples", encodeURIComponent(id)));
      list.replaceChildren(entry(sample, plane, job, true), h("p", {}, backButton(restart)));
      setText(document.getElementById("sample-total"), "The sample that was picked in the plane.");
      document.getElementById("sample-pages").hidden = true;
      document.getElementById("sample-total").scrollIntoView({ block: "start" });
      list.querySelector("summary").focus({ preventScroll: true });
    } catch (error) {
      notifyError(error);
    }
  };

  return { load, showOne };
};

const recolourAll = () => {
  recolour(list, colour.value);
  const isFate = colour.value === "fate";
  document.getElementById("fate-legend").hidden = !isFate;
  document.getElementById("heat-legend").hidden = isFate;
};

const backButton = (restart) => {
  const button = h("button", { type: "button" }, "Back to all samples");
  button.addEventListener("click", restart);
  return button;
};

const withoutPlane = () => {
  document.getElementById("sample-tabs").hidden = true;
  document.getElementById("sample-kept").closest(".field").hidden = true;
  const sort = document.getElementById("sample-sort");
  sort.querySelector("[value=borderline]").remove();
  sort.value = "";
};

// The hint lists the columns: it is as good as the error.
const complain = (error) => {
  const place = document.getElementById("where-error");
  place.hidden = error === null;
  where.setAttribute("aria-invalid", String(error !== null));
  setText(place, error ? [error.message, error.hint].filter(Boolean).join("\n") : "");
  if (error) where.focus();
};

const entry = (sample, plane, job, isOpen) => {
  const { sample_id: id, quadrant, kept } = sample;
  const fact = (name, value) => h("span", {}, `${name} ${value}`);
  const removed = kept === false ? sample.num_tokens : sample.tokens_removed;
  const summary = h("summary", {},
    quadrant && h("span", { class: "label" }, h("i", { class: `dot ${quadrant}` }), quadrant),
    h("b", { dir: "auto" }, id),
    kept !== undefined && h("span", { class: "why-shown" }, kept ? "kept" : "dropped"),
    fact("perplexity", number(sample.perplexity)), fact("entropy", number(sample.mean_entropy)),
    sample.error_rank !== undefined && fact("ranks", `${sample.error_rank.toFixed(3)}, ${sample.entropy_rank.toFixed(3)}`),
    h("span", {}, removed ? `${count(removed)} of ${count(sample.num_tokens)} tokens removed` : `${count(sample.num_tokens)} tokens`),
    h("span", { class: "muted" }, place(sample)));
  const details = h("details", { class: "sample" }, summary);
  const fill = () => {
    if (details.childElementCount === 1) details.append(...body(sample, plane, job));
  };
  details.addEventListener("toggle", fill);
  if (isOpen) {
    fill();
    details.open = true;
  }
  return details;
};

const place = ({ source, line }) => `${source.split("/").at(-1)}${line === null ? "" : `, line ${count(line)}`}`;

const body = (sample, plane, job) => [
  ...(plane ? [h("p", { class: "reason" }, reason(sample, plane))] : []),
  ...drawTokens(sample, colour.value),
  ...own(sample.own),
];

const own = (fields) => {
  if (Object.keys(fields).length === 0) return [];
  const json = JSON.stringify(fields, null, 2);
  const text = json.length > OWN_CHARS ? `${json.slice(0, OWN_CHARS)}…` : json;
  return [h("details", { class: "own" }, h("summary", {}, "The record's own fields"), h("pre", { class: "spec", tabindex: "0", dir: "auto" }, text))];
};
