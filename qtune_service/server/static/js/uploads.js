// Uploaded datasets: the upload of files with its progress, and the list of earlier uploads. `fetch` does not report
// the progress of an upload, so this uses XMLHttpRequest.

import { csrfHeader, get, Problem, remove } from "./api.js";
import { markLost } from "./connection.js";
import { h, time } from "./dom.js";
import { ago, bytes, count, duration, moment, percent } from "./format.js";
import { announce, ask, notifyError } from "./notifications.js";

const MAX_LISTED = 50;

// Return {promise, cancel}. The promise resolves to the dataset.
const send = (file, onProgress) => {
  const request = new XMLHttpRequest();
  const promise = csrfHeader("POST").then((headers) => new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    request.addEventListener("load", () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(errorOf(request));
    });
    request.addEventListener("error", () => {
      markLost();
      reject(new Error("The connection was lost during the upload."));
    });
    request.addEventListener("abort", () => reject(new DOMException("Cancelled.", "AbortError")));
    request.open("POST", `/api/v1/datasets?name=${encodeURIComponent(file.name)}`);
    const allHeaders = { "Content-Type": "application/octet-stream", ...headers };
    for (const [name, value] of Object.entries(allHeaders)) request.setRequestHeader(name, value);
    request.send(file);
  }));
  return { promise, cancel: () => request.abort() };
};

const errorOf = (request) => {
  try {
    return new Problem(JSON.parse(request.responseText));
  } catch {
    return new Error(`The server answered ${request.status}.`);
  }
};

// Upload a file and show its progress as an item of `list`. `onDone` gets the dataset.
export const upload = async (file, list, { maxBytes, onDone }) => {
  const bar = h("progress", { max: Math.max(file.size, 1), value: 0, "aria-label": `Upload of ${file.name}` });
  const state = h("span", { class: "muted" }, `0% of ${bytes(file.size)}`);
  const stop = h("button", { type: "button" }, "Cancel");
  const item = h("li", {}, h("b", {}, file.name), state, stop, bar);
  list.append(item);
  if (maxBytes && file.size > maxBytes) {
    showFailure(item, stop, `The file has ${bytes(file.size)}. This server accepts at most ${bytes(maxBytes)}.`);
    return;
  }
  const start = performance.now();
  const { promise, cancel } = send(file, (sent) => {
    bar.value = sent;
    const seconds = (performance.now() - start) / 1000;
    const parts = [`${percent(sent, file.size)} of ${bytes(file.size)}`];
    if (sent > 0 && seconds > 1) {
      parts.push(`${bytes(sent / seconds)}/s`, `${duration((seconds * (file.size - sent)) / sent)} left`);
    }
    state.textContent = sent < file.size ? parts.join(" · ") : "The server is checking the file …";
  });
  stop.addEventListener("click", cancel);
  let dataset;
  try {
    dataset = await promise;
  } catch (error) {
    const text = error.name === "AbortError" ? "Cancelled." : [error.message, error.hint].filter(Boolean).join(" ");
    showFailure(item, stop, text);
    return;
  }
  item.remove();
  announce(`${file.name} is uploaded.`);
  onDone(dataset);
};

const showFailure = (item, stop, text) => {
  item.querySelector("progress").remove();
  item.querySelector(".muted").replaceWith(h("span", { class: "error", role: "alert" }, text));
  const name = item.querySelector("b").textContent;
  const close = h("button", { type: "button", "aria-label": `Remove ${name} from the list` }, "×");
  close.addEventListener("click", () => item.remove());
  stop.replaceWith(close);
};

export const datasetFacts = (dataset) => [
  dataset.format,
  dataset.rows !== null && `${count(dataset.rows)} records`,
  dataset.num_bad_rows && `${count(dataset.num_bad_rows)} of them unusable (${dataset.first_problem})`,
  bytes(dataset.size_bytes),
].filter(Boolean).join(" · ");

// List earlier uploads, with buttons to use and to delete them.
export const listDatasets = async (place, { isUsed, onUse }) => {
  const { datasets } = await get(`/api/v1/datasets?limit=${MAX_LISTED}`);
  place.querySelector("ul").replaceChildren(...datasets.map((dataset) => datasetItem(dataset, { isUsed, onUse })));
  place.querySelector("#datasets-none").hidden = datasets.length > 0;
  return datasets;
};

const datasetItem = (dataset, { isUsed, onUse }) => {
  const use = h("button", { type: "button", "aria-label": `Use ${dataset.name}`, disabled: isUsed(dataset) }, "Use");
  const deletion = h("button", { type: "button", "aria-label": `Delete ${dataset.name}` }, "Delete");
  const created = time(dataset.created_at, ago(dataset.created_at), moment(dataset.created_at));
  const item = h("li", { title: `SHA-256 ${dataset.sha256}` }, h("b", {}, dataset.name),
    h("span", { class: "muted" }, datasetFacts(dataset), " · ", created, ` by ${dataset.owner}`), use, deletion);
  use.addEventListener("click", () => {
    onUse(dataset);
    use.disabled = true;
  });
  deletion.addEventListener("click", () => deleteDataset(dataset, item).catch(notifyError));
  return item;
};

const deleteDataset = async (dataset, item) => {
  const text = "Jobs that read it are kept, but cannot be resumed.";
  if (!(await ask({ title: `Delete ${dataset.name}?`, text, action: "Delete", isDangerous: true }))) return;
  await remove(`/api/v1/datasets/${dataset.id}`);
  item.remove();
};
