// Rejected records by reason. Opening a reason loads its records, page by page.

import { get, jobPath, query } from "../api.js";
import { byId, h } from "../dom.js";
import { count, percent } from "../format.js";
import { notifyError } from "../notifications.js";

const PAGE_SIZE = 10;
const RECORD_CHARS = 2000;

export const showRejected = async (job) => {
  const { by_reason: reasons } = await get(jobPath(job.id, "rejected") + query({ limit: 1 }));
  const groups = Object.entries(reasons).map(([reason, size]) => reasonGroup(job, reason, size));
  const none = h("p", {}, "None. All records that were read were scored.");
  byId("rejected-reasons").replaceChildren(...(groups.length ? groups : [none]));
};

const reasonGroup = (job, reason, size) => {
  const records = h("ol", { class: "records" });
  const more = h("button", { type: "button", hidden: true }, "Show more");
  const share = h("span", { class: "muted" }, `${percent(size, job.counts.read)} of all records`);
  const details = h("details", {},
    h("summary", {}, h("b", {}, reason), h("span", {}, count(size)), share), records, h("p", { class: "under" }, more));
  let isLoading = false;
  const load = async () => {
    if (isLoading) return;
    isLoading = true;
    try {
      const page = { reason, limit: PAGE_SIZE, offset: records.childElementCount };
      const found = await get(jobPath(job.id, "rejected") + query(page));
      records.append(...found.records.map(recordItem));
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

const recordItem = ({ source, line, detail, record }) => {
  const place = `${source}${line === null ? "" : `, line ${count(line)}`}`;
  const text = record?.length > RECORD_CHARS ? `${record.slice(0, RECORD_CHARS)}…` : record;
  return h("li", {},
    h("p", {}, h("b", { dir: "auto" }, place), " ", h("span", { dir: "auto" }, detail ?? "")),
    text && h("pre", { class: "spec", tabindex: "0", dir: "auto" }, text));
};
