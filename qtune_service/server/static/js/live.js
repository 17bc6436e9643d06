// Keep what is shown fresh: by asking every few seconds, or by a job's events. Both rest while the page is not looked at
// and while the connection is lost, and read anew at once when that ends.

import { Problem } from "./api.js";
import { doubt, heard, onBack } from "./connection.js";

const FINAL = new Set(["succeeded", "failed", "cancelled"]);
export const isFinal = (job) => FINAL.has(job.status);

// Call `load` now and every so often; it may return a promise, and is not called again before that is settled.
// Gives {now, stop}. `everyS` may be a function, asked each time.
export const keepFresh = (load, everyS) => {
  let timer = 0;
  let running = null;
  let stopped = false;
  const plan = () => {
    clearTimeout(timer);
    if (stopped || document.hidden) return;
    timer = setTimeout(now, 1000 * (typeof everyS === "function" ? everyS() : everyS));
  };
  const once = async () => {
    try {
      await load();
    } catch (error) {
      if (error instanceof Problem) console.warn(error.message); // eslint-disable-line no-console
    }
  };
  const now = async () => {
    clearTimeout(timer);
    running ??= once().finally(() => { running = null; plan(); });
    return running;
  };
  const look = () => {
    if (document.hidden) clearTimeout(timer);
    else now();
  };
  document.addEventListener("visibilitychange", look);
  const forget = onBack(now);
  now();
  return {
    now,
    stop: () => {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
      forget();
    },
  };
};

// Call `onJob` with a job at every change, until it has ended. Gives a function that stops it.
export const followJob = (id, onJob) => {
  let source = null;
  let ended = false;
  const close = () => {
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    if (ended || document.hidden) return;
    source = new EventSource(`/api/v1/jobs/${encodeURIComponent(id)}/events`);
    source.addEventListener("job", (event) => {
      heard();
      const job = JSON.parse(event.data);
      if (isFinal(job)) {
        ended = true;
        close();
      }
      onJob(job);
    });
    // A stream that broke is opened again by the browser; one that was refused is not. Ask which it was.
    source.addEventListener("error", doubt);
  };
  const look = () => { if (document.hidden) close(); else open(); };
  document.addEventListener("visibilitychange", look);
  const forget = onBack(open);
  open();
  return () => {
    ended = true;
    close();
    document.removeEventListener("visibilitychange", look);
    forget();
  };
};
