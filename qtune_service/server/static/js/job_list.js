// The list of jobs. It polls one page of jobs while it is visible, however many jobs run. Filters and the page are
// part of the address. Rows are updated in place, so that the focus, open menus and selections survive.

import { get, query } from "./api.js";
import { byId, h, setText } from "./dom.js";
import { ago, count, duration, lastPart, moment, percent } from "./format.js";
import { fillMenu } from "./job_actions.js";
import { announce } from "./notifications.js";
import { isFinal, poll } from "./updates.js";

const PAGE_SIZE = 25;
const ACTIVE_INTERVAL_S = 2; // while a job of the page is not final
const IDLE_INTERVAL_S = 8;
const TYPING_MS = 250;

const table = byId("jobs");
const filters = byId("filters");
const rows = new Map(); // id -> {element, update(job), allowChoice(bool), job}
const chosen = new Set(); // ids
let isActive = false;
let lastRequest = 0;

// --- one row

const cell = (name, ...children) => h("td", { role: "cell", class: name }, ...children);

const makeRow = (first) => {
  const box = h("input", { type: "checkbox", "aria-label": `Choose ${first.name} to compare` });
  const name = h("a", { class: "name", href: `/jobs/${first.id}` }, first.name);
  const model = h("span", { class: "model", title: first.model }, lastPart(first.model));
  const status = h("span", { class: "status" });
  const stage = h("span", { class: "stage" });
  const bar = h("progress", { "aria-label": `Finished samples of ${first.name}` });
  const amount = h("span", { class: "amount" });
  const speed = h("span", { class: "speed" });
  const waiting = h("span", { class: "waiting" });
  const kept = h("span", {});
  const started = h("time", {});
  const menu = makeMenu(first.name);
  box.addEventListener("change", () => choose(first.id, box.checked));

  const element = h("tr", { role: "row" },
    cell("choose", box),
    cell("job", name, model, h("code", { class: "id" }, first.id)),
    cell("state", status, stage),
    cell("progress", bar, amount, speed, waiting),
    cell("kept", kept),
    cell("started", started),
    cell("owner", first.owner),
    cell("actions", menu.button, menu.list));

  const update = (job) => {
    box.hidden = job.status !== "succeeded";
    status.className = `status ${job.status}`;
    setText(status, job.status);
    setText(stage, job.status === "running" ? job.stage : "");
    showProgress(job, { bar, amount, speed, waiting });
    setText(kept, job.counts.kept === undefined ? "" : percent(job.counts.kept, job.counts.scored ?? job.counts.read));
    showStart(job, started);
    menu.update(job);
  };
  const allowChoice = (isAllowed) => { box.disabled = !isAllowed; };
  return { element, update, allowChoice, job: null };
};

const showProgress = (job, { bar, amount, speed, waiting }) => {
  const { samples_done: done, samples_total: total, tokens_per_s: tokensPerS, eta_s: etaS } = job.progress;
  bar.hidden = job.status !== "running";
  if (total) {
    bar.max = total;
    bar.value = done;
  } else {
    bar.removeAttribute("value");
  }
  setText(amount, progressText(job, done, total));
  amount.title = job.error ? `${job.error.message} ${job.error.hint}` : "";
  const facts = [tokensPerS > 0 && `${count(tokensPerS)} tokens/s`, etaS !== null && `${duration(etaS)} left`];
  setText(speed, job.status === "running" ? facts.filter(Boolean).join(" · ") : "");
  setText(waiting, job.status === "running" ? job.progress.waiting : "");
};

const progressText = (job, done, total) => {
  if (job.status === "queued") return "waiting in the queue";
  if (job.status === "failed") return job.error?.message ?? "";
  if (job.status === "running") return total ? `${count(done)} of ${count(total)} samples` : "starting";
  if (job.status === "succeeded") return `${count(job.counts.read ?? done)} samples${tookText(job)}`;
  return total ? `stopped at ${count(done)} of ${count(total)}` : "stopped";
};

const tookText = ({ started_at: start, finished_at: end }) =>
  (start && end ? ` in ${duration((new Date(end) - new Date(start)) / 1000)}` : "");

const showStart = (job, started) => {
  const when = job.started_at ?? job.created_at;
  started.dateTime = when;
  started.title = `${job.started_at ? "Started" : "Submitted"} ${moment(when)}`;
  setText(started, ago(when));
};

let menuCount = 0;

// A button that opens a menu of actions. The menu is refilled only when the status changes, so that it keeps the focus.
const makeMenu = (name) => {
  const id = `menu-${(menuCount += 1)}`;
  const attributes = { type: "button", class: "more", popovertarget: id, "aria-label": `Actions for ${name}` };
  const button = h("button", attributes, "⋯");
  const list = h("div", { id, class: "menu", popover: "" });
  list.addEventListener("toggle", (event) => {
    button.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "open") {
      placeBelow(list, button);
      list.querySelector("a, button")?.focus();
    }
  });
  list.addEventListener("click", () => list.hidePopover());
  let shownStatus = "";
  const update = (job) => {
    if (shownStatus === job.status) return;
    shownStatus = job.status;
    fillMenu(list, job, refresh);
  };
  return { button, list, update };
};

const placeBelow = (list, button) => {
  const box = button.getBoundingClientRect();
  const fitsBelow = box.bottom + 4 + list.offsetHeight < innerHeight;
  list.style.top = `${fitsBelow ? box.bottom + 4 : box.top - 4 - list.offsetHeight}px`;
  list.style.left = `${Math.max(8, box.right - list.offsetWidth)}px`;
};

// --- the page of jobs

const addressFilters = () => {
  const params = new URLSearchParams(location.search);
  return { q: params.get("q") ?? "", status: params.getAll("status"), cursor: params.get("cursor") ?? "" };
};

const showFilters = ({ q, status }) => {
  filters.elements.q.value = q;
  for (const box of filters.querySelectorAll("[name=status]")) box.checked = status.includes(box.value);
};

const load = async () => {
  const current = addressFilters();
  const thisRequest = (lastRequest += 1); // responses to earlier requests are ignored
  try {
    const page = await get(`/api/v1/jobs${query({ ...current, limit: PAGE_SIZE })}`);
    if (thisRequest === lastRequest) show(page, current);
  } catch (error) {
    if (thisRequest === lastRequest && error.name === "Problem") showProblem(error);
    throw error;
  } finally {
    byId("loading").hidden = true;
  }
};

const showProblem = (error) => {
  byId("jobs-problem").textContent = `The list of jobs could not be loaded: ${error.message} ${error.hint}`;
  byId("jobs-problem").hidden = false;
};

const show = ({ jobs, next_cursor: next }, current) => {
  byId("jobs-problem").hidden = true;
  isActive = jobs.some((job) => !isFinal(job));
  const isFiltered = current.q !== "" || current.status.length > 0 || current.cursor !== "";
  table.hidden = jobs.length === 0;
  table.setAttribute("aria-busy", "false");
  byId("no-jobs").hidden = jobs.length > 0 || isFiltered;
  byId("no-match").hidden = jobs.length > 0 || !isFiltered;
  showRows(jobs);
  showPageLinks(next, current);
};

const showRows = (jobs) => {
  const body = table.tBodies[0];
  const ids = new Set(jobs.map((job) => job.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.element.remove();
    rows.delete(id);
    chosen.delete(id);
  }
  jobs.forEach((job, index) => {
    const row = rows.get(job.id) ?? makeRow(job);
    const before = row.job;
    rows.set(job.id, row);
    row.job = job;
    row.update(job);
    if (body.children[index] !== row.element) body.insertBefore(row.element, body.children[index] ?? null);
    if (before && before.status !== job.status) announce(`${job.name}: ${job.status}.`);
  });
  showChoice();
};

const showPageLinks = (next, { q, status, cursor }) => {
  byId("pages").hidden = !next && !cursor;
  byId("newest").hidden = !cursor;
  byId("newest").href = `/${query({ q, status })}`;
  byId("older").hidden = !next;
  byId("older").href = `/${query({ q, status, cursor: next })}`;
};

const choose = (id, isChosen) => {
  if (isChosen) chosen.add(id);
  else chosen.delete(id);
  showChoice();
};

const showChoice = () => {
  byId("compare").disabled = chosen.size !== 2;
  byId("compare").textContent = chosen.size === 1 ? "Compare with …" : "Compare";
  for (const row of rows.values()) row.allowChoice(chosen.size < 2 || chosen.has(row.job.id));
};

const open = (address, { replaces = false } = {}) => {
  history[replaces ? "replaceState" : "pushState"](null, "", address);
  refresh();
};

const applyFilters = () => {
  const q = filters.elements.q.value.trim();
  const status = [...filters.querySelectorAll("[name=status]:checked")].map((box) => box.value);
  open(`/${query({ q, status })}`, { replaces: true });
};

let typingTimer = 0;
filters.addEventListener("input", () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(applyFilters, TYPING_MS);
});
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  applyFilters();
});
byId("compare").addEventListener("click", () => {
  const [b, a] = [...rows.keys()].filter((id) => chosen.has(id)).sort().reverse();
  location.assign(`/compare${query({ a, b })}`);
});
for (const link of [byId("newest"), byId("older")]) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(link.href);
    document.querySelector("h1").scrollIntoView();
  });
}
addEventListener("popstate", () => {
  showFilters(addressFilters());
  refresh();
});

showFilters(addressFilters());
const refresh = poll(load, () => (isActive ? ACTIVE_INTERVAL_S : IDLE_INTERVAL_S));
