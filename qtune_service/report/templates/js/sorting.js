// Sortable tables: a click on a heading sorts numbers from the largest and names from A. A second click reverses the
// order.

const sortKey = (cell) => {
  const text = (cell.querySelector("summary") ?? cell).textContent.trim();
  const digits = text.replace(/[,%<>]/g, "");
  return digits !== "" && Number.isFinite(Number(digits)) ? Number(digits) : text;
};

const compareKeys = (a, b) =>
  typeof a === "number" && typeof b === "number" ? b - a : String(a).localeCompare(String(b), "en");

export const connectSorting = () => {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    for (const heading of table.querySelectorAll("thead th")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const direction = heading.dataset.order === "first" ? -1 : 1;
        for (const other of table.querySelectorAll("th[data-order]")) delete other.dataset.order;
        heading.dataset.order = direction === 1 ? "first" : "reversed";
        const keyed = [...body.rows].map((row) => [sortKey(row.cells[heading.cellIndex]), row]);
        keyed.sort(([a], [b]) => direction * compareKeys(a, b));
        body.append(...keyed.map(([, row]) => row));
      });
    }
  }
};
