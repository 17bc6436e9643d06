// Scores of single tokens: hover over a token, tap it, or walk through a sample's tokens with the arrow keys. The line
// below the sample shows the token's scores.

const STATES = { k: "kept", r: "removed from the loss", d: "dropped with its sample" };

// Connect a `.tokens` box whose next sibling is its readout line. Call it again after replacing the tokens.
export const connectTokens = (box) => {
  const tokens = [...box.querySelectorAll(".k, .r, .d")];
  const readout = box.nextElementSibling;
  let current = -1;
  const show = (index) => {
    tokens[current]?.classList.remove("here");
    current = index;
    const token = tokens[current];
    token.classList.add("here");
    const isContinued = token.classList.contains("c");
    const text = isContinued ? "(continues the previous character)" : JSON.stringify(token.textContent);
    readout.textContent = `${text}   ${token.title.replaceAll(" · ", "   ")}   ${STATES[token.classList[0]]}`;
  };
  const showTarget = (event) => {
    const index = tokens.indexOf(event.target.closest(".k, .r, .d"));
    if (index >= 0) show(index);
  };
  box.addEventListener("pointerover", showTarget);
  box.addEventListener("click", showTarget);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || tokens.length === 0) return;
    event.preventDefault();
    show(Math.min(Math.max(current + step, 0), tokens.length - 1));
    tokens[current].scrollIntoView({ block: "nearest" });
  });
};
