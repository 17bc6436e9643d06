// Tokens: hover, tap, or focus a sample and walk with the arrow keys; the line below tells the scores.

const connectTokens = () => {
  for (const box of document.querySelectorAll(".tokens")) connectBox(box);
};

const connectBox = (box) => {
  const names = { k: "kept", r: "removed from the loss", d: "dropped with its sample" };
  const tokens = [...box.querySelectorAll(".k, .r, .d")];
  const readout = box.nextElementSibling;
  let here = -1;
  const show = (index) => {
    tokens[here]?.classList.remove("here");
    here = index;
    const token = tokens[here];
    token.classList.add("here");
    const text = token.classList.contains("c") ? "(continues the character before)" : JSON.stringify(token.textContent);
    readout.textContent = `${text}   ${token.title.replaceAll(" · ", "   ")}   ${names[token.classList[0]]}`;
  };
  const pick = (event) => {
    const index = tokens.indexOf(event.target.closest(".k, .r, .d"));
    if (index >= 0) show(index);
  };
  box.addEventListener("pointerover", pick);
  box.addEventListener("click", pick);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || tokens.length === 0) return;
    event.preventDefault();
    show(Math.min(Math.max(here + step, 0), tokens.length - 1));
    tokens[here].scrollIntoView({ block: "nearest" });
  });
};
