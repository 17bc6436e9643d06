// The log of a job: its last lines, and new lines while the job runs.

import { jobPath, readResponse } from "../api.js";
import { checkConnection } from "../connection.js";
import { byId, setText } from "../dom.js";
import { isFinal } from "../updates.js";

const TAIL_LINES = 500;
const MAX_CHARS = 400_000;
const RETRY_MS = 2000;
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g;
const box = byId("log-text");
const pause = byId("log-pause");
const wrap = byId("log-wrap");
const shownText = document.createTextNode("");
let reading = null;
let received = "";

export const showLog = (job) => {
  byId("log-whole").href = jobPath(job.id, "logs");
  pause.hidden = isFinal(job);
  reading?.abort();
  reading = new AbortController();
  read(job, reading.signal);
};

// Read the log. If the stream of a running job ends, request it again: the new tail replaces the text.
const read = async (job, signal) => {
  const follow = isFinal(job) ? "" : "&follow=true";
  while (!signal.aborted) {
    try {
      await readStream(`${jobPath(job.id, "logs")}?tail=${TAIL_LINES}${follow}`, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.name === "Problem") {
        showState(error.message);
        return;
      }
      checkConnection();
    }
    if (!follow) {
      showState(received ? "" : "The log is empty.");
      return;
    }
    await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
  }
};

const readStream = async (path, signal) => {
  const response = await fetch(path, { signal });
  if (!response.ok) await readResponse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let isFirst = true;
  for (;;) {
    const { value, done } = await reader.read();
    if (done || signal.aborted) return;
    received = ((isFirst ? "" : received) + value).slice(-MAX_CHARS);
    isFirst = false;
    showText();
  }
};

// Show the text, and scroll to its end unless the user has scrolled up.
const showText = () => {
  box.hidden = received === "";
  if (pause.getAttribute("aria-pressed") === "true") return;
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const text = received.replace(ANSI, "").replace(/\r(?!\n)/g, "\n").replace(CONTROLS, "�");
  if (text === shownText.data) return;
  shownText.data = text;
  if (isAtEnd) box.scrollTop = box.scrollHeight;
};

const showState = (text) => setText(byId("log-state"), text);

const connectToggle = (button, onToggle) => button.addEventListener("click", () => {
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(isOn));
  onToggle(isOn);
});

box.replaceChildren(shownText);
connectToggle(pause, (isOn) => {
  showState(isOn ? "Paused. New lines are kept." : "");
  showText();
});
connectToggle(wrap, (isOn) => box.classList.toggle("wrapped", isOn));
