// Where it all begins. On paper every sample is open.

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

connectTokens();
connectSorting();
connectCopyButtons();
followLinks();
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
