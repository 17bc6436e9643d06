// Datasets: files uploaded with their progress, and those that were uploaded before. `fetch` tells nothing of how far an
// upload is, so it is an XMLHttpRequest.

import { get, Problem, proof, remove } from "./api.js";
import { lost } from "./connection.js";
import { h } from "./dom.js";
import { ago, bytes, count, duration, moment, percent } from "./format.js";
import { announce, confirmed, notifyError } from "./notices.js";

const LISTED = 50;

// Gives {promise, cancel}; the promise is of the dataset.
const send = (file, onProgress) => {
  const request = new XMLHttpRequest();
  const promise = proof("POST").then((headers) => new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    request.addEventListener("load", () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(refusal(request));
    });
    request.addEventListener("error", () => {
      lost();
      reject(new Error("The connection was lost before the file was there."));
    });
    request.addEventListener("abort", () => reject(new DOMException("Cancelled.", "AbortError")));
    request.open("POST", `/api/v1/datasets?name=${encodeURIComponent(file.name)}`);
    for (const [name, value] of Object.entries({ "Content-Type": "application/octet-stream", ...headers })) request.setRequestHeader(name, value);
    request.send(file);
  }));
  return { promise, cancel: () => request.abort() };
};

const refusal = (request) => {
  try {
    return new Problem(JSON.parse(request.responseText));
  } catch {
    return new Error(`The server answered ${request.status}.`);
  }
};

// Upload a file into a list; `onDone` gets the dataset.
export const upload = (file, list, { maxBytes, onDone }) => {
  const bar = h("progress", { max: Math.max(file.size, 1), value: 0, "aria-label": `Upload of ${file.name}` });
  const said = h("span", { class: "muted" }, `0% of ${bytes(file.size)}`);
  const stop = h("button", { type: "button" }, "Cancel");
  const item = h("li", {}, h("b", {}, file.name), said, stop, bar);
  list.append(item);
  if (maxBytes && file.size > maxBytes) {
    fail(item, stop, `It has ${bytes(file.size)}; this server takes at most ${bytes(maxBytes)}.`);
    return Promise.resolve();
  }
  const began = performance.now();
  const { promise, cancel } = send(file, (sent) => {
    bar.value = sent;
    const seconds = (performance.now() - began) / 1000;
    const left = sent > 0 && seconds > 1 ? ` · ${bytes(sent / seconds)}/s · ${duration((seconds * (file.size - sent)) / sent)} left` : "";
    said.textContent = sent < file.size ? `${percent(sent, file.size)} of ${bytes(file.size)}${left}` : "The server checks it …";
  });
  stop.addEventListener("click", cancel);
  return promise.then((dataset) => {
    item.remove();
    announce(`${file.name} is uploaded.`);
    onDone(dataset);
  }, (error) => fail(item, stop, error.name === "AbortError" ? "Cancelled." : [error.message, error.hint].filter(Boolean).join(" ")));
};

const fail = (item, stop, text) => {
  item.querySelector("progress").remove();
  item.querySelector(".muted").replaceWith(h("span", { class: "error", role: "alert" }, text));
  const away = h("button", { type: "button", "aria-label": `Remove ${item.querySelector("b").textContent} from the list` }, "×");
  away.addEventListener("click", () => item.remove());
  stop.replaceWith(away);
};

export const facts = (dataset) =>
  [dataset.format, dataset.rows !== null && `${count(dataset.rows)} records`, dataset.num_bad_rows && `${count(dataset.num_bad_rows)} of them unusable (${dataset.first_problem})`, bytes(dataset.size_bytes)]
    .filter(Boolean).join(" · ");

// What was uploaded before, with buttons to use or delete it.
export const listDatasets = async (place, { isUsed, onUse }) => {
  const { datasets } = await get(`/api/v1/datasets?limit=${LISTED}`);
  place.querySelector("ul").replaceChildren(...datasets.map((dataset) => known(dataset, place, { isUsed, onUse })));
  place.querySelector("#datasets-none").hidden = datasets.length > 0;
  return datasets;
};

const known = (dataset, place, { isUsed, onUse }) => {
  const use = h("button", { type: "button", "aria-label": `Use ${dataset.name}`, disabled: isUsed(dataset) }, "Use");
  const away = h("button", { type: "button", "aria-label": `Delete ${dataset.name}` }, "Delete");
  const item = h("li", { title: `SHA-256 ${dataset.sha256}` }, h("b", {}, dataset.name),
    h("span", { class: "muted" }, facts(dataset), " · ", h("time", { datetime: dataset.created_at, title: moment(dataset.created_at) }, ago(dataset.created_at)), ` by ${dataset.owner}`), use, away);
  use.addEventListener("click", () => {
    onUse(dataset);
    use.disabled = true;
  });
  away.addEventListener("click", () => forget(dataset, item).catch(notifyError));
  return item;
};

const forget = async (dataset, item) => {
  const text = "Jobs that were made from it stay, but cannot be resumed.";
  if (!(await confirmed({ title: `Delete ${dataset.name}?`, text, action: "Delete", isDangerous: true }))) return;
  await remove(`/api/v1/datasets/${dataset.id}`);
  item.remove();
};
