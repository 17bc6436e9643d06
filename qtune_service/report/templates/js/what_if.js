// The keep ratio slider: the table, the command and two charts follow the chosen point of the curve.

import { showCommand } from "./copy.js";
import { count, percent, shellQuote, signedCount } from "./format.js";

// Connect the slider to a curve. With `onChoose`, call it with the index of each chosen point, the first one included.
// Without it, the page already shows the first point.
export const connectSlider = (views, curve, onChoose = null) => {
  const slider = document.getElementById("ratio");
  if (!curve || !slider) return;
  const { points, here: jobIndex, all_tokens: allTokens, command } = curve;
  const keys = ["q1", "q2", "q3", "q4", "kept", "tokens"];
  const section = slider.closest("section");

  const setNow = (key, text) => {
    for (const element of section.querySelectorAll(`[data-now="${key}"]`)) element.textContent = text;
  };

  // Redraw the charts at most once a frame, however fast the slider moves.
  let pendingIndex = null;
  const redraw = (index) => {
    if (pendingIndex === null) {
      requestAnimationFrame(() => {
        views.ranks?.signal("alpha", points.alpha[pendingIndex]).runAsync();
        views.what_if?.signal("ratio", points.sample_keep_ratio[pendingIndex]).runAsync();
        pendingIndex = null;
      });
    }
    pendingIndex = index;
  };

  const choose = (index) => {
    const ratio = points.sample_keep_ratio[index];
    const share = percent(ratio, 1);
    for (const key of keys) {
      const change = points[key][index] - points[key][jobIndex];
      setNow(key, count(points[key][index]));
      section.querySelector(`[data-change="${key}"]`).textContent = signedCount(change);
    }
    setNow("ratio", share);
    setNow("alpha", points.alpha[index].toFixed(3));
    setNow("token_share", percent(points.tokens[index], allTokens));
    setNow("corners", points.alpha[index] > 0.5 ? "Corners overlap (alpha over 1/2)" : "Corners are disjoint");
    slider.setAttribute("aria-valuetext", share);
    showCommand(
      document.getElementById("prune-command"),
      `${command.start}${shellQuote(command.stem + ratio)} --sample-keep-ratio ${ratio}${command.flags}`,
    );
    redraw(index);
    onChoose?.(index);
  };

  slider.addEventListener("input", () => choose(slider.valueAsNumber));
  // A browser may restore an earlier position of the slider when it reloads the page.
  if (onChoose || slider.valueAsNumber !== jobIndex) choose(slider.valueAsNumber);
};
