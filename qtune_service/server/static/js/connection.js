// Whether the server can be reached. While it cannot, the page says since when, tries again by itself, slower and slower,
// and tells its parts once it is back: they then read anew what they show.

import { clock } from "./format.js";
import { announce } from "./notices.js";

const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 15;
const listeners = new Set();
let lastHeard = new Date();
let isLost = false;
let waitS = FIRST_WAIT_S;
let timer = 0;
let leaving = false;

// Call back when the server is there again.
export const onBack = (callback) => {
  listeners.add(callback);
  return () => listeners.delete(callback);
};

export const heard = () => {
  lastHeard = new Date();
};

export const lost = (reason = "The server does not answer.") => {
  if (isLost || leaving) return;
  isLost = true;
  waitS = FIRST_WAIT_S;
  const banner = document.getElementById("connection");
  banner.hidden = false; // first, for only what changes in sight is read out
  banner.querySelector(".what").textContent = reason;
  banner.querySelector(".since").textContent = `What you see is of ${clock(lastHeard)}.`;
  document.documentElement.dataset.connection = "lost";
  later();
};

// Something went wrong that may have been the connection: find out.
export const doubt = () => {
  if (!isLost) tryNow();
};

const later = () => {
  document.querySelector("#connection .next").textContent = `Next try in ${waitS} s.`;
  timer = setTimeout(tryNow, waitS * 1000);
  waitS = Math.min(2 * waitS, LONGEST_WAIT_S);
};

export const tryNow = async () => {
  clearTimeout(timer);
  const answer = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
  if (answer?.ok) back();
  else if (isLost) later();
  else lost();
};

const back = () => {
  heard();
  if (!isLost) return;
  isLost = false;
  document.getElementById("connection").hidden = true;
  delete document.documentElement.dataset.connection;
  announce("Connected again.");
  for (const callback of listeners) callback();
};

export const watchConnection = () => {
  document.querySelector("#connection button").addEventListener("click", tryNow);
  addEventListener("online", doubt);
  addEventListener("offline", () => lost("This device is offline."));
  addEventListener("pagehide", () => { leaving = true; }); // what a browser breaks off on leaving is no lost connection
  addEventListener("pageshow", () => { leaving = false; });
};
