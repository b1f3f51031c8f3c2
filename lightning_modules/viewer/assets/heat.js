"use strict";
// Colors of the heat map: blue below, orange above, nothing at the neutral value; they differ in lightness too.

const SCALES = {
  light: { neutral: [255, 255, 255], low: [33, 102, 172], high: [205, 92, 8] },
  dark: { neutral: [27, 31, 39], low: [92, 172, 255], high: [255, 150, 66] },
};

const isDark = () => document.documentElement.dataset.theme === "dark";

// The number of tokens of a record that have a number, which tokens that are not trained lack: an equal share is 1 / this.
function countOf(values, start, length) {
  let count = 0;
  for (let at = start; at < start + length; at++) if (!Number.isNaN(values[at])) count++;
  return count;
}

// What the color of a number shows. Shares of 0 and below are at the lower end of a scale of logarithms.
function sizeOf(quantity, value, count) {
  if (quantity.scale !== "share" || Number.isNaN(value)) return value;
  return value > 0 ? Math.log2(value * count) : -Infinity;
}

// Position on the scale, from -1 to 1; values beyond the bound are at its end.
function place(quantity, value, count, bound) {
  if (Number.isNaN(value)) return NaN;
  if (quantity.scale === "sides") return Math.sign(value);
  return Math.max(-1, Math.min(1, sizeOf(quantity, value, count) / bound));
}

function colorAt(position) {
  const { neutral, low, high } = SCALES[isDark() ? "dark" : "light"];
  const end = position < 0 ? low : high;
  const share = Math.abs(position);
  return neutral.map((value, channel) => Math.round(value + (end[channel] - value) * share));
}

const css = (rgb) => `rgb(${rgb.join(", ")})`;

function luminance(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// Black or white, whichever is easier to read.
const inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

// The bound of a scale: the 99th percentile of the sizes, so that a few extremes leave the others visible.
function boundOf(quantity, values, lengths, starts, records) {
  if (quantity.scale === "sides") return 1;
  const sizes = [];
  for (const record of records) {
    const length = lengths[record];
    const count = countOf(values, starts[record], length);
    for (let at = starts[record]; at < starts[record] + length; at++) {
      const size = Math.abs(sizeOf(quantity, values[at], count));
      if (Number.isFinite(size)) sizes.push(size);
    }
  }
  if (!sizes.length) return 1;
  const sorted = Float64Array.from(sizes).sort();
  const percentile = sorted[Math.ceil(sorted.length * 0.99) - 1];
  return percentile || sorted[sorted.length - 1] || 1;
}

// Labels of the legend from the lower to the upper end.
function legendLabels(quantity, bound) {
  if (quantity.scale === "sides") return ["clipped, advantage below 0", "not clipped", "clipped, advantage above 0"];
  if (quantity.scale === "share") {
    const factor = 2 ** bound;
    return [`≤ ${short(1 / factor, 3)} ×`, "equal share", `≥ ${short(factor, 3)} ×`];
  }
  return [`≤ ${short(-bound, 3)}`, "0", `≥ ${short(bound, 3)}`];
}

// Words, symbol and unit.
const titleOf = ({ label, symbol, unit }) => label + (symbol ? `, ${symbol}` : "") + (unit ? ` (${unit})` : "");

function legend(quantity, bound, marks) {
  const stops = [-1, -0.5, 0, 0.5, 1].map((position) => css(colorAt(position)));
  const labels = legendLabels(quantity, bound);
  const bar = element("div", { className: "bar" });
  bar.style.background =
    quantity.scale === "sides"
      ? `linear-gradient(to right, ${stops[0]} 33.3%, ${stops[2]} 33.3% 66.6%, ${stops[4]} 66.6%)`
      : `linear-gradient(to right, ${stops.join(", ")})`;
  const signs = [
    marks.clipped && element("span", {}, element("span", { className: "token clipped" }, "abc"), " clipped"),
    marks.overflow && element("span", {}, element("span", { className: "token overflow" }, "abc"), " beyond the bound of 20"),
    marks.untrained && element("span", {}, element("span", { className: "token untrained" }, "abc"), " not trained"),
    marks.missing && element("span", {}, element("span", { className: "token missing" }, "abc"), " no number"),
  ].filter(Boolean);
  return element(
    "div",
    { className: `legend scale-${quantity.scale}` },
    element(
      "div",
      { className: "ramp" },
      element("div", { className: "legend-title" }, titleOf(quantity)),
      bar,
      element("div", { className: "ends" }, labels.map((label) => element("span", {}, label))),
    ),
    element("div", { className: "signs" }, signs),
  );
}

// White space of a token, made visible; a line break is kept.
const visible = (text) => text.replace(/ /g, "·").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/\n/g, "⏎\n") || "∅";
