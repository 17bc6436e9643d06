// The page of one job: follows its events, and shows the result once there is one.

import { get } from "../api.js";
import { onBack } from "../connection.js";
import { followJob, isFinal } from "../live.js";
import { announce, notifyError } from "../notices.js";
import { showActions } from "./actions.js";
import { connectCopying } from "./copying.js";
import { showCourse } from "./course.js";
import { showHead } from "./head.js";
import { showLog } from "./log.js";
import { showResults } from "./results.js";
import { showSpec } from "./spec.js";

const article = document.getElementById("job");
const id = article.dataset.id;
let stop = null;
let shown = null;
let isIncomplete = false;

const show = (item) => {
  const before = shown;
  const job = { spec: before?.spec, ...item }; // events have no spec: it never changes
  shown = job;
  if (before && before.status !== job.status) announce(`The job is ${job.status}.`);
  article.hidden = false;
  showHead(job);
  showActions(job, { changed: follow });
  showCourse(job);
  if (!before) showSpec(job).catch(notifyError);
  if (!before || before.attempts !== job.attempts || isFinal(before) !== isFinal(job)) showLog(job);
  if (job.status === "succeeded" && before?.status !== "succeeded") showResults(job).catch(incomplete);
};

const incomplete = (error) => {
  isIncomplete = true;
  notifyError(error);
};

// After a final event there are no more: whoever resumes a job follows it anew.
const follow = (job) => {
  show(job);
  stop?.();
  stop = isFinal(job) ? null : followJob(id, show);
};

const start = async () => {
  try {
    follow(await get(`/api/v1/jobs/${encodeURIComponent(id)}`));
  } catch (error) {
    if (error.status === 404 || error.status === 422) document.getElementById("missing").hidden = false;
    else notifyError(error);
  }
};

connectCopying();
// Somebody else may have resumed or deleted it; and what could not be read then can be read now.
onBack(() => (isIncomplete ? location.reload() : start()));
start();
