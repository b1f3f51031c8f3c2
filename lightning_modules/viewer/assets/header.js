"use strict";
// The runs at the top: which objective, model, data, seed, learning rate each of them has.

// A text that may be broken at its punctuation.
function breakable(text) {
  return text.split(/(?<=[/_(,=.-])(?=[^\s\d])/).flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part]));
}

function swatch(cohort) {
  return element("span", { className: `swatch cohort-${cohort % 8}`, attributes: { "aria-hidden": "true" } });
}

function showRuns(report) {
  const box = document.getElementById("runs");
  const labels = [...new Set(report.runs.flatMap((run) => Object.keys(run.facts)))];
  const named = report.runs.map((run) => run.name).join(", ");
  box.querySelector("summary").append(
    element("strong", {}, counted(report.runs.length, "run")),
    element("span", { className: "muted" }, ` ${named}`),
  );
  // What is the same in all runs is said once.
  const isShared = (label) => report.runs.length > 1 && new Set(report.runs.map((run) => run.facts[label])).size === 1;
  const shared = labels.filter(isShared);
  const own = labels.filter((label) => !isShared(label));
  const head = element("tr", {}, ["run", ...own].map((label) => element("th", {}, breakable(label))));
  const rows = report.runs.map((run) =>
    element(
      "tr",
      {},
      element("th", { attributes: { scope: "row" } }, swatch(run.cohortNumber), breakable(run.name)),
      own.map((label) => element("td", {}, breakable(run.facts[label] ?? "–"))),
    ),
  );
  const inAll = shared.flatMap((label) => [element("span", { className: "muted" }, `${label} `), ...breakable(report.runs[0].facts[label]), " · "]);
  const content = box.querySelector("div");
  if (shared.length) content.append(element("p", { className: "shared" }, element("strong", {}, "in all runs: "), inAll.slice(0, -1)));
  content.append(element("table", {}, element("thead", {}, head), element("tbody", {}, rows)));
  box.hidden = !labels.length && report.runs.length < 2;
  // Texts between backticks are code.
  const marked = (text) => text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
  const notes = [...report.notes, ...report.runs.flatMap((run) => run.notes.map((note) => `${run.name}: ${note}`))];
  document.getElementById("notes").append(...notes.map((note) => element("p", { className: "note" }, marked(note))));
}
