// Tokens per second over time, drawn once and then moved on.

import { drawChart } from "../../pictures.js";
import { setText } from "../dom.js";
import { count, duration } from "../format.js";
import { loadVega } from "./library.js";

const LABELS = { labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--muted)", tickColor: "var(--muted)" };
const SPEC = {
  width: "container", height: 130, padding: 4, background: "transparent",
  config: { aria: false, font: "inherit", view: { stroke: null }, axis: { ...LABELS, labelFontSize: 11, titleFontSize: 12, titleFontWeight: 500 } },
  encoding: {
    x: { field: "minutes", type: "quantitative", title: "minutes", axis: { tickCount: 6, grid: false }, scale: { nice: false } },
    y: { field: "rate", type: "quantitative", title: null, axis: { tickCount: 4, format: "~s" }, scale: { zero: true } },
  },
  layer: [
    { mark: { type: "area", color: "var(--q2)", opacity: 0.15 } },
    { mark: { type: "line", color: "var(--q2)", strokeWidth: 1.8 } },
  ],
};
let view = null;
let drawing = null;
let waiting = null;

export const showSpeed = async (job, history) => {
  const figure = document.getElementById("speed");
  const known = history.filter(({ rate }) => rate > 0);
  figure.hidden = known.length < 2;
  if (figure.hidden) return;
  const start = history[0].at;
  const rows = history.map(({ at, rate }) => ({ minutes: (at - start) / 60, rate }));
  tell(figure, rows, known);
  waiting = rows;
  if (drawing === null) {
    drawing = draw(figure.querySelector(".drawing"));
    return;
  }
  await drawing;
  view?.data("history", waiting).runAsync();
};

const draw = async (element) => {
  try {
    await loadVega();
  } catch {
    drawing = null; // at the next news again; the connection's banner tells why
    return;
  }
  view = await drawChart(element, { ...structuredClone(SPEC), data: { name: "history" }, datasets: { history: waiting } });
};

const tell = (figure, rows, known) => {
  const highest = Math.max(...known.map(({ rate }) => rate));
  const text = `${count(known.at(-1).rate)} at last, ${count(highest)} at most, over ${duration(60 * rows.at(-1).minutes)}`;
  setText(document.getElementById("speed-now"), text);
  figure.querySelector(".drawing").setAttribute("aria-label", `Tokens scored per second over time: ${text}`);
};
