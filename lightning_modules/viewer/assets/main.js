"use strict";
// The tabs, the theme, and the start.

const theme = {
  dark: window.matchMedia("(prefers-color-scheme: dark)"),
  chosen: null,
  apply() {
    document.documentElement.dataset.theme = this.chosen ?? (this.dark.matches ? "dark" : "light");
  },
};
theme.apply();

async function start() {
  const report = await readReport(document.getElementById("data"));
  const kinds = [
    ["results", "Results", report.tables.length + report.plots.length > 0, showResults],
    ["metrics", "Metrics", report.runs.some((run) => Object.keys(run.metrics).length), showMetrics],
    ["completions", "Completions", report.completions.count > 0, showCompletions],
  ].filter(([, , present]) => present);
  const views = document.getElementById("views");
  views.replaceChildren();
  showRuns(report);
  const made = new Map();
  const tabs = kinds.map(([name, title]) => {
    const tab = element("a", { href: `#${name}`, attributes: { role: "tab" } }, title);
    if (name === "completions") tab.append(element("span", { className: "muted" }, ` ${report.completions.count.toLocaleString("en-US")}`));
    return tab;
  });
  document.getElementById("tabs").append(...tabs);
  if (!kinds.length) views.append(element("p", { className: "loading" }, "There is nothing to show: no metrics and no completions."));

  function open() {
    hideTip();
    const name = kinds.find(([each]) => each === location.hash.slice(1).split("&")[0])?.[0] ?? kinds[0]?.[0];
    document.body.dataset.view = name ?? "none";
    document.getElementById("runs").open = name !== "completions";
    tabs.forEach((tab, index) => tab.setAttribute("aria-selected", kinds[index][0] === name));
    for (const [each, , , show] of kinds) {
      const view = document.getElementById(`view-${each}`) ?? views.appendChild(element("div", { id: `view-${each}`, className: `view ${each}` }));
      view.hidden = each !== name;
      if (each === name && !made.has(each)) made.set(each, show(report, view));
    }
    window.scrollTo(0, 0);
  }

  const renderAll = () => made.forEach((view) => view.render());
  document.getElementById("theme").addEventListener("click", () => {
    theme.chosen = isDark() ? "light" : "dark";
    theme.apply();
    renderAll();
  });
  theme.dark.addEventListener("change", () => {
    theme.apply();
    renderAll();
  });
  window.addEventListener("hashchange", open);
  open();
  window.viewer = { report, place, colorAt, css, boundOf, selected };
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  document.getElementById("views").replaceChildren(element("p", { className: "loading" }, `The page cannot be shown: ${error.message}`));
  document.documentElement.dataset.ready = "failed";
  throw error;
});
