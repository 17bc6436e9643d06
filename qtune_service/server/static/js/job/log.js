// The job's log: its last lines, and what comes after them as long as the job runs.

import { understood } from "../api.js";
import { doubt } from "../connection.js";
import { setText } from "../dom.js";
import { isFinal } from "../live.js";
import { copyFrom } from "./copying.js";
import { jobPath } from "./actions.js";

const TAIL = 500;
const MAX_CHARS = 400_000;
const AGAIN_MS = 2000;
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g;
const box = document.getElementById("log-text");
const pause = document.getElementById("log-pause");
const wrap = document.getElementById("log-wrap");
const text = document.createTextNode("");
let reading = null;
let kept = "";

export const showLog = (job) => {
  document.getElementById("log-whole").href = jobPath(job, "logs");
  pause.hidden = isFinal(job);
  reading?.abort();
  reading = new AbortController();
  read(job, reading.signal);
};

// A stream that ends while the job goes on is asked for again: then its tail is all there is.
const read = async (job, signal) => {
  const follow = isFinal(job) ? "" : "&follow=true";
  while (!signal.aborted) {
    try {
      await stream(`${jobPath(job, "logs")}?tail=${TAIL}${follow}`, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.name === "Problem") return say(error.message);
      doubt();
    }
    if (!follow) return say(kept ? "" : "It printed nothing.");
    await new Promise((resolve) => { setTimeout(resolve, AGAIN_MS); });
  }
};

const stream = async (path, signal) => {
  const response = await fetch(path, { signal });
  if (!response.ok) await understood(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let isFirst = true;
  for (;;) {
    const { value, done } = await reader.read();
    if (done || signal.aborted) return;
    kept = ((isFirst ? "" : kept) + value).slice(-MAX_CHARS);
    isFirst = false;
    draw();
  }
};

const draw = () => {
  box.hidden = kept === "";
  if (pause.getAttribute("aria-pressed") === "true") return;
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const shown = kept.replace(ANSI, "").replace(/\r(?!\n)/g, "\n").replace(CONTROLS, "�");
  if (shown === text.data) return;
  text.data = shown;
  if (isAtEnd) box.scrollTop = box.scrollHeight;
};

const say = (words) => setText(document.getElementById("log-state"), words);

const toggle = (button, change) => button.addEventListener("click", () => {
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(isOn));
  change(isOn);
});

box.replaceChildren(text);
toggle(pause, (isOn) => {
  say(isOn ? "Paused; what comes is kept." : "");
  draw();
});
toggle(wrap, (isOn) => box.classList.toggle("wrapped", isOn));
document.getElementById("log-copy").addEventListener("click", (event) => copyFrom(event.currentTarget, text.data));
