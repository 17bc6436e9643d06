// How numbers and times read: as in the report (wording.py).

const NOTHING = "–";

export const count = (value) => (value === null || value === undefined ? NOTHING : Math.round(value).toLocaleString("en-US"));

// Never 0% or 100% for what is not exactly that.
export const percent = (part, whole) => {
  if (!(whole > 0)) return NOTHING;
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "<0.1%";
  if (share > 99.9 && share < 100) return ">99.9%";
  return `${share.toFixed(1).replace(/\.0$/, "")}%`;
};

// Four significant digits. JSON has no infinity: the server writes it as text.
export const number = (value) => {
  if (value === null || value === undefined) return NOTHING;
  const real = Number(value);
  if (Number.isNaN(real)) return NOTHING;
  if (!Number.isFinite(real)) return real > 0 ? "∞" : "−∞";
  if (Math.abs(real) >= 1e4 && Math.abs(real) < 1e6) return count(real);
  return String(Number(real.toPrecision(4))).replace("-", "−");
};

// "12 s", "3 min 05 s", "2 h 10 min".
export const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 9.95) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
};

// "512 B", "1.2 MiB".
export const bytes = (size) => {
  if (size === null || size === undefined) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = size;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 9.95 ? 1 : 0)} ${units[unit]}`;
};

// "just now", "5 min ago", "3 h ago", and the day for what is older.
export const ago = (time, now = Date.now()) => {
  const seconds = (now - new Date(time)) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3570) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
};

export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");

// In full, for a title.
export const moment = (time) => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

// Of a path or URI.
export const lastPart = (path) => path.replace(/\/+$/, "").split("/").pop();

// One word of a POSIX shell, as Python's shlex.quote writes it.
export const shellQuote = (text) =>
  /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
