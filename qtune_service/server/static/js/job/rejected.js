// Records that could not be used, by reason: each reason unfolds to its records, some at a time.

import { get, query } from "../api.js";
import { h } from "../dom.js";
import { count, percent } from "../format.js";
import { notifyError } from "../notices.js";
import { jobPath } from "./actions.js";

const PAGE = 10;
const RECORD_CHARS = 2000;

export const showRejected = async (job) => {
  const place = document.getElementById("rejected-reasons");
  const { by_reason: reasons } = await get(jobPath(job, "rejected") + query({ limit: 1 }));
  const names = Object.entries(reasons);
  if (names.length === 0) {
    place.replaceChildren(h("p", {}, "None: every record that was read could be scored."));
    return;
  }
  place.replaceChildren(...names.map(([reason, size]) => group(job, reason, size)));
};

const group = (job, reason, size) => {
  const records = h("ol", { class: "records" });
  const more = h("button", { type: "button", hidden: true }, "Show more");
  const details = h("details", {}, h("summary", {},
    h("b", {}, reason), h("span", {}, count(size)), h("span", { class: "muted" }, `${percent(size, job.counts.read)} of all records`)), records, h("p", { class: "under" }, more));
  let isLoading = false;
  const load = async () => {
    if (isLoading) return;
    isLoading = true;
    try {
      const found = await get(jobPath(job, "rejected") + query({ reason, limit: PAGE, offset: records.childElementCount }));
      records.append(...found.records.map(record));
      more.hidden = records.childElementCount >= found.total;
    } catch (error) {
      notifyError(error);
    } finally {
      isLoading = false;
    }
  };
  details.addEventListener("toggle", () => { if (details.open && records.childElementCount === 0) load(); });
  more.addEventListener("click", load);
  return details;
};

const record = ({ source, line, detail, record: text }) => h("li", {},
  h("p", {}, h("b", { dir: "auto" }, `${source}${line === null ? "" : `, line ${count(line)}`}`), " ", h("span", { dir: "auto" }, detail ?? "")),
  text && h("pre", { class: "spec", tabindex: "0", dir: "auto" }, text.length > RECORD_CHARS ? `${text.slice(0, RECORD_CHARS)}…` : text));
