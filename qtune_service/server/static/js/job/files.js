// Files to download, by folder, and lines to read them from programs.

import { get, query, session } from "../api.js";
import { h } from "../dom.js";
import { bytes, count } from "../format.js";
import { jobPath } from "./actions.js";
import { snippets } from "./snippets.js";

const MAX_SHOWN = 200;
const ABOUT = {
  pruned: "the product: what a trainer reads", scores: "every sample, token by token", quadrants: "why each was kept or dropped",
  rejected: "what could not be used", tokenizer: "of the model", "": "the job itself",
};

export const showFiles = async (job) => {
  document.getElementById("archive").href = jobPath(job, "archive");
  document.getElementById("archive-scores").href = jobPath(job, "archive") + query({ scores: true });
  const report = document.getElementById("report");
  report.href = jobPath(job, "report");
  report.hidden = job.spec.prune === null;
  const [files, caller] = await Promise.all([get(jobPath(job, "files")), session()]);
  const folders = new Map();
  for (const file of files) {
    const folder = file.path.includes("/") ? file.path.slice(0, file.path.indexOf("/")) : "";
    folders.set(folder, [...(folders.get(folder) ?? []), file]);
  }
  const order = Object.keys(ABOUT);
  const sorted = [...folders].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  document.getElementById("file-folders").replaceChildren(...sorted.map(([name, inside]) => folder(job, name, inside)));
  document.getElementById("snippets").replaceChildren(...snippets(job, caller.needs_token).map(shown));
};

const folder = (job, name, files) => {
  const size = files.reduce((sum, file) => sum + file.size_bytes, 0);
  const rows = files.reduce((sum, file) => sum + (file.rows ?? 0), 0);
  const summary = h("summary", {}, h("b", {}, name ? `${name}/` : "Beside the folders"), h("span", {}, `${count(files.length)} ${files.length === 1 ? "file" : "files"}`),
    rows > 0 && h("span", {}, `${count(rows)} rows`), h("span", {}, bytes(size)), h("span", { class: "muted" }, ABOUT[name]));
  const details = h("details", { class: "folder-of-files", open: name === "pruned" && files.length <= 10 }, summary);
  const fill = () => {
    if (details.childElementCount > 1) return;
    details.append(table(job, files.slice(0, MAX_SHOWN)));
    if (files.length > MAX_SHOWN) details.append(h("p", { class: "under muted" }, `and ${count(files.length - MAX_SHOWN)} more: the lines below read them all.`));
  };
  if (details.open) fill();
  details.addEventListener("toggle", fill);
  return details;
};

const table = (job, files) => h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Files" }, h("table", {},
  h("thead", {}, h("tr", {}, ...["File", "Rows", "Size", "SHA-256"].map((name) => h("th", { scope: "col" }, name)))),
  h("tbody", {}, ...files.map((file) => h("tr", {},
    h("th", { scope: "row" }, h("a", { href: jobPath(job, "files", ...file.path.split("/").map(encodeURIComponent)), download: file.path.split("/").at(-1) }, file.path)),
    h("td", {}, count(file.rows)), h("td", {}, bytes(file.size_bytes)),
    h("td", {}, file.sha256 ? h("code", { title: file.sha256, class: "digest" }, file.sha256) : "–"))))));

const shown = ({ id, name, text, note }) => h("div", { class: "snippet" },
  h("h4", {}, name), note && h("p", { class: "small muted" }, note),
  h("div", { class: "command" }, h("code", { id, tabindex: "0" }, text), h("button", { type: "button", "data-copies": id, "aria-label": `Copy the lines for ${name}` }, "Copy")));
