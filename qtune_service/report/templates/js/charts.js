// Drawing of Vega-Lite charts. Data arrive as columns that several charts share; Vega-Lite needs rows in each chart.

export const asRows = (columns) => {
  if (Array.isArray(columns)) return columns;
  const fields = Object.keys(columns);
  const row = (index) => Object.fromEntries(fields.map((field) => [field, columns[field][index]]));
  return columns[fields[0]].map((_, index) => row(index));
};

// The plane in ranks is square. Vega-Lite cannot express this for a chart that follows the width of its container.
const SQUARE_MARGIN = 66; // pixels for the axis, the labels and the padding
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

// `ast` makes Vega interpret expressions instead of compiling them, because the page's policy forbids evaluating
// strings. Styles come from the page's own files, because the service's policy forbids styles that a script adds.
const EMBED = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
  tooltip: { theme: "custom", disableDefaultStyle: true },
};

// Draw a chart in an element and return its view. If drawing fails, show the error in the element and return null.
export const drawChart = async (element, spec) => {
  const isSquare = "square" in element.dataset;
  if (isSquare) spec.width = spec.height = squareSize(element);
  try {
    const { view } = await window.vegaEmbed(element, spec, EMBED);
    if (isSquare) keepSquare(element, view);
    element.dataset.state = "drawn";
    return view;
  } catch (error) {
    element.dataset.state = "failed";
    element.textContent = `The chart could not be drawn: ${error.message}`;
    return null;
  }
};

// Draw the charts of the page one after the other, and put their views into `views` by name.
export const drawCharts = async (data, views) => {
  for (const element of document.querySelectorAll("[data-chart]")) {
    const name = element.dataset.chart;
    const spec = data.charts[name];
    if (!spec) continue;
    // Vega writes into its rows, so each chart gets its own.
    spec.datasets = Object.fromEntries(spec.datasets.map((dataset) => [dataset, asRows(data.datasets[dataset])]));
    const view = await drawChart(element, spec);
    if (view) views[name] = view;
  }
};
