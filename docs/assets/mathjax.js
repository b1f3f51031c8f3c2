// Formulas are marked by pymdownx.arithmatex; nothing else on a page is read as TeX. The copy of MathJax
// 3.2.2 in mathjax/ (Apache-2.0, unchanged) draws with SVG, which needs no fonts, so the site works without a network.
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
};
