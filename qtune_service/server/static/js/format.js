// Formatting of numbers, times and paths. Numbers are formatted as in the report.

import { count } from "../report/js/format.js";

export { count, number, percent, shellQuote, signedCount } from "../report/js/format.js";

const NOTHING = count(null);

// "12 s", "3 min 05 s", "2 h 10 min".
export const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 9.95) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const twoDigits = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${twoDigits(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${twoDigits(Math.floor((whole % 3600) / 60))} min`;
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

// "just now", "5 min ago", "3 h ago"; the date for times more than a day ago.
export const ago = (time, now = Date.now()) => {
  const seconds = (now - new Date(time)) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3570) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
};

export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");

// Date and time in full, for tooltips.
export const moment = (time) => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

// The last part of a path or URI.
export const lastPart = (path) => path.replace(/\/+$/, "").split("/").pop();

// "data.jsonl, line 3".
export const sourceLine = ({ source, line }) => `${lastPart(source)}${line === null ? "" : `, line ${count(line)}`}`;
