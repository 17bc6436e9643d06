// The page of a new job: form, uploads, preview and submission. The server renders the form from the request's schema.

import { connectCopyButtons } from "../report/js/copy.js";
import { get, jobPath, post } from "./api.js";
import { byId, h, setText } from "./dom.js";
import { drawExamplePlane, drawExampleTokens } from "./example_plane.js";
import { bodyOf, commandOf, controlOf, controls, fill, jobFileOf, lines } from "./form.js";
import { browserErrors, clearError, clearErrors, problemErrors, showErrors } from "./form_errors.js";
import { announce, notifyError } from "./notifications.js";
import { showPreview } from "./preview.js";
import { datasetFacts, listDatasets, upload } from "./uploads.js";

const form = byId("new-job");
const errors = byId("errors");
const paths = controlOf(form, "input.paths");
const scoreOnly = byId("score-only");
const datasets = new Map(); // "dataset://ID" -> dataset
const UNREACHABLE = "The server did not answer. Press the button again when the connection is back: "
  + "the job will not be created twice.";
let maxUploadBytes = 0;
let submitted = { text: "", key: "" };

const requestBody = () => (scoreOnly.checked ? { ...bodyOf(form), prune: null } : bodyOf(form));

// --- parts that depend on the form

const updateDependents = () => {
  for (const control of controls(form)) {
    if (control.dataset.field.startsWith("prune.")) control.disabled = scoreOnly.checked;
  }
  byId("pruning").hidden = scoreOnly.checked;
  const strategy = controlOf(form, "prune.strategy").value;
  const order = controlOf(form, "prune.strategy_order");
  order.closest(".field").hidden = !["longest", "perplexity", "entropy"].includes(strategy);
  const ratio = Number(controlOf(form, "prune.sample_keep_ratio").value);
  drawExamplePlane(byId("example-plane"), { ratio, strategy, order: order.value });
  drawExampleTokens(byId("example-tokens"), Number(controlOf(form, "prune.token_keep_ratio").value));
  setText(byId("command"), commandOf(form, datasets, scoreOnly.checked));
  setText(byId("spec"), jobFileOf(form, datasets, scoreOnly.checked));
  showDatasetNames();
};

// List the names of the datasets that the form uses, because a dataset's id says little.
const showDatasetNames = () => {
  const used = lines(paths.value).filter((path) => datasets.has(path)).map((path) => datasets.get(path));
  byId("named-datasets").replaceChildren(...used.map((dataset) =>
    h("li", {}, h("code", {}, dataset.uri), " is ", h("b", {}, dataset.name), ` (${datasetFacts(dataset)})`)));
  byId("command-note").textContent = used.length
    ? "The command reads your original file, because only this server has the uploaded dataset." : "";
};

const useDataset = (dataset) => {
  datasets.set(dataset.uri, dataset);
  paths.value = [...lines(paths.value), dataset.uri].join("\n");
  clearError(paths, errors);
  updateDependents();
};

const isUsed = (dataset) => lines(paths.value).includes(dataset.uri);

// --- submission

const randomKey = () => {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
};

// The same form sent twice has the same key, so it makes one job even if the first response was lost.
const idempotencyKey = (text) => {
  if (submitted.text !== text) submitted = { text, key: randomKey() };
  return submitted.key;
};

// Send the form, show `label` on the button meanwhile, and show errors next to their fields.
const send = async (button, label, request) => {
  if (button.getAttribute("aria-disabled") === "true") return;
  const found = browserErrors(form);
  if (found.length) {
    showErrors(form, errors, found);
    return;
  }
  const usualLabel = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = label;
  clearErrors(form, errors);
  try {
    await request();
  } catch (error) {
    if (error.name === "Problem" && error.status !== 401) showErrors(form, errors, problemErrors(error));
    else if (error.name === "Unreachable") showErrors(form, errors, [{ field: "", message: UNREACHABLE }]);
    else notifyError(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = usualLabel;
  }
};

const start = () => send(byId("start"), "Starting …", async () => {
  const body = requestBody();
  const headers = { "Idempotency-Key": idempotencyKey(JSON.stringify(body)) };
  const job = await post("/api/v1/jobs", body, { headers });
  location.assign(`/jobs/${job.id}`);
});

const preview = () => send(byId("show-preview"), "Rendering …", async () => {
  const body = { ...requestBody(), n: Number(byId("preview-count").value) };
  showPreview(byId("preview"), await post("/api/v1/preview", body));
});

// --- models, inputs and datasets of the server

const showServer = async () => {
  const server = await get("/api/v1/server");
  maxUploadBytes = server.max_upload_bytes;
  const inputs = server.allowed_inputs;
  byId("allowed-inputs").replaceChildren(...(inputs.length
    ? ["One path a line: below ", ...codeList(inputs), ", or an uploaded dataset."]
    : ["This server reads uploaded datasets only."]));
  const models = server.allowed_models;
  byId("allowed-models").replaceChildren(...(models.length
    ? ["Allowed on this server: ", ...codeList(models), "."]
    : ["This server allows no model yet. Ask its administrator to set QTUNE_ALLOWED_MODELS."]));
  byId("models").replaceChildren(...models.map((value) => h("option", { value })));
  controlOf(form, "model.name").setAttribute("list", "models");
};

const codeList = (texts) => texts.flatMap((text, i) => [i ? ", " : "", h("code", {}, text)]);

// Fill the form with the settings of another job.
const fillFrom = async (id) => {
  const job = await get(jobPath(id));
  const { output: _, ...spec } = job.spec;
  fill(form, { ...spec, name: job.name });
  scoreOnly.checked = job.spec.prune === null;
  const from = byId("from");
  from.replaceChildren("The settings are those of ", h("a", { href: `/jobs/${job.id}` }, job.name), ".");
  from.hidden = false;
  updateDependents();
};

const showDatasets = async () => {
  const listed = await listDatasets(byId("datasets"), { isUsed, onUse: useDataset });
  for (const dataset of listed) datasets.set(dataset.uri, dataset);
  updateDependents();
};

const uploadAll = async (files) => {
  for (const file of files) await upload(file, byId("uploads"), { maxBytes: maxUploadBytes, onDone: useDataset });
  if (byId("datasets").open) await showDatasets();
};

const connectDrop = (place) => {
  const mark = (isOver) => (event) => {
    event.preventDefault();
    place.classList.toggle("over", isOver);
  };
  place.addEventListener("dragover", mark(true));
  place.addEventListener("dragleave", mark(false));
  place.addEventListener("drop", (event) => {
    mark(false)(event);
    uploadAll([...event.dataTransfer.files]).catch(notifyError);
  });
};

const connectSliders = () => {
  for (const slider of form.querySelectorAll("[data-slider-for]")) {
    const field = byId(slider.dataset.sliderFor);
    slider.addEventListener("input", () => { field.value = slider.value; });
    field.addEventListener("input", () => { slider.value = field.value; });
  }
};

connectSliders();
form.addEventListener("input", (event) => {
  if (event.target.dataset.field) clearError(event.target, errors);
  updateDependents();
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
// A page restored by the Back button makes a new job.
addEventListener("pageshow", (event) => { if (event.persisted) submitted = { text: "", key: "" }; });
connectDrop(byId("drop"));
connectCopyButtons(announce);
updateDependents();
showServer().catch(notifyError);
const source = new URLSearchParams(location.search).get("from");
if (source) fillFrom(source).catch(notifyError);
