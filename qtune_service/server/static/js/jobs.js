// The list of jobs: asked for anew every few seconds while it is looked at, whatever the number of jobs that run. Filters
// and the page are in the address. Rows are kept and updated, so that focus, menus and selections stay.

import { get, query } from "./api.js";
import { makeRow } from "./job_row.js";
import { isFinal, keepFresh } from "./live.js";
import { announce } from "./notices.js";

const PAGE_SIZE = 25;
const BUSY_S = 2;
const CALM_S = 8;
const TYPING_MS = 250;

const byId = (id) => document.getElementById(id);
const table = byId("jobs");
const filters = byId("filters");
const rows = new Map(); // id -> {element, update, job}
const chosen = new Set();
let isBusy = false;
let asked = 0;

const inAddress = () => {
  const found = new URLSearchParams(location.search);
  return { q: found.get("q") ?? "", status: found.getAll("status"), cursor: found.get("cursor") ?? "" };
};

const showFilters = ({ q, status }) => {
  filters.elements.q.value = q;
  for (const box of filters.querySelectorAll("[name=status]")) box.checked = status.includes(box.value);
};

const load = async () => {
  const wanted = inAddress();
  const turn = (asked += 1);
  try {
    const page = await get(`/api/v1/jobs${query({ ...wanted, limit: PAGE_SIZE })}`);
    if (turn === asked) show(page, wanted);
  } catch (error) {
    if (turn === asked && error.name === "Problem") showProblem(error);
    throw error;
  } finally {
    byId("loading").hidden = true;
  }
};

const showProblem = (error) => {
  byId("jobs-problem").textContent = `The list cannot be shown: ${error.message} ${error.hint}`;
  byId("jobs-problem").hidden = false;
};

const show = ({ jobs, next_cursor: next }, wanted) => {
  byId("jobs-problem").hidden = true;
  isBusy = jobs.some((job) => !isFinal(job));
  const isFiltered = wanted.q !== "" || wanted.status.length > 0 || wanted.cursor !== "";
  table.hidden = jobs.length === 0;
  table.setAttribute("aria-busy", "false");
  byId("no-jobs").hidden = jobs.length > 0 || isFiltered;
  byId("no-match").hidden = jobs.length > 0 || !isFiltered;
  showRows(jobs);
  showPages(next, wanted);
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
  jobs.forEach((job, at) => {
    const row = rows.get(job.id) ?? makeRow(job, { onChange: () => fresh.now(), onChoose: choose });
    const before = row.job;
    rows.set(job.id, row);
    row.job = job;
    row.update(job);
    if (body.children[at] !== row.element) body.insertBefore(row.element, body.children[at] ?? null);
    if (before && before.status !== job.status) announce(`${job.name}: ${job.status}.`);
  });
  showChosen();
};

const showPages = (next, { q, status, cursor }) => {
  byId("pages").hidden = !next && !cursor;
  byId("newest").hidden = !cursor;
  byId("newest").href = `/${query({ q, status })}`;
  byId("older").hidden = !next;
  byId("older").href = `/${query({ q, status, cursor: next })}`;
};

const choose = (id, isChosen) => {
  if (isChosen) chosen.add(id);
  else chosen.delete(id);
  showChosen();
};

const showChosen = () => {
  byId("compare").disabled = chosen.size !== 2;
  byId("compare").textContent = chosen.size === 1 ? "Compare with …" : "Compare";
  for (const row of rows.values()) row.allowChoice(chosen.size < 2 || chosen.has(row.job.id));
};

const goTo = (address, { replaces = false } = {}) => {
  history[replaces ? "replaceState" : "pushState"](null, "", address);
  fresh.now();
};

const filter = () => {
  const q = filters.elements.q.value.trim();
  const status = [...filters.querySelectorAll("[name=status]:checked")].map((box) => box.value);
  goTo(`/${query({ q, status })}`, { replaces: true });
};

let typing = 0;
filters.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(filter, TYPING_MS);
});
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  filter();
});
byId("compare").addEventListener("click", () => {
  const [b, a] = [...rows.keys()].filter((id) => chosen.has(id)).sort().reverse();
  location.assign(`/compare${query({ a, b })}`);
});
for (const link of [byId("newest"), byId("older")]) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    goTo(link.href);
    document.querySelector("h1").scrollIntoView();
  });
}
addEventListener("popstate", () => {
  showFilters(inAddress());
  fresh.now();
});

showFilters(inAddress());
const fresh = keepFresh(load, () => (isBusy ? BUSY_S : CALM_S));
