// Selection of a sample in the two planes, by click or by keyboard. Both planes ring it, and a panel shows its scores.

import { asRows } from "./charts.js";
import { showCommand } from "./copy.js";
import { count, number, shellQuote } from "./format.js";

// Connect both planes to the panel. `tokens` opens a sample with its tokens, where the page can show them:
// {link(row) -> href or null, open(row)}.
export const connectPlanes = (views, data, tokens) => {
  const panel = document.getElementById("picked");
  const planes = ["plane", "ranks"].filter((name) => views[name]).map((name) => views[name]);
  const samples = asRows(data.datasets.samples);

  const setField = (name, text) => { panel.querySelector(`[data-of="${name}"]`).textContent = text; };

  const showDetails = (row) => {
    panel.querySelector(".hint").hidden = true;
    panel.querySelector(".found").hidden = false;
    panel.querySelector(".dot").className = `dot ${row.q}`;
    setField("label", `${row.q} ${data.quadrants[row.q]}, ${row.k ? "kept" : "dropped"}`);
    setField("id", row.id);
    setField("perplexity", number(row.p));
    setField("entropy", number(row.e));
    setField("error_rank", `rank ${row.u.toFixed(3)}`);
    setField("entropy_rank", `rank ${row.v.toFixed(3)}`);
    setField("tokens", count(row.n));
    const link = panel.querySelector(".to-tokens");
    const target = tokens.link(row);
    link.hidden = target === null;
    if (target !== null) link.href = target;
    // A truncated identifier finds no sample, so no command is shown for it.
    panel.querySelector(".command").hidden = Boolean(row.cut);
    panel.querySelector(".too-long").hidden = !row.cut;
    showCommand(document.getElementById("inspect-command"), data.inspect + shellQuote(row.id));
  };

  const pick = (row, { open }) => {
    showDetails(row);
    const { p, e, u, v, q, k } = row;
    for (const view of planes) view.data("picked", [{ p, e, u, v, q, k }]).runAsync();
    if (!open) return;
    if (tokens.link(row) !== null) tokens.open(row);
    else panel.scrollIntoView({ block: "nearest" });
  };

  for (const name of ["plane", "ranks"]) {
    const view = views[name];
    if (!view) continue;
    view.addEventListener("click", (_, item) => {
      const row = item?.datum;
      if (row && row.id !== undefined) pick(row, { open: true });
    });
    connectKeys(document.querySelector(`[data-chart="${name}"]`), samples, pick);
  }
};

// Arrow keys move to the next sample by rank: right and left by entropy, up and down by perplexity. Enter opens it.
const connectKeys = (element, samples, pick) => {
  const orders = { v: null, u: null };
  const order = (field) =>
    (orders[field] ??= samples.map((_, index) => index).sort((a, b) => samples[a][field] - samples[b][field]));
  const steps = { ArrowRight: ["v", 1], ArrowLeft: ["v", -1], ArrowUp: ["u", 1], ArrowDown: ["u", -1] };
  let current = null;
  element.addEventListener("keydown", (event) => {
    if (samples.length === 0) return;
    if (event.key === "Enter" && current !== null) {
      event.preventDefault();
      pick(samples[current], { open: true });
    }
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const sorted = order(step[0]);
    const position = current === null ? Math.floor(sorted.length / 2) : sorted.indexOf(current) + step[1];
    current = sorted[Math.min(Math.max(position, 0), sorted.length - 1)];
    pick(samples[current], { open: false });
  });
};
