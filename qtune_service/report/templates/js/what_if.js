// The slider: numbers, command and both pictures follow the chosen point of the curve.

// onChoose(place on the curve) is called with the first place too; without it the page stands at that already.
const connectSlider = (views, curve, onChoose = null) => {
  const slider = document.getElementById("ratio");
  if (!curve || !slider) return;
  const { points, here, all_tokens: allTokens, command } = curve;
  const keys = ["q1", "q2", "q3", "q4", "kept", "tokens"];
  const section = slider.closest("section");

  const say = (key, text) => {
    for (const element of section.querySelectorAll(`[data-now="${key}"]`)) element.textContent = text;
  };

  // Pictures are redrawn at most once a frame, however fast the slider moves.
  let waiting = null;
  const redraw = (at) => {
    if (waiting === null) {
      requestAnimationFrame(() => {
        views.ranks?.signal("alpha", points.alpha[waiting]).runAsync();
        views.what_if?.signal("ratio", points.sample_keep_ratio[waiting]).runAsync();
        waiting = null;
      });
    }
    waiting = at;
  };

  const choose = (at) => {
    const ratio = points.sample_keep_ratio[at];
    const share = percent(ratio, 1);
    for (const key of keys) {
      say(key, count(points[key][at]));
      section.querySelector(`[data-change="${key}"]`).textContent = change(points[key][at] - points[key][here]);
    }
    say("ratio", share);
    say("alpha", points.alpha[at].toFixed(3));
    say("token_share", percent(points.tokens[at], allTokens));
    say("corners", points.alpha[at] > 0.5 ? "Corners overlap (alpha over 1/2)" : "Corners are disjoint");
    slider.setAttribute("aria-valuetext", share);
    showCommand(
      document.getElementById("prune-command"),
      `${command.start}${shellQuote(command.stem + ratio)} --sample-keep-ratio ${ratio}${command.flags}`,
    );
    redraw(at);
    onChoose?.(at);
  };

  slider.addEventListener("input", () => choose(slider.valueAsNumber));
  // A browser may restore an earlier position of the slider when the page is loaded again.
  if (onChoose || slider.valueAsNumber !== here) choose(slider.valueAsNumber);
};
