// What can be done with a job now. Readers see only what looks and downloads.

import { post, query } from "../api.js";
import { h } from "../dom.js";
import { forget as askAndForget } from "../job_actions.js";
import { notifyError, notifyNext } from "../notices.js";

export const jobPath = (job, ...rest) => ["/api/v1/jobs", encodeURIComponent(job.id), ...rest].join("/");

// A button is drawn anew only when the set changes, so that the focus stays.
export const showActions = (job, { changed }) => {
  const place = document.getElementById("actions");
  const state = `${job.status} ${job.cancel_requested}`;
  if (place.dataset.state === state) return;
  const hadFocus = place.contains(document.activeElement);
  place.dataset.state = state;
  place.replaceChildren(...BY_STATUS[job.status].map((make) => make(job, changed)));
  if (hadFocus) place.querySelector("a, button")?.focus();
};

const button = (label, act, attributes = {}) => {
  const made = h("button", { type: "button", "data-needs": "submit", ...attributes }, label);
  made.addEventListener("click", async () => {
    if (made.ariaDisabled === "true") return;
    made.ariaDisabled = "true"; // `disabled` would take the focus away
    try {
      await act();
    } catch (error) {
      notifyError(error);
    }
    made.ariaDisabled = null;
  });
  return made;
};

const link = (label, href, attributes = {}) => h("a", { class: "button", href, ...attributes }, label);

const cancel = (job, changed) => {
  if (job.cancel_requested) return button("Stopping…", null, { "aria-disabled": "true" });
  return button("Cancel", async () => changed(await post(jobPath(job, "cancel"))));
};

const resume = (job, changed) => button("Resume", async () => changed(await post(jobPath(job, "resume"))), { class: "primary" });

const forget = (job) => button("Delete…", async () => {
  if (await askAndForget(job, notifyNext)) location.assign("/");
});

const download = (job) => link("Download", jobPath(job, "archive"), { class: "button primary", download: "" });
const again = () => link("Prune again", "#again", { "data-needs": "submit" });
const alike = (job) => link("New job like this", `/new${query({ from: job.id })}`, { "data-needs": "submit" });
const compare = (job) => link("Compare", `/compare${query({ a: job.id })}`);

const BY_STATUS = {
  queued: [cancel, alike],
  running: [cancel, alike],
  succeeded: [download, again, compare, alike, forget],
  failed: [resume, alike, forget],
  cancelled: [resume, alike, forget],
};
