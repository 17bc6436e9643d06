// Tables whose columns sort: a click on a heading sorts by it, numbers from the largest, names from A; again turns it round.

const sortKey = (cell) => {
  const text = (cell.querySelector("summary") ?? cell).textContent.trim();
  const digits = text.replace(/[,%<>]/g, "");
  return digits !== "" && Number.isFinite(Number(digits)) ? Number(digits) : text;
};

const compareKeys = (a, b) =>
  typeof a === "number" && typeof b === "number" ? b - a : String(a).localeCompare(String(b), "en");

const connectSorting = () => {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    for (const heading of table.querySelectorAll("thead th")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const turn = heading.dataset.order === "first" ? -1 : 1;
        for (const other of table.querySelectorAll("th[data-order]")) delete other.dataset.order;
        heading.dataset.order = turn === 1 ? "first" : "turned";
        const keyed = [...body.rows].map((row) => [sortKey(row.cells[heading.cellIndex]), row]);
        keyed.sort(([a], [b]) => turn * compareKeys(a, b));
        body.append(...keyed.map(([, row]) => row));
      });
    }
  }
};
