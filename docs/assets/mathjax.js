// Formulas are marked by pymdownx.arithmatex; nothing else on a page is read as TeX. The copy of MathJax
// 3.2.2 in mathjax/ (Apache-2.0, unchanged) typesets with SVG, which needs no fonts, so the site works without a network.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"]],
    displayMath: [["\\[", "\\]"]],
    processEscapes: true,
    processEnvironments: true,
  },
  options: {
    enableMenu: false,
    ignoreHtmlClass: ".*|",
    processHtmlClass: "arithmatex",
  },
  startup: {
    ready() {
      MathJax.startup.defaultReady();
      // As LaTeX does, and MathJax does not: the name of an argument within \text{} has its underscore escaped.
      MathJax.startup.document.inputJax[0].preFilters.add(({ math }) => {
        math.math = math.math.replace(/\\text\{[^{}]*\}/g, (text) => text.replaceAll("\\_", "_"));
      });
    },
  },
};
