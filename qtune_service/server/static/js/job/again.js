// Another job from the same scores. The slider fills in its ratio; any other can be typed.

import { post } from "../api.js";
import { h, setText } from "../dom.js";
import { notifyError } from "../notices.js";
import { jobPath } from "./actions.js";

const FIELDS = { sample_keep_ratio: "again-samples", token_keep_ratio: "again-tokens", name: "again-name" };
const input = (name) => document.getElementById(FIELDS[name]);

// Gives a function that takes a ratio over from the slider.
export const connectAgain = (job) => {
  const prune = job.spec.prune ?? {};
  input("sample_keep_ratio").value = prune.sample_keep_ratio ?? 0.5;
  input("token_keep_ratio").value = prune.token_keep_ratio ?? 0.7;
  input("name").placeholder = `${job.name}, again`;
  for (const name of Object.keys(FIELDS)) input(name).addEventListener("input", () => { complain(name, ""); label(); });
  document.getElementById("again-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(job).catch(notifyError);
  });
  label();
  return (ratio) => {
    input("sample_keep_ratio").value = ratio;
    complain("sample_keep_ratio", "");
    label();
  };
};

const label = () => {
  const ratio = Number(input("sample_keep_ratio").value);
  const share = ratio > 0 && ratio <= 1 ? ` at ${Number((100 * ratio).toPrecision(4))}%` : "";
  setText(document.getElementById("again-go"), `Prune again${share}`);
};

const submit = async (job) => {
  const go = document.getElementById("again-go");
  if (!looksRight()) return;
  const prune = { ...job.spec.prune, sample_keep_ratio: Number(input("sample_keep_ratio").value), token_keep_ratio: Number(input("token_keep_ratio").value) };
  go.disabled = true;
  try {
    const made = await post(jobPath(job, "reprune"), { prune, name: input("name").value || null });
    location.assign(`/jobs/${encodeURIComponent(made.id)}`);
  } catch (error) {
    const places = Object.keys(FIELDS).filter((name) => beside(error, name));
    if (places.length === 0) throw error;
    input(places[0]).focus();
  } finally {
    go.disabled = false;
  }
};

const beside = (error, name) => {
  const found = error.errors?.find(({ field }) => field.split(".").at(-1) === name);
  if (found) complain(name, found.message);
  return Boolean(found);
};

const looksRight = () => {
  const wrong = ["sample_keep_ratio", "token_keep_ratio"].filter((name) => {
    const value = Number(input(name).value.replace(",", "."));
    const isRight = value > 0 && value <= 1;
    if (isRight) input(name).value = value;
    else complain(name, "Give a number above 0, up to 1.");
    return !isRight;
  });
  if (wrong.length) input(wrong[0]).focus();
  return wrong.length === 0;
};

const complain = (name, text) => {
  const place = document.getElementById(`${FIELDS[name]}-error`);
  place.hidden = text === "";
  setText(place, text);
  input(name).setAttribute("aria-invalid", String(text !== ""));
};
