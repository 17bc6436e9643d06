// Elements without markup in strings: data always become text. Styles are set through the CSSOM, because the page's
// policy forbids style attributes.

export const byId = (id) => document.getElementById(id);

// Make an element. Attributes and children that are null, undefined or false are left out.
export const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child || child === 0));
  return element;
};

// Set a text only if it differs, so that selections survive and screen readers stay quiet.
export const setText = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export const time = (when, text, title) => h("time", { datetime: when, title }, text);
