// One row of the list of jobs.

import { h, setText } from "./dom.js";
import { ago, count, duration, lastPart, moment, percent } from "./format.js";
import { fillMenu } from "./job_actions.js";

let made = 0;

// Gives {element, update(job), allowChoice(bool)}.
export const makeRow = (first, { onChange, onChoose }) => {
  const box = h("input", { type: "checkbox", "aria-label": `Choose ${first.name} to compare` });
  const name = h("a", { class: "name", href: `/jobs/${first.id}` }, first.name);
  const status = h("span", { class: "status" });
  const stage = h("span", { class: "stage" });
  const bar = h("progress", { "aria-label": `Samples of ${first.name} that are done` });
  const amount = h("span", { class: "amount" });
  const pace = h("span", { class: "pace" });
  const kept = h("span", {});
  const started = h("time", {});
  const menu = makeMenu(first.name);
  box.addEventListener("change", () => onChoose(first.id, box.checked));

  const element = h("tr", { role: "row" },
    cell("choose", box),
    cell("job", name, h("span", { class: "model", title: first.model }, lastPart(first.model)), code(first.id)),
    cell("state", status, stage),
    cell("progress", bar, amount, pace),
    cell("kept", kept),
    cell("started", started),
    cell("owner", first.owner),
    cell("actions", menu.button, menu.list));

  const update = (job) => {
    box.hidden = job.status !== "succeeded";
    status.className = `status ${job.status}`;
    setText(status, job.status);
    setText(stage, job.status === "running" ? job.stage : "");
    showProgress(job, { bar, amount, pace });
    setText(kept, keptShare(job));
    showStart(job, started);
    menu.show(job, onChange);
  };
  const allowChoice = (isAllowed) => { box.disabled = !isAllowed; };
  return { element, update, allowChoice, job: null };
};

const cell = (name, ...children) => h("td", { role: "cell", class: name }, ...children);
const code = (id) => h("code", { class: "id" }, id);

const keptShare = ({ counts }) => (counts.kept === undefined ? "" : percent(counts.kept, counts.scored ?? counts.read));

const showProgress = (job, { bar, amount, pace }) => {
  const { samples_done: done, samples_total: total, tokens_per_s: speed, eta_s: eta } = job.progress;
  bar.hidden = job.status !== "running";
  if (total) {
    bar.max = total;
    bar.value = done;
  } else {
    bar.removeAttribute("value");
  }
  setText(amount, said(job, done, total));
  amount.title = job.error ? `${job.error.message} ${job.error.hint}` : "";
  const facts = [speed > 0 && `${count(speed)} tokens/s`, eta !== null && `${duration(eta)} left`];
  setText(pace, job.status === "running" ? facts.filter(Boolean).join(" · ") : "");
};

const said = (job, done, total) => {
  if (job.status === "queued") return "waits for its turn";
  if (job.status === "failed") return job.error?.message ?? "";
  if (job.status === "running") return total ? `${count(done)} of ${count(total)} samples` : "starting";
  const took = job.started_at && job.finished_at ? ` in ${duration((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}` : "";
  if (job.status === "succeeded") return `${count(job.counts.read ?? done)} samples${took}`;
  return total ? `stopped at ${count(done)} of ${count(total)}` : "stopped";
};

const showStart = (job, started) => {
  const when = job.started_at ?? job.created_at;
  started.dateTime = when;
  started.title = `${job.started_at ? "Started" : "Submitted"} ${moment(when)}`;
  setText(started, ago(when));
};

// A button that opens a list of actions; made new only when the status changes, so that the focus stays.
const makeMenu = (name) => {
  const id = `menu-${(made += 1)}`;
  const button = h("button", { type: "button", class: "more", popovertarget: id, "aria-label": `Actions for ${name}` }, "⋯");
  const list = h("div", { id, class: "menu", popover: "" });
  list.addEventListener("toggle", (event) => {
    button.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "open") {
      place(list, button);
      list.querySelector("a, button")?.focus();
    }
  });
  list.addEventListener("click", () => list.hidePopover());
  let shown = "";
  const show = (job, onChange) => {
    if (shown === job.status) return;
    shown = job.status;
    fillMenu(list, job, onChange);
  };
  return { button, list, show };
};

const place = (list, button) => {
  const at = button.getBoundingClientRect();
  const below = at.bottom + 4 + list.offsetHeight < innerHeight;
  list.style.top = `${below ? at.bottom + 4 : at.top - 4 - list.offsetHeight}px`;
  list.style.left = `${Math.max(8, at.right - list.offsetWidth)}px`;
};
