// State of the connection to the server. While it is lost, a banner says since when, and the page retries with growing
// pauses. When the connection is back, listeners reload what they show.

import { clock } from "./format.js";
import { announce } from "./notifications.js";

const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 15;
const listeners = new Set();
let lastConnected = new Date();
let isLost = false;
let isLeaving = false;
let waitS = FIRST_WAIT_S;
let timer = 0;

// Call `callback` whenever the connection is back. Return a function that removes it.
export const onReconnect = (callback) => {
  listeners.add(callback);
  return () => listeners.delete(callback);
};

export const markConnected = () => {
  lastConnected = new Date();
};

export const markLost = (message = "The server does not answer.") => {
  if (isLost || isLeaving) return;
  isLost = true;
  waitS = FIRST_WAIT_S;
  const banner = document.getElementById("connection");
  banner.hidden = false; // before its text changes, because screen readers ignore changes of hidden elements
  banner.querySelector(".message").textContent = message;
  banner.querySelector(".since").textContent = `Last update ${clock(lastConnected)}.`;
  document.documentElement.dataset.connection = "lost";
  scheduleRetry();
};

// Check the connection after an error that may have another cause.
export const checkConnection = () => {
  if (!isLost) retry();
};

const scheduleRetry = () => {
  document.querySelector("#connection .next").textContent = `Next try in ${waitS} s.`;
  timer = setTimeout(retry, waitS * 1000);
  waitS = Math.min(2 * waitS, LONGEST_WAIT_S);
};

const retry = async () => {
  clearTimeout(timer);
  const response = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
  if (response?.ok) markBack();
  else if (isLost) scheduleRetry();
  else markLost();
};

const markBack = () => {
  markConnected();
  if (!isLost) return;
  isLost = false;
  document.getElementById("connection").hidden = true;
  delete document.documentElement.dataset.connection;
  announce("Connected again.");
  for (const callback of listeners) callback();
};

export const watchConnection = () => {
  document.querySelector("#connection button").addEventListener("click", retry);
  addEventListener("online", checkConnection);
  addEventListener("offline", () => markLost("This device is offline."));
  addEventListener("pagehide", () => { isLeaving = true; }); // a browser aborts requests when it leaves the page
  addEventListener("pageshow", () => { isLeaving = false; });
};
