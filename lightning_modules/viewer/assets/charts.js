"use strict";
// Metrics as small multiples: one line per run, or per group of runs that differ in their seed only.

const CHART = { height: 172, top: 10, right: 12, bottom: 34 };
const OTHER = "Other metrics";
const MOST_OTHERS = 12; // metrics without a description whose charts are shown at once
const MOST_POINTS = 400; // of a line; more are thinned to the extremes of each interval

function showMetrics(report, view) {
  const state = { band: "range", filter: "", window: 1 };
  const described = new Map(report.metrics.map((metric) => [metric.name, metric]));
  const names = new Set(report.runs.flatMap((run) => Object.keys(run.metrics)));
  const other = (name) => ({ name, section: OTHER, symbol: "", unit: "", expect: "", logarithmic: false });
  const metrics = [
    ...report.metrics.filter((metric) => names.has(metric.name)),
    ...[...names].filter((name) => !described.has(name)).sort().map(other),
  ];
  const sections = new Map();
  for (const metric of metrics) {
    if (!sections.has(metric.section)) sections.set(metric.section, []);
    sections.get(metric.section).push(metric);
  }
  state.closed = new Set([OTHER].filter((title) => (sections.get(title) ?? []).length > MOST_OTHERS));
  const filter = element("input", { type: "search", placeholder: "find a metric", className: "metric-filter" });
  filter.setAttribute("aria-label", "Find a metric");
  const body = element("div", { className: "sections" });
  const windows = [1, 10, 50].map((size) => element("option", { value: size }, size === 1 ? "every step" : `mean of ${size} values`));
  const smoothing = element("select", { attributes: { "aria-label": "Smoothing of the lines" } }, windows);
  const bar = element("div", { className: "toolbar sticky" }, filter, smoothing, cohortLegend(report, state, render));
  view.append(bar, body);
  filter.addEventListener("input", () => {
    state.filter = filter.value.trim().toLowerCase();
    render();
  });

  smoothing.addEventListener("change", () => {
    state.window = Number(smoothing.value);
    render();
  });

  function render() {
    hideTip();
    body.replaceChildren();
    const pending = [];
    for (const [title, members] of sections) {
      const shown = members.filter((metric) => metric.name.toLowerCase().includes(state.filter));
      if (!shown.length) continue;
      const grid = element("div", { className: "grid" });
      const isOpen = state.filter !== "" || !state.closed.has(title);
      const count = element("span", { className: "muted" }, ` ${counted(shown.length, "metric")}`);
      const section = element("details", { className: "section", open: isOpen }, element("summary", {}, element("h2", {}, title, count)), grid);
      body.append(section);
      section.addEventListener("toggle", () => {
        if (section.open === isOpen) return;
        state.closed[section.open ? "delete" : "add"](title);
        render();
      });
      if (!isOpen) continue;
      for (const metric of shown) {
        const place = element("div", { className: "plot" });
        grid.append(
          element(
            "article",
            { className: "card" },
            element("h3", {}, breakable(metric.name)),
            metric.expect ? element("p", { className: "expect" }, metric.expect) : null,
            place,
          ),
        );
        pending.push([place, metric]);
      }
    }
    if (!body.childElementCount) body.append(element("p", { className: "loading" }, "No metric has this in its name."));
    const widths = pending.map(([place]) => place.clientWidth); // read before anything is written
    pending.forEach(([place, metric], index) => place.append(chart(report, metric, widths[index], state)));
  }

  let width = 0;
  new ResizeObserver(() => {
    if (view.clientWidth && view.clientWidth !== width) {
      width = view.clientWidth;
      render();
    }
  }).observe(view);
  return { render };
}

function cohortLegend(report, state, render) {
  const banded = report.cohorts.some((cohort) => cohort.runs.length > 1);
  const entries = report.cohorts.map((cohort) => {
    const seeds = cohort.runs.map((run) => run.seed).filter(Boolean);
    const many = cohort.runs.length > 1;
    const name = many ? sharedName(cohort.runs.map((run) => run.name)) : cohort.name;
    return element(
      "span",
      { className: "entry", title: cohort.name },
      lineSample(cohort.number),
      element("span", { className: "entry-name" }, name),
      many ? element("span", { className: "muted" }, `mean of ${cohort.runs.length} seeds${seeds.length ? ` (${seeds.join(", ")})` : ""}`) : null,
    );
  });
  const select = element(
    "select",
    { attributes: { "aria-label": "Band around the mean of seeds" } },
    element("option", { value: "range" }, "band: min to max of the seeds"),
    element("option", { value: "error" }, "band: ± 1 standard error"),
  );
  select.addEventListener("change", () => {
    state.band = select.value;
    render();
  });
  return element("div", { className: "cohorts" }, entries, banded ? select : null);
}

// The words and numbers that the names of runs have in common at their start, or the first name.
function sharedName(names) {
  let end = 0;
  while (end < names[0].length && names.every((name) => name[end] === names[0][end])) end++;
  let shared = names[0].slice(0, end);
  // A part of a number or of a word would be another name.
  for (const [inside, part] of [[/\d/, /[\d.]+$/], [/\p{L}/u, /\p{L}+$/u]]) {
    if (names.some((name) => inside.test(name[end] ?? ""))) shared = shared.replace(part, "");
  }
  shared = shared.replace(/[\s_./-]*(seed)?[\s_./-]*$/i, "");
  return shared || `${names[0]}, ...`;
}

// Eight colors and four kinds of dashes, so that 32 lines are told apart.
const styleOf = (number) => `cohort-${number % 8} dash-${(number + Math.floor(number / 8)) % 4}`;

function lineSample(number) {
  const line = svgElement("line", { x1: 1, x2: 27, y1: 6, y2: 6, class: `line ${styleOf(number)}` });
  return svgElement("svg", { width: 28, height: 12, class: "sample" }, line);
}

// Step, mean, lower and upper end for each step at which a run of the cohort has a value.
function seriesOf(cohort, name, state) {
  const points = new Map();
  for (const run of cohort.runs) {
    const values = run.metrics[name];
    if (!values) continue;
    values.forEach((value, index) => {
      if (!Number.isFinite(value)) return;
      const step = run.steps[index];
      if (!points.has(step)) points.set(step, []);
      points.get(step).push(value);
    });
  }
  return [...points.entries()]
    .sort((a, b) => a[0] - b[0])
    .map(([step, values]) => {
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      if (state.band === "range") return { step, mean, low: Math.min(...values), high: Math.max(...values), count: values.length };
      const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(values.length - 1, 1);
      const error = Math.sqrt(variance / values.length);
      return { step, mean, low: mean - error, high: mean + error, count: values.length };
    });
}

// Means of the last values up to each step; the first ones are means of fewer.
function smoothed(points, size) {
  if (size === 1) return points;
  return points.map((point, index) => {
    const last = points.slice(Math.max(0, index - size + 1), index + 1);
    const mean = (name) => last.reduce((sum, each) => sum + each[name], 0) / last.length;
    return { ...point, mean: mean("mean"), low: mean("low"), high: mean("high") };
  });
}

// At most MOST_POINTS points, with the smallest and the largest mean of each interval.
function thinned(points) {
  if (points.length <= MOST_POINTS) return points;
  const size = Math.ceil((points.length * 2) / MOST_POINTS);
  const kept = [];
  for (let at = 0; at < points.length; at += size) {
    const part = points.slice(at, at + size);
    const low = part.reduce((best, point) => (point.mean < best.mean ? point : best));
    const high = part.reduce((best, point) => (point.mean > best.mean ? point : best));
    kept.push(...(low === high ? [low] : low.step < high.step ? [low, high] : [high, low]));
  }
  return kept;
}

function chart(report, metric, width, state) {
  const lines = report.cohorts
    .map((cohort) => ({ cohort, points: smoothed(seriesOf(cohort, metric.name, state), state.window) }))
    .filter((line) => line.points.length);
  const { height, top, right, bottom } = CHART;
  if (!lines.length) return element("p", { className: "muted none" }, "no values");
  const all = lines.flatMap((line) => line.points);
  const steps = all.reduce(([low, high], { step }) => [Math.min(low, step), Math.max(high, step)], [Infinity, -Infinity]);
  const y = verticalScale(all, metric.logarithmic);
  const labels = y.ticks.map((tick) => tickLabel(tick, y.ticks));
  const left = 24 + Math.max(...labels.map((label) => label.length)) * 6.2;
  const span = steps[1] - steps[0] || 1;
  const toX = (step) => (steps[0] === steps[1] ? (left + width - right) / 2 : left + ((step - steps[0]) / span) * (width - left - right));
  const toY = (value) => top + (1 - y.share(value)) * (height - top - bottom);
  const svg = svgElement("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "data-metric": metric.name });
  svg.append(svgElement("title", {}, `${metric.name} against optimizer step`));
  y.ticks.forEach((tick, index) => {
    svg.append(
      svgElement("line", { x1: left, x2: width - right, y1: toY(tick), y2: toY(tick), class: "rule" }),
      svgElement("text", { x: left - 5, y: toY(tick) + 3.5, class: "tick", "text-anchor": "end" }, labels[index]),
    );
  });
  for (const tick of stepTicks(steps, width)) {
    const label = tick.toLocaleString("en-US");
    const half = label.length * 3.2;
    const x = Math.min(Math.max(toX(tick), left - 8 + half), width - half);
    svg.append(svgElement("text", { x, y: height - bottom + 14, class: "tick", "text-anchor": "middle" }, label));
  }
  const middle = top + (height - top - bottom) / 2;
  const unit = [metric.symbol, metric.unit && `(${metric.unit})`].filter(Boolean).join(" ") || lastName(metric.name);
  svg.append(
    svgElement("text", { x: (left + width - right) / 2, y: height - 4, class: "axis", "text-anchor": "middle" }, "optimizer step"),
    svgElement("text", { x: 11, y: middle, class: "axis", "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, unit),
  );
  for (const { cohort, points } of lines) svg.append(...lineShapes(cohort, thinned(points), toX, toY));
  hoverable(svg, lines, { toX, toY, left, width, right, top, height, bottom });
  return svg;
}

// The last part of a name, where it fits the axis.
function lastName(name) {
  const last = name.split("/").pop();
  return last.length <= 18 ? last : "value";
}

function lineShapes(cohort, points, toX, toY) {
  const classes = styleOf(cohort.number);
  const shapes = [];
  const at = (point, value) => `${toX(point.step).toFixed(1)},${toY(value).toFixed(1)}`;
  if (cohort.runs.length > 1) {
    const edge = [...points.map((point) => at(point, point.high)), ...points.map((point) => at(point, point.low)).reverse()];
    shapes.push(svgElement("polygon", { points: edge.join(" "), class: `band ${classes}` }));
  }
  shapes.push(svgElement("polyline", { points: points.map((point) => at(point, point.mean)).join(" "), class: `line ${classes}` }));
  if (points.length <= 12) {
    shapes.push(...points.map((point) => svgElement("circle", { cx: toX(point.step), cy: toY(point.mean), r: 2.6, class: `dot ${classes}` })));
  }
  return shapes;
}

// Ticks, and the share of the height for a value. A logarithmic axis has 0, and what is below it, at its lower end; values
// above 0 that lie within 2 % have a linear axis, which contains all values.
function verticalScale(points, logarithmic) {
  let low = points.reduce((least, point) => Math.min(least, point.low), Infinity);
  let high = points.reduce((most, point) => Math.max(most, point.high), -Infinity);
  const least = low > 0 ? low : points.reduce((smallest, { mean }) => (mean > 0 ? Math.min(smallest, mean) : smallest), high);
  if (logarithmic && least > 0 && high / least > 1.02) {
    const ticks = logTicksBetween(least, high, 5);
    const [bottom, topmost] = [Math.min(least, ticks[0]), Math.max(high, ticks.at(-1))].map(Math.log);
    return { ticks, share: (value) => (value > 0 ? Math.max(0, (Math.log(value) - bottom) / (topmost - bottom)) : 0) };
  }
  if (low === high) [low, high] = low === 0 ? [0, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * high)];
  // From a tick below all values to a tick above them.
  const step = tickStep(low, high, 4);
  low = Math.floor(low / step + 2e-3) * step;
  high = Math.ceil(high / step - 2e-3) * step;
  return { ticks: ticksBetween(low, high, (high - low) / step), share: (value) => (value - low) / (high - low) };
}

// All ticks of an axis with the same number of decimals.
function tickLabel(tick, ticks) {
  const largest = Math.max(...ticks.map(Math.abs));
  if (tick === 0) return "0";
  if (largest >= 1e5 || largest < 1e-3) return short(tick, 3);
  const decimals = Math.max(...ticks.map((each) => (String(each).split(".")[1] ?? "").length));
  if (decimals > 4) return short(tick, 3);
  return signed(tick.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }));
}

function stepTicks([first, last], width) {
  if (first === last) return [first];
  return ticksBetween(first, last, Math.max(2, Math.floor(width / 62))).filter(Number.isInteger);
}

// The values nearest to the pointer, in the tooltip.
function hoverable(svg, lines, box) {
  const cursor = svgElement("line", { y1: box.top, y2: box.height - box.bottom, class: "cursor", visibility: "hidden" });
  svg.append(cursor);
  const steps = [...new Set(lines.flatMap((line) => line.points.map((point) => point.step)))].sort((a, b) => a - b);
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    const step = steps.reduce((best, each) => (Math.abs(box.toX(each) - x) < Math.abs(box.toX(best) - x) ? each : best));
    cursor.setAttribute("x1", box.toX(step));
    cursor.setAttribute("x2", box.toX(step));
    cursor.setAttribute("visibility", "visible");
    const rows = lines.flatMap(({ cohort, points }) => {
      const point = points.find((each) => each.step === step);
      if (!point) return [];
      const band = cohort.runs.length > 1 ? ` (${short(point.low)} to ${short(point.high)}, ${counted(point.count, "seed")})` : "";
      return [[element("span", {}, swatch(cohort.number), cohort.runs.length > 1 ? sharedName(cohort.runs.map((run) => run.name)) : cohort.name), short(point.mean) + band]];
    });
    showTip(event, element("strong", {}, `step ${step.toLocaleString("en-US")}`), pairs(rows));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  });
}
