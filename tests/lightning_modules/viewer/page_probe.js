// An expression: what is wrong with the layout of the open page, as a list of sentences.
(() => {
  const faults = [];
  const root = document.documentElement;
  const about = (element) => `<${element.tagName.toLowerCase()} ${element.getAttribute("class") ?? ""}> ${element.textContent.trim().slice(0, 50)}`;
  const isShown = (element) => element.getClientRects().length > 0;
  const boxes = (selector, within = document) => [...within.querySelectorAll(selector)].filter(isShown);

  if (root.scrollWidth > root.clientWidth) faults.push(`the page is wider than the window: ${root.scrollWidth} > ${root.clientWidth}`);

  // No text is longer than its box, except where an ellipsis or a scroll bar says so.
  const texts = "h1, h2, h3, p, th, td, label, button, select, dt, dd, summary, .chip, .entry, .card, .plot, .heat, .legend, .ends, .signs, .count, #tabs a";
  for (const element of boxes(texts)) {
    if (getComputedStyle(element).textOverflow === "ellipsis") continue;
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline") {
      faults.push(`overflows: ${about(element)}`);
    }
  }
  // What is selected in a menu is not cut off.
  for (const select of boxes("select")) {
    const style = getComputedStyle(select);
    const context = document.createElement("canvas").getContext("2d");
    context.font = style.font;
    const text = context.measureText(select.selectedOptions[0]?.textContent ?? "").width;
    if (text + 16 > select.clientWidth) faults.push(`menu is narrower than its choice: ${select.value}`);
  }

  // Labels of plots are inside them and apart from each other.
  for (const svg of boxes("svg")) {
    const outer = svg.getBoundingClientRect();
    const labels = [...svg.querySelectorAll("text")].map((text) => [text, text.getBoundingClientRect()]);
    for (const [text, box] of labels) {
      if (box.left < outer.left - 0.5 || box.right > outer.right + 0.5 || box.top < outer.top - 1 || box.bottom > outer.bottom + 1) {
        faults.push(`label outside its plot: ${text.textContent} in ${svg.dataset.metric ?? svg.getAttribute("class")}`);
      }
    }
    labels.forEach(([text, box], index) => {
      for (const [other, next] of labels.slice(index + 1)) {
        const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
        const down = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
        if (across > 1 && down > 3) faults.push(`labels overlap: ${text.textContent} | ${other.textContent} in ${svg.dataset.metric ?? svg.getAttribute("class")}`);
      }
    });
  }
  for (const card of boxes(".card")) {
    const outer = card.getBoundingClientRect();
    for (const inner of card.children) {
      const box = inner.getBoundingClientRect();
      if (box.left < outer.left || box.right > outer.right + 0.5 || box.bottom > outer.bottom + 0.5) faults.push(`outside its card: ${about(inner)}`);
    }
  }

  // Texts can be read on what is behind them: a contrast of at least 4.5, as WCAG 2 asks for.
  const channels = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.slice(0, 3).map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = channels(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  for (const element of boxes(".token:not(.untrained), .muted, .expect, .row-head, .row-text, button, h1, h3, td, dd, .chip, .note, .tick, .axis")) {
    const style = getComputedStyle(element);
    const ink = channels(element instanceof SVGElement ? style.fill : style.color);
    const [light, dark] = [luminance(ink), luminance(behind(element))].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${about(element)}`);
  }
  return [...new Set(faults)];
})()
