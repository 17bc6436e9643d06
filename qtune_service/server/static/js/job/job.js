// The page of one job. It follows the job's events and shows the results once the job has succeeded.

import { connectCopyButtons, showCommand } from "../../report/js/copy.js";
import { get, jobPath } from "../api.js";
import { onReconnect } from "../connection.js";
import { byId, setText } from "../dom.js";
import { showActions } from "../job_actions.js";
import { announce, notifyError } from "../notifications.js";
import { followJob, isFinal } from "../updates.js";
import { showHeader } from "./header.js";
import { showLog } from "./log.js";
import { showProgress } from "./progress.js";
import { showResults } from "./results.js";

const article = byId("job");
const id = article.dataset.id;
let stopFollowing = null;
let shown = null;
let isIncomplete = false;

const show = (body) => {
  const before = shown;
  const job = { spec: before?.spec, ...body }; // events omit the spec, which never changes
  shown = job;
  if (before && before.status !== job.status) announce(`The job is ${job.status}.`);
  article.hidden = false;
  showHeader(job);
  showActions(job, follow);
  showProgress(job);
  if (!before) showSettings(job).catch(notifyError);
  if (!before || before.attempts !== job.attempts || isFinal(before) !== isFinal(job)) showLog(job);
  if (job.status === "succeeded" && before?.status !== "succeeded") showResults(job).catch(markIncomplete);
};

const showSettings = async (job) => {
  setText(byId("spec-json"), JSON.stringify(job.spec, null, 2));
  byId("dataset-note").hidden = !job.spec.input.paths.some((path) => path.startsWith("dataset://"));
  const { command } = await get(jobPath(job.id, "command"));
  if (command.includes("\n")) setText(byId("same-command"), command);
  else showCommand(byId("same-command"), command);
};

const markIncomplete = (error) => {
  isIncomplete = true;
  notifyError(error);
};

// Events end with the job, so a resumed job must be followed again.
const follow = (job) => {
  show(job);
  stopFollowing?.();
  stopFollowing = isFinal(job) ? null : followJob(id, show);
};

const start = async () => {
  try {
    follow(await get(jobPath(id)));
  } catch (error) {
    if (error.status === 404 || error.status === 422) byId("missing").hidden = false;
    else notifyError(error);
  }
};

connectCopyButtons(announce);
// Another user may have resumed or deleted the job meanwhile. Results that could not be read need a fresh page.
onReconnect(() => (isIncomplete ? location.reload() : start()));
start();
