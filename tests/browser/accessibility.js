// Faults of the visible elements of a page, for accessibility.py.
() => {
  const found = [];
  const shown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && e.getClientRects().length > 0;
  const say = (what, e) => found.push(`${what}: ${e.outerHTML.slice(0, 120)}`);
  const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);

  for (const e of all("input:not([type=hidden]), select, textarea")) {
    const name = e.getAttribute("aria-label") || [...(e.labels ?? [])].map((l) => l.textContent.trim()).join(" ");
    if (!name) say("a field without a name", e);
  }
  for (const e of all("button, a[href], summary")) {
    if (!(e.getAttribute("aria-label") || e.textContent.trim())) say("a control without a name", e);
  }
  for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby]")) {
    for (const id of `${e.getAttribute("aria-describedby") ?? ""} ${e.getAttribute("aria-labelledby") ?? ""}`.split(/\s+/)) {
      if (id && !document.getElementById(id)) say(`references ${id}, which does not exist`, e);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) found.push(`duplicate id: ${id}`);
  if (document.querySelectorAll("h1").length !== 1) found.push("no single h1");
  let level = 0;
  for (const e of all("h1, h2, h3, h4")) {
    const next = Number(e.tagName[1]);
    if (next > level + 1) say(`a heading skips from ${level}`, e);
    level = next;
  }
  for (const landmark of ["header", "main", "footer"]) if (!document.querySelector(landmark)) found.push(`no ${landmark}`);

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const behind = (e) => (e ? over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255, 1]);
  const light = (color) => color.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faded = (e) => e && (Number(getComputedStyle(e).opacity) < 1 || faded(e.parentElement));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !shown(e) || e.closest(":disabled, noscript, svg, .unseen, .skip") || faded(e)) continue;
    const style = getComputedStyle(e);
    const back = behind(e);
    const [a, b] = [light(over(rgba(style.color), back)), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < needed) say(`contrast ${ratio.toFixed(2)} of "${walker.currentNode.textContent.trim().slice(0, 30)}"`, e);
  }
  return found;
}
