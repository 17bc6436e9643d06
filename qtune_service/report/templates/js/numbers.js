// How numbers read: as in the rest of the page (wording.py).

const count = (value) => Math.round(value).toLocaleString("en-US");

// Never 0% or 100% for what is not exactly that.
const percent = (part, whole) => {
  if (!(whole > 0)) return "–";
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "<0.1%";
  if (share > 99.9 && share < 100) return ">99.9%";
  return `${share.toFixed(1).replace(/\.0$/, "")}%`;
};

const change = (value) => (value === 0 ? "–" : `${value > 0 ? "+" : "−"}${count(Math.abs(value))}`);

const fourDigits = (value) => {
  if (Math.abs(value) >= 1e4 && Math.abs(value) < 1e6) return count(value);
  return String(Number(value.toPrecision(4)));
};

// One word of a POSIX shell, as Python's shlex.quote writes it.
const shellQuote = (text) =>
  /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
