// The form that prunes the job's scores again with other ratios. The slider of the plane fills in the keep ratio.

import { jobPath, post } from "../api.js";
import { byId, setText } from "../dom.js";
import { notifyError } from "../notifications.js";

const FIELDS = { sample_keep_ratio: "reprune-samples", token_keep_ratio: "reprune-tokens", name: "reprune-name" };
const RATIOS = ["sample_keep_ratio", "token_keep_ratio"];
const input = (name) => byId(FIELDS[name]);

// Connect the form. Return a function that sets the keep ratio.
export const connectReprune = (job) => {
  const prune = job.spec.prune ?? {};
  input("sample_keep_ratio").value = prune.sample_keep_ratio ?? 0.5;
  input("token_keep_ratio").value = prune.token_keep_ratio ?? 0.7;
  input("name").placeholder = `${job.name}, again`;
  for (const name of Object.keys(FIELDS)) {
    input(name).addEventListener("input", () => {
      showError(name, "");
      showLabel();
    });
  }
  byId("reprune-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(job).catch(notifyError);
  });
  showLabel();
  return (ratio) => {
    input("sample_keep_ratio").value = ratio;
    showError("sample_keep_ratio", "");
    showLabel();
  };
};

const showLabel = () => {
  const ratio = Number(input("sample_keep_ratio").value);
  const share = ratio > 0 && ratio <= 1 ? ` at ${Number((100 * ratio).toPrecision(4))}%` : "";
  setText(byId("reprune-start"), `Prune again${share}`);
};

const submit = async (job) => {
  if (!hasValidRatios()) return;
  const ratios = Object.fromEntries(RATIOS.map((name) => [name, Number(input(name).value)]));
  const button = byId("reprune-start");
  button.disabled = true;
  try {
    const body = { prune: { ...job.spec.prune, ...ratios }, name: input("name").value || null };
    const newJob = await post(jobPath(job.id, "reprune"), body);
    location.assign(`/jobs/${encodeURIComponent(newJob.id)}`);
  } catch (error) {
    const wrong = Object.keys(FIELDS).filter((name) => showFieldError(error, name));
    if (wrong.length === 0) throw error;
    input(wrong[0]).focus();
  } finally {
    button.disabled = false;
  }
};

// Show the server's error of a field, if there is one. Return whether there is.
const showFieldError = (error, name) => {
  const found = error.errors?.find(({ field }) => field.split(".").at(-1) === name);
  if (found) showError(name, found.message);
  return Boolean(found);
};

const hasValidRatios = () => {
  const wrong = RATIOS.filter((name) => {
    const value = Number(input(name).value.replace(",", "."));
    const isValid = value > 0 && value <= 1;
    if (isValid) input(name).value = value;
    else showError(name, "Enter a number above 0 and at most 1.");
    return !isValid;
  });
  if (wrong.length) input(wrong[0]).focus();
  return wrong.length === 0;
};

const showError = (name, text) => {
  const place = byId(`${FIELDS[name]}-error`);
  place.hidden = text === "";
  setText(place, text);
  input(name).setAttribute("aria-invalid", String(text !== ""));
};
