// Number formatting, the same as in Python (text.py).

const NOTHING = "–";

export const count = (value) =>
  (value === null || value === undefined ? NOTHING : Math.round(value).toLocaleString("en-US"));

export const signedCount = (value) => (value === 0 ? NOTHING : `${value > 0 ? "+" : "−"}${count(Math.abs(value))}`);

// Show 0% and 100% only for exact values.
export const percent = (part, whole) => {
  if (!(whole > 0)) return NOTHING;
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "<0.1%";
  if (share > 99.9 && share < 100) return ">99.9%";
  return `${share.toFixed(1).replace(/\.0$/, "")}%`;
};

// Four significant digits. JSON has no infinity, so the server sends it as text.
export const number = (value) => {
  if (value === null || value === undefined) return NOTHING;
  const real = Number(value);
  if (Number.isNaN(real)) return NOTHING;
  if (!Number.isFinite(real)) return real > 0 ? "∞" : "−∞";
  if (Math.abs(real) >= 1e4 && Math.abs(real) < 1e6) return count(real);
  return String(Number(real.toPrecision(4))).replace("-", "−");
};

// Quote one argument for a POSIX shell, as Python's shlex.quote does.
export const shellQuote = (text) =>
  /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
