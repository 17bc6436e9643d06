// Shell commands, and the buttons that copy them.
//
// A page opened from a file may have no clipboard permission, so copying a selection comes first: it needs only a
// click. If both ways fail, the text is selected and the button names the keys to press.

const LABEL_SHOWN_MS = 2500;

// Put each argument into its own element, so that a line breaks between arguments and not at the hyphens of a flag.
export const showCommand = (element, command) => {
  const parts = command.split(" ").map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  });
  element.replaceChildren(...parts.flatMap((part, index) => (index === 0 ? [part] : [" ", part])));
};

const copyBySelection = (text) => {
  const field = document.createElement("textarea");
  field.value = text;
  field.style.position = "fixed";
  field.style.opacity = "0";
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  return isCopied;
};

const copyByPermission = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
};

// Let each `button[data-copy]`, now or later, copy the text of the element whose id it holds.
// `announce` gets the result, for screen readers.
export const connectCopyButtons = (announce = () => {}) => {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const element = document.getElementById(button.dataset.copy);
    const label = (button.dataset.label ??= button.textContent);
    const isCopied = copyBySelection(element.textContent) || (await copyByPermission(element.textContent));
    button.focus({ preventScroll: true });
    if (!isCopied) window.getSelection().selectAllChildren(element);
    button.textContent = isCopied ? "Copied" : "Press Ctrl+C";
    announce(button.textContent);
    setTimeout(() => { button.textContent = label; }, LABEL_SHOWN_MS);
  });
};
