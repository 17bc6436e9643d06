// Drawing: data travel as columns and are shared by charts; Vega-Lite wants rows in each.

const asRows = (columns) => {
  if (Array.isArray(columns)) return columns;
  const fields = Object.keys(columns);
  return columns[fields[0]].map((_, at) => Object.fromEntries(fields.map((field) => [field, columns[field][at]])));
};

// A plane in ranks is square, which a Vega-Lite specification that follows its container cannot say.
const SQUARE_MARGIN = 66; // axis, labels and padding beside the plot
const MAX_SQUARE = 440;
const squareSize = (element) => Math.max(Math.min(element.clientWidth - SQUARE_MARGIN, MAX_SQUARE), 160);

const keepSquare = (element, view) => {
  let size = squareSize(element);
  window.addEventListener("resize", () => {
    if (squareSize(element) === size) return;
    size = squareSize(element);
    view.width(size).height(size).runAsync();
  });
};

// `ast` makes Vega walk expressions instead of compiling them: the page's policy forbids evaluating strings. Styles are the
// page's own, for the service's policy allows none that a script adds.
const EMBED = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
  tooltip: { theme: "custom", disableDefaultStyle: true },
};

// Draws a chart in an element and gives its view; null where it failed, which it then says in its place.
const drawChart = async (element, spec) => {
  const isSquare = "square" in element.dataset;
  if (isSquare) spec.width = spec.height = squareSize(element);
  try {
    const { view } = await window.vegaEmbed(element, spec, EMBED);
    if (isSquare) keepSquare(element, view);
    element.dataset.state = "drawn";
    return view;
  } catch (error) {
    element.dataset.state = "failed";
    element.textContent = `The picture could not be drawn: ${error.message}`;
    return null;
  }
};

// Fills `views` by name, chart by chart.
const drawCharts = async (data, views) => {
  for (const element of document.querySelectorAll("[data-chart]")) {
    const name = element.dataset.chart;
    const spec = data.charts[name];
    if (!spec) continue;
    // Each chart gets rows of its own, since Vega writes into them.
    spec.datasets = Object.fromEntries(spec.datasets.map((dataset) => [dataset, asRows(data.datasets[dataset])]));
    const view = await drawChart(element, spec);
    if (view) views[name] = view;
  }
};
