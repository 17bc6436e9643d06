// A new job: the form, its preview, and its start. The form is server-rendered out of the request's schema.

import { get, post } from "./api.js";
import { commandOf, jobFileOf } from "./command.js";
import { connectCopyButtons } from "./copy.js";
import { h, setText } from "./dom.js";
import { bodyOf, controlOf, controls, fill, lines } from "./form.js";
import { clearError, clearErrors, foundHere, foundThere, showErrors } from "./form_errors.js";
import { notifyError } from "./notices.js";
import { showPreview } from "./preview.js";
import { drawSamples, drawTokens } from "./sketch.js";
import { facts, listDatasets, upload } from "./uploads.js";

const byId = (id) => document.getElementById(id);
const form = byId("new-job");
const errors = byId("errors");
const paths = controlOf(form, "input.paths");
const scoreOnly = byId("score-only");
const datasets = new Map(); // "dataset://ID" -> dataset
let maxUploadBytes = 0;
let sent = { text: "", key: "" };

const body = () => (scoreOnly.checked ? { ...bodyOf(form), prune: null } : bodyOf(form));

// --- what follows from the form

const follow = () => {
  for (const control of controls(form)) {
    if (control.dataset.field.startsWith("prune.")) control.disabled = scoreOnly.checked;
  }
  byId("pruning").hidden = scoreOnly.checked;
  const strategy = controlOf(form, "prune.strategy").value;
  const order = controlOf(form, "prune.strategy_order");
  order.closest(".field").hidden = !["longest", "perplexity", "entropy"].includes(strategy);
  drawSamples(byId("sample-picture"), { ratio: Number(controlOf(form, "prune.sample_keep_ratio").value), strategy, order: order.value });
  drawTokens(byId("token-picture"), Number(controlOf(form, "prune.token_keep_ratio").value));
  setText(byId("command"), commandOf(form, datasets, scoreOnly.checked));
  setText(byId("spec"), jobFileOf(form, datasets, scoreOnly.checked));
  nameDatasets();
};

// A dataset's id says little: its name stands below.
const nameDatasets = () => {
  const used = lines(paths.value).filter((path) => datasets.has(path)).map((path) => datasets.get(path));
  byId("named-datasets").replaceChildren(...used.map((dataset) => h("li", {}, h("code", {}, dataset.uri), " is ", h("b", {}, dataset.name), ` (${facts(dataset)})`)));
  byId("command-note").textContent = used.length ? "It reads the file that you uploaded: an uploaded dataset is known to this server only." : "";
};

const use = (dataset) => {
  datasets.set(dataset.uri, dataset);
  paths.value = [...lines(paths.value), dataset.uri].join("\n");
  clearError(paths, errors);
  follow();
};

const isUsed = (dataset) => lines(paths.value).includes(dataset.uri);

// --- sending

const freshKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// The same form sent twice is one job, also where the first answer got lost.
const keyOf = (text) => {
  if (sent.text !== text) sent = { text, key: freshKey() };
  return sent.key;
};

// Send with a button that shows it, and put what is wrong beside the fields.
const attempt = async (button, waiting, send) => {
  if (button.getAttribute("aria-disabled") === "true") return;
  const wrong = foundHere(form);
  if (wrong.length) {
    showErrors(form, errors, wrong);
    return;
  }
  const label = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = waiting;
  clearErrors(form, errors);
  try {
    await send();
  } catch (error) {
    if (error.name === "Problem" && error.status !== 401) showErrors(form, errors, foundThere(error));
    else if (error.name === "Unreachable") showErrors(form, errors, [{ field: "", message: "The server did not answer. Nothing is lost: press again when it is back; it stays one job." }]);
    else notifyError(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = label;
  }
};

const start = () => attempt(byId("start"), "Starting …", async () => {
  const asked = body();
  const job = await post("/api/v1/jobs", asked, { headers: { "Idempotency-Key": keyOf(JSON.stringify(asked)) } });
  location.assign(`/jobs/${job.id}`);
});

const preview = () => attempt(byId("show-preview"), "Rendering …", async () => {
  showPreview(byId("preview"), await post("/api/v1/preview", { ...body(), n: Number(byId("preview-count").value) }));
});

// --- what the server offers

const offer = async () => {
  const server = await get("/api/v1/server");
  maxUploadBytes = server.max_upload_bytes;
  const inputs = server.allowed_inputs;
  byId("allowed-inputs").replaceChildren(...(inputs.length ? ["One a line, below ", ...codes(inputs), ", or an uploaded dataset."] : ["This server reads uploaded datasets only."]));
  const models = server.allowed_models;
  byId("allowed-models").replaceChildren(...(models.length ? ["Allowed here: ", ...codes(models), "."] : ["This server allows no model. Its owner sets QTUNE_ALLOWED_MODELS."]));
  byId("models").replaceChildren(...models.map((value) => h("option", { value })));
  controlOf(form, "model.name").setAttribute("list", "models");
};

const codes = (texts) => texts.flatMap((text, at) => [at ? ", " : "", h("code", {}, text)]);

const takeFrom = async (id) => {
  const job = await get(`/api/v1/jobs/${encodeURIComponent(id)}`);
  const { output: _, ...spec } = job.spec;
  fill(form, { ...spec, name: job.name });
  scoreOnly.checked = job.spec.prune === null;
  const from = byId("from");
  from.replaceChildren("As in ", h("a", { href: `/jobs/${job.id}` }, job.name), ": change what is to be different.");
  from.hidden = false;
  follow();
};

const showDatasets = async () => {
  for (const dataset of await listDatasets(byId("datasets"), { isUsed, onUse: use })) datasets.set(dataset.uri, dataset);
  follow();
};

const uploadAll = async (files) => {
  for (const file of files) await upload(file, byId("uploads"), { maxBytes: maxUploadBytes, onDone: use });
  if (byId("datasets").open) await showDatasets();
};

const connectDrop = (place) => {
  const over = (isOver) => (event) => {
    event.preventDefault();
    place.classList.toggle("over", isOver);
  };
  place.addEventListener("dragover", over(true));
  place.addEventListener("dragleave", over(false));
  place.addEventListener("drop", (event) => {
    over(false)(event);
    uploadAll([...event.dataTransfer.files]).catch(notifyError);
  });
};

const connectSliders = () => {
  for (const slider of form.querySelectorAll("[data-slides]")) {
    const field = byId(slider.dataset.slides);
    slider.addEventListener("input", () => { field.value = slider.value; });
    field.addEventListener("input", () => { slider.value = field.value; });
  }
};

connectSliders();
form.addEventListener("input", (event) => {
  if (event.target.dataset.field) clearError(event.target, errors);
  follow();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
byId("show-preview").addEventListener("click", preview);
byId("upload").addEventListener("change", (event) => {
  uploadAll([...event.target.files]).catch(notifyError);
  event.target.value = "";
});
byId("datasets").addEventListener("toggle", () => { if (byId("datasets").open) showDatasets().catch(notifyError); });
addEventListener("pageshow", (event) => { if (event.persisted) sent = { text: "", key: "" }; });
connectDrop(byId("drop"));
connectCopyButtons();
follow();
offer().catch(notifyError);
const source = new URLSearchParams(location.search).get("from");
if (source) takeFrom(source).catch(notifyError);
