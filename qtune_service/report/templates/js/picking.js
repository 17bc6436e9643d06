// Picking a sample in a plane, by click or by keys: both planes ring it, the panel tells it, and a sample whose tokens the
// page can show is opened. Which ones these are, and how, `tokens` says: {link(row) -> href or null, open(row)}.

const connectPlanes = (views, data, tokens) => {
  const panel = document.getElementById("picked");
  const planes = ["plane", "ranks"].filter((name) => views[name]).map((name) => views[name]);
  const samples = asRows(data.datasets.samples);

  const say = (name, text) => { panel.querySelector(`[data-of="${name}"]`).textContent = text; };

  const tell = (row) => {
    panel.querySelector(".hint").hidden = true;
    panel.querySelector(".found").hidden = false;
    panel.querySelector(".dot").className = `dot ${row.q}`;
    say("label", `${row.q} ${data.quadrants[row.q]}, ${row.k ? "kept" : "dropped"}`);
    say("id", row.id);
    say("perplexity", fourDigits(row.p));
    say("entropy", fourDigits(row.e));
    say("error_rank", `rank ${row.u.toFixed(3)}`);
    say("entropy_rank", `rank ${row.v.toFixed(3)}`);
    say("tokens", count(row.n));
    const link = panel.querySelector(".to-tokens");
    const target = tokens.link(row);
    link.hidden = target === null;
    if (target !== null) link.href = target;
    // A cut identifier must not stand in a command.
    panel.querySelector(".command").hidden = Boolean(row.cut);
    panel.querySelector(".too-long").hidden = !row.cut;
    showCommand(document.getElementById("inspect-command"), data.inspect + shellQuote(row.id));
  };

  const pick = (row, { open }) => {
    tell(row);
    const { p, e, u, v, q, k } = row;
    for (const view of planes) view.data("picked", [{ p, e, u, v, q, k }]).runAsync();
    if (!open) return;
    if (tokens.link(row) !== null) tokens.open(row);
    else panel.scrollIntoView({ block: "nearest" });
  };

  for (const name of ["plane", "ranks"]) {
    const view = views[name];
    if (!view) continue;
    view.addEventListener("click", (_, item) => {
      const row = item?.datum;
      if (row && row.id !== undefined) pick(row, { open: true });
    });
    walkWithKeys(document.querySelector(`[data-chart="${name}"]`), samples, pick);
  }
};

// Arrow keys go to the next sample to the right, left, up or down in order of rank; Enter opens the sample.
const walkWithKeys = (element, samples, pick) => {
  const orders = { v: null, u: null };
  const order = (field) => (orders[field] ??= samples.map((_, at) => at).sort((a, b) => samples[a][field] - samples[b][field]));
  const steps = { ArrowRight: ["v", 1], ArrowLeft: ["v", -1], ArrowUp: ["u", 1], ArrowDown: ["u", -1] };
  let here = null;
  element.addEventListener("keydown", (event) => {
    if (samples.length === 0) return;
    if (event.key === "Enter" && here !== null) {
      event.preventDefault();
      pick(samples[here], { open: true });
    }
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const along = order(step[0]);
    const place = here === null ? Math.floor(along.length / 2) : along.indexOf(here) + step[1];
    here = along[Math.min(Math.max(place, 0), along.length - 1)];
    pick(samples[here], { open: false });
  });
};

// The samples that stand on the page. The hash does the jump, so that the browser's Back leads back to the plane.
const examplesOf = (data) => {
  const places = new Map(asRows(data.datasets.examples).map((row) => [row.id, row.at]));
  return {
    link: (row) => (places.has(row.id) ? `#sample-${places.get(row.id)}` : null),
    open: (row) => openSample(`sample-${places.get(row.id)}`),
  };
};

const openSample = (id) => {
  const sample = document.getElementById(id);
  sample.open = true;
  if (window.location.hash !== `#${id}`) window.location.hash = id;
  sample.scrollIntoView({ block: "start" });
  sample.querySelector("summary").focus({ preventScroll: true });
};

// A link to a sample, or Back to one, opens it.
const followLinks = () => {
  const follow = () => {
    const target = document.getElementById(window.location.hash.slice(1));
    if (target?.matches("details.sample")) target.open = true;
  };
  window.addEventListener("hashchange", follow);
  follow();
};
