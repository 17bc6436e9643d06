// Buttons that copy the text of an element: `data-copies` names it.

import { copyText } from "../../pictures.js";
import { announce } from "../notices.js";

export const copyFrom = async (button, text) => {
  const label = button.dataset.label ??= button.textContent;
  const copied = await copyText(text);
  button.focus({ preventScroll: true });
  button.textContent = copied ? "Copied" : "Not copied";
  announce(button.textContent);
  setTimeout(() => { button.textContent = label; }, 2500);
};

export const connectCopying = () => {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-copies]");
    if (button) copyFrom(button, document.getElementById(button.dataset.copies).textContent);
  });
};
