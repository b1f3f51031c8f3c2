"use strict";
// Elements, numbers and the tooltip.

const SVG = "http://www.w3.org/2000/svg";

// An element with properties, attributes (in `attributes`), styles and children; texts are never read as HTML.
function element(tag, properties = {}, ...children) {
  const { attributes = {}, style = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const signed = (text) => text.replace(/-/g, "−");

// A number with at most four significant digits; an integer with all of them, because those are exact.
function short(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) {
    return signed(value.toExponential(digits - 2).replace(/\.?0+e/, "e").replace("e+", "e"));
  }
  if (Number.isInteger(value)) return signed(value.toLocaleString("en-US"));
  const rounded = Number(value.toPrecision(digits));
  return signed(Number.isInteger(rounded) ? rounded.toLocaleString("en-US") : rounded.toString());
}

const counted = (number, noun) => `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;

function tickStep(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
}

// Round numbers from low to high, about `count` of them.
function ticksBetween(low, high, count) {
  const step = tickStep(low, high, count);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
    ticks.push(Number((index * step).toPrecision(12)));
  }
  return ticks;
}

// Ticks of a logarithmic axis, from one below to one above: powers of ten or, within a decade or two, round numbers.
function logTicksBetween(low, high, count) {
  if (high / low < 30) {
    const step = tickStep(low, high, count - 1);
    const ticks = ticksBetween(Math.floor(low / step + 2e-3) * step, Math.ceil(high / step - 2e-3) * step, count - 1);
    return ticks.filter((tick) => tick > 0);
  }
  const [first, last] = [Math.floor(Math.log10(low) + 2e-3), Math.ceil(Math.log10(high) - 2e-3)];
  const stride = Math.ceil((last - first) / count);
  const ticks = [];
  for (let power = first; power < last + stride; power += stride) ticks.push(Number(`1e${power}`));
  return ticks;
}

// The tooltip, near the pointer and within the window.
function showTip(event, ...content) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const room = document.documentElement;
  const left = event.clientX + 14 + width > room.clientWidth ? event.clientX - width - 14 : event.clientX + 14;
  const top = event.clientY + 16 + height > room.clientHeight ? event.clientY - height - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// Rows of names and numbers.
function pairs(rows) {
  return element(
    "dl",
    { className: "pairs" },
    rows.map(([name, value, classes]) => [
      element("dt", { className: classes ?? "" }, name),
      element("dd", {}, value),
    ]).flat(),
  );
}
