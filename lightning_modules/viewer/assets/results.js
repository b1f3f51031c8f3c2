"use strict";
// Tables and plots of a report.

function showResults(report, view) {
  for (const { title, columns, rows, caption } of report.tables) {
    const cell = (value) => element("td", { className: typeof value === "number" ? "number" : "" }, typeof value === "number" ? short(value) : value);
    view.append(
      element(
        "section",
        { className: "result" },
        element("h2", {}, title),
        caption ? element("p", { className: "expect" }, caption) : null,
        element(
          "div",
          { className: "scroll" },
          element(
            "table",
            {},
            element("thead", {}, element("tr", {}, columns.map((column, index) => element("th", { className: rows.some((cells) => typeof cells[index] === "number") ? "number" : "" }, column)))),
            element("tbody", {}, rows.map((cells) => element("tr", {}, cells.map(cell)))),
          ),
        ),
      ),
    );
  }
  for (const { title, svg, caption } of report.plots) {
    const image = element("img", { alt: title, src: `data:image/svg+xml,${encodeURIComponent(svg)}` });
    view.append(element("section", { className: "result" }, element("h2", {}, title), caption ? element("p", { className: "expect" }, caption) : null, image));
  }
  return { render() {} };
}
