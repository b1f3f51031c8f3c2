// Runs in a page of the built site once everything is drawn, and leaves what is wrong with it, as JSON, in an attribute
// of the root element. tests/docs/test_site.py adds it to copies of the pages.
window.addEventListener("load", async () => {
  const root = document.documentElement;
  const content = document.querySelector("article.md-content__inner");
  const faults = [];
  const fault = (kind, element) => faults.push(`${kind}: ${describe(element)}`);

  const describe = (element) => {
    const text = (element.textContent || element.getAttribute("src") || "").trim().replace(/\s+/g, " ");
    return `<${element.tagName.toLowerCase()}> ${text.slice(0, 70)}`;
  };
  const visible = (element) => element.getClientRects().length > 0;
  const isInside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1;

  if (window.MathJax) await window.MathJax.startup.promise;
  await document.fonts.ready;

  for (const link of document.querySelectorAll("link[rel=stylesheet]")) {
    if (!link.sheet) fault("stylesheet does not load", link);
  }

  // The page, and whatever scrolls or clips by itself.
  if (root.scrollWidth > root.clientWidth) fault("page is wider than the window", root);
  const scrolling = ".md-tabs__list, .md-typeset__scrollwrap, table, pre, pre > code, div.arithmatex";
  for (const element of document.querySelectorAll(scrolling)) {
    if (visible(element) && element.scrollWidth > element.clientWidth + 1) fault("overflows", element);
  }
  for (const element of content.querySelectorAll(":scope > *")) {
    if (visible(element) && !isInside(element.getBoundingClientRect(), content.getBoundingClientRect())) {
      if (!element.matches(".md-typeset__scrollwrap")) fault("sticks out", element);
    }
  }

  // Formulas: every glyph lies inside the boxes around it, and an equation's number does not touch the equation.
  const formulas = [...document.querySelectorAll(".arithmatex")];
  for (const formula of formulas) {
    if (!formula.querySelector("mjx-container > svg") || formula.querySelector("merror, [data-mjx-error]")) {
      fault("formula is not typeset", formula);
    }
    if (/\\/.test(formula.querySelector("mjx-container")?.textContent ?? "")) fault("formula shows a backslash", formula);
    const glyphs = [...formula.querySelectorAll("svg use, svg path, svg rect, svg text")].filter(
      (glyph) => !glyph.closest("defs, mjx-assistive-mml") && glyph.getBoundingClientRect().width > 0,
    );
    for (let box = formula; box !== content.parentElement && box; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.display === "inline" || (style.overflowX === "visible" && box !== content)) continue;
      const outer = box.getBoundingClientRect();
      for (const glyph of glyphs) {
        const inner = glyph.getBoundingClientRect();
        const tooHigh = style.overflowY !== "visible" && (inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1);
        if (!isInside(inner, outer) || tooHigh) {
          fault("formula is cut", formula);
          break;
        }
      }
    }
    const number = formula.querySelector("[data-labels]");
    const body = formula.querySelector("[data-table] > g");
    if (number && body && body.getBoundingClientRect().right > number.getBoundingClientRect().left) {
      fault("formula runs into its number", formula);
    }
  }

  // Names are not broken within a word: each line of a name ends where a name may end.
  for (const code of content.querySelectorAll("td code")) {
    const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    let previous = null;
    let text = "";
    while (walker.nextNode()) {
      for (let at = 0; at < walker.currentNode.length; at++) {
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + 1);
        const box = range.getBoundingClientRect();
        if (previous && box.width && box.top > previous.bottom - 2 && /[\w]$/.test(text)) fault("name is broken", code);
        if (box.width) previous = box;
        text += walker.currentNode.data[at];
      }
    }
  }

  const pictures = [...document.querySelectorAll("img")];
  for (const picture of pictures) {
    picture.loading = "eager";
    await picture.decode().catch(() => {});
    if (!picture.complete || !picture.naturalWidth) fault("image does not load", picture);
  }
  const plots = [...document.querySelectorAll(".weight-plot")];
  for (const plot of plots) {
    if (plot.getBoundingClientRect().width < 200) fault("plot is narrower than 200 pixels", plot);
  }

  const counts = { formulas: formulas.length, pictures: pictures.length, plots: plots.length };
  root.dataset.probe = JSON.stringify({ faults: [...new Set(faults)], ...counts });
});
