// Elements without markup in strings: what data hold is always text. Styles are set through the CSSOM, as the policy asks.

export const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child || child === 0));
  return element;
};

// Set a text only where it changed, so that selections and screen readers are left in peace.
export const setText = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export const time = (when, text, title) => h("time", { datetime: when, title }, text);
