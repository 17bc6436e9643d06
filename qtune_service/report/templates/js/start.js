// Start of report.html: connect tables, tokens and links, then draw the charts.

import { asRows, drawCharts } from "./charts.js";
import { connectCopyButtons } from "./copy.js";
import { connectPlanes } from "./picking.js";
import { connectSorting } from "./sorting.js";
import { connectTokens } from "./tokens.js";
import { connectSlider } from "./what_if.js";

// The examples on this page. The hash does the jump, so that the browser's Back button returns to the plane.
const examplesOf = (report) => {
  const ids = new Map(asRows(report.datasets.examples).map((row) => [row.id, `sample-${row.at}`]));
  return {
    link: (row) => (ids.has(row.id) ? `#${ids.get(row.id)}` : null),
    open: (row) => openExample(ids.get(row.id)),
  };
};

const openExample = (id) => {
  const sample = document.getElementById(id);
  sample.open = true;
  if (window.location.hash !== `#${id}`) window.location.hash = id;
  sample.scrollIntoView({ block: "start" });
  sample.querySelector("summary").focus({ preventScroll: true });
};

// Open the sample that the address names, after a link or the Back button.
const openLinkedExample = () => {
  const target = document.getElementById(window.location.hash.slice(1));
  if (target?.matches("details.sample")) target.open = true;
};

// Open every sample while the page is printed.
const openForPrint = () => {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.why)")];
    for (const part of closed) part.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
  });
};

for (const box of document.querySelectorAll(".tokens")) connectTokens(box);
connectSorting();
connectCopyButtons();
window.addEventListener("hashchange", openLinkedExample);
openLinkedExample();
openForPrint();
const source = document.getElementById("report-data");
const data = source && JSON.parse(source.textContent);
if (data) {
  const views = {};
  connectSlider(views, data.what_if);
  await drawCharts(data, views);
  connectPlanes(views, data, examplesOf(data));
}
document.documentElement.dataset.state = "ready";
