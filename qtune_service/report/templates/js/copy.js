// Commands, and buttons that copy them. A page from a file may have no clipboard permission, so the old way goes first: it
// needs none, only a click. Where both fail, the command is selected and the button says which keys to press.

// Each word is an element, so that a line ends between words and not at the hyphens of a flag.
const showCommand = (element, command) => {
  const words = command.split(" ").map((word) => {
    const span = document.createElement("span");
    span.textContent = word;
    return span;
  });
  element.replaceChildren(...words.flatMap((word, at) => (at === 0 ? [word] : [" ", word])));
};

const copyBySelection = (text) => {
  const field = document.createElement("textarea");
  field.value = text;
  field.style.position = "fixed";
  field.style.opacity = "0";
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  return copied;
};

const copyByPermission = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
};

const copyText = async (text) => copyBySelection(text) || (await copyByPermission(text));

const connectCopyButtons = () => {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const element = document.getElementById(button.dataset.copy);
      const copied = await copyText(element.textContent);
      button.focus({ preventScroll: true });
      if (!copied) window.getSelection().selectAllChildren(element);
      button.textContent = copied ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = label; }, 2500);
    });
  }
};
