// Live updates, by polling or by a job's server-sent events. Both pause while the page is hidden, and resume
// immediately when it is visible or when the connection is back.

import { jobPath, Problem } from "./api.js";
import { checkConnection, markConnected, onReconnect } from "./connection.js";

const FINAL = new Set(["succeeded", "failed", "cancelled"]);
export const isFinal = (job) => FINAL.has(job.status);

// Call `load` now and every `intervalS()` seconds. A call starts only after the promise of the one before has settled.
// Return a function that calls `load` immediately.
export const poll = (load, intervalS) => {
  let timer = 0;
  let running = null;
  const schedule = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, 1000 * intervalS());
  };
  const loadOnce = async () => {
    try {
      await load();
    } catch (error) {
      if (error instanceof Problem) console.warn(error.message); // eslint-disable-line no-console
    }
  };
  const refresh = () => {
    clearTimeout(timer);
    running ??= loadOnce().finally(() => { running = null; schedule(); });
    return running;
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else refresh();
  });
  onReconnect(refresh);
  refresh();
  return refresh;
};

// Call `onJob` with the job at every change until it has ended. Return a function that stops this.
export const followJob = (id, onJob) => {
  let source = null;
  let hasEnded = false;
  const close = () => {
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    if (hasEnded || document.hidden) return;
    source = new EventSource(jobPath(id, "events"));
    source.addEventListener("job", (event) => {
      markConnected();
      const job = JSON.parse(event.data);
      if (isFinal(job)) {
        hasEnded = true;
        close();
      }
      onJob(job);
    });
    // The browser reconnects after a broken stream, but not after a refused one. Check which it was.
    source.addEventListener("error", checkConnection);
  };
  const onVisibility = () => { if (document.hidden) close(); else open(); };
  document.addEventListener("visibilitychange", onVisibility);
  const stopListening = onReconnect(open);
  open();
  return () => {
    hasEnded = true;
    close();
    document.removeEventListener("visibilitychange", onVisibility);
    stopListening();
  };
};
