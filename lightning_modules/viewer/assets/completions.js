"use strict";
// The list of completions with its filters, and the completion that is open.

const ROW = 54; // pixels
const PLACE = ["run", "step", "group", "sample"];

function showCompletions(report, view) {
  const { completions } = report;
  const state = { chosen: -1, quantity: "", record: 0, range: "page" };
  const shown = report.quantities.filter((quantity) => quantity.scale !== "hidden");
  state.quantity = shown[0]?.name ?? "";
  const bounds = new Map(); // of the whole page, by quantity
  const list = element("div", { className: "list", tabIndex: 0, attributes: { role: "listbox", "aria-label": "Completions" } });
  const spacer = element("div", { className: "spacer" });
  const count = element("output", { className: "count" });
  const detail = element("section", { className: "detail", attributes: { "aria-live": "polite" } });
  const { controls, values, reset } = filters(report);
  const linked = new URLSearchParams(location.hash.split("&").slice(1).join("&")); // of an address like #completions&step=5
  list.append(spacer);
  view.append(element("aside", { className: "side" }, controls, element("div", { className: "list-head" }, count, reset), list), detail);
  let order = [];

  function apply() {
    order = selected(report, values());
    count.textContent = `${order.length.toLocaleString("en-US")} of ${counted(completions.count, "completion")}`;
    spacer.style.height = `${order.length * ROW}px`;
    list.scrollTop = 0;
    rows();
    if (!order.includes(state.chosen)) choose(order.find((index) => report.records.has(index)) ?? order[0] ?? -1);
  }

  // Only the rows in sight exist.
  function rows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(order.length, first + Math.ceil(list.clientHeight / ROW) + 9);
    const made = [];
    for (let at = first; at < last; at++) made.push(row(report, order[at], at, order[at] === state.chosen));
    spacer.replaceChildren(...made);
  }

  function choose(index) {
    state.chosen = index;
    state.record = (report.records.get(index) ?? []).length - 1;
    rows();
    open();
  }

  function open() {
    hideTip();
    history.replaceState(null, "", `#completions${address()}`);
    detail.replaceChildren(...(state.chosen < 0 ? [element("p", { className: "loading" }, "No completion passes the filters.")] : opened()));
    detail.scrollTop = 0;
  }

  // The completion that is open, so that a link leads back to it.
  function address() {
    if (state.chosen < 0) return "";
    const place = PLACE.map((name) => [name, completions[name][state.chosen]]);
    return `&${new URLSearchParams([...place, ["show", state.quantity]])}`;
  }

  function opened() {
    const records = report.records.get(state.chosen) ?? [];
    const parts = [heading(report, state.chosen), promptBox(report, state.chosen, findPrompt)];
    if (!records.length || !shown.length) return [...parts, plainText(report, state.chosen), factsTable(report, state.chosen, -1)];
    const record = records[Math.min(state.record, records.length - 1)];
    const quantity = shown.find((each) => each.name === state.quantity);
    if (!bounds.has(quantity.name)) bounds.set(quantity.name, pageBound(report, quantity));
    const bound = state.range === "page" ? bounds.get(quantity.name) : recordBound(report, quantity, record);
    return [...parts, toolbar(records, quantity), ...heatMap(report, record, quantity, bound), factsTable(report, state.chosen, record)];
  }

  function findPrompt(text) {
    controls.reset();
    controls.elements.text.value = text;
    apply();
  }

  function toolbar(records, quantity) {
    const buttons = shown.map((each) => {
      const button = element("button", { type: "button", title: each.meaning }, each.label);
      button.setAttribute("aria-pressed", each === quantity);
      button.addEventListener("click", () => change({ quantity: each.name }));
      return button;
    });
    const range = select("color range", [["page", "whole page"], ["completion", "this completion"]], state.range, (value) => change({ range: value }));
    const steps = records.map((record, number) => [String(number), `step ${report.tokens.step[record]}`]);
    const step =
      records.length > 1
        ? select("optimizer", steps, String(state.record), (value) => change({ record: Number(value) }))
        : element("span", { className: "muted" }, `optimizer step ${report.tokens.step[records[0]]}`);
    return element("div", { className: "toolbar" }, element("div", { className: "segments", attributes: { role: "group", "aria-label": "Heat map of" } }, buttons), step, range);
  }

  function change(changes) {
    const at = detail.scrollTop;
    Object.assign(state, changes);
    open();
    detail.scrollTop = at;
  }

  list.addEventListener("scroll", () => requestAnimationFrame(rows), { passive: true });
  list.addEventListener("click", (event) => {
    const target = event.target.closest(".row");
    if (target) choose(Number(target.dataset.index));
  });
  list.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (!move || !order.length) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(order.length - 1, order.indexOf(state.chosen) + move));
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
    choose(order[at]);
  });
  controls.addEventListener("input", apply);
  controls.addEventListener("submit", (event) => event.preventDefault());
  reset.addEventListener("click", () => {
    controls.reset();
    apply();
  });
  new ResizeObserver(rows).observe(list);
  if (shown.some(({ name }) => name === linked.get("show"))) state.quantity = linked.get("show");
  if (linked.has("step")) {
    const isLinked = (index) => PLACE.every((name) => !linked.has(name) || completions[name][index] === Number(linked.get(name)));
    state.chosen = [...completions.run.keys()].find(isLinked) ?? -1;
  }
  apply();
  if (state.chosen >= 0) {
    list.scrollTop = order.indexOf(state.chosen) * ROW - list.clientHeight / 3;
    choose(state.chosen);
  }
  return { render: open };
}

function select(label, options, value, changed) {
  const made = element("select", {}, options.map(([key, text]) => element("option", { value: key }, text)));
  made.value = value;
  made.addEventListener("change", () => changed(made.value));
  return element("label", { className: "labeled" }, element("span", {}, label), made);
}

function filters(report) {
  const field = (label, name, properties = {}) => {
    const input = element("input", { name, autocomplete: "off", ...properties });
    return element("label", { className: `labeled field-${name}` }, element("span", {}, label), input);
  };
  const number = (label, name, step = "1") => {
    const made = field(label, name, { type: "number" });
    made.querySelector("input").step = step;
    return made;
  };
  const choices = (label, name, options) => {
    const made = element("select", { name }, options.map(([key, text]) => element("option", { value: key }, text)));
    return element("label", { className: `labeled field-${name}` }, element("span", {}, label), made);
  };
  const runs = [["", "all runs"], ...report.runs.map((run, index) => [String(index), run.name])];
  const sorts = [["order", "step and group"], ["reward", "highest reward"], ["-reward", "lowest reward"], ["length", "longest"], ["-length", "shortest"], ["advantage", "highest advantage"], ["-advantage", "lowest advantage"]];
  const controls = element(
    "form",
    { className: "filters" },
    field("text", "text", { type: "search", placeholder: "prompt or completion" }),
    choices("sort by", "sort", sorts),
    report.runs.length > 1 ? choices("run", "run", runs) : null,
    number("step ≥", "stepFrom"),
    number("step ≤", "stepTo"),
    number("group", "group"),
    number("reward ≥", "rewardFrom", "any"),
    number("reward ≤", "rewardTo", "any"),
    report.records.size && report.records.size < report.completions.count
      ? element("label", { className: "check" }, element("input", { type: "checkbox", name: "tokens" }), " with token numbers only")
      : null,
  );
  const reset = element("button", { type: "button", className: "quiet" }, "clear filters");
  const values = () => {
    const data = new FormData(controls);
    const given = (name) => (data.get(name) === "" || data.get(name) === null ? null : Number(data.get(name)));
    return {
      text: searchable(data.get("text") ?? ""),
      run: given("run"),
      step: [given("stepFrom"), given("stepTo")],
      group: given("group"),
      reward: [given("rewardFrom"), given("rewardTo")],
      sort: data.get("sort"),
      tokens: data.get("tokens") === "on",
    };
  };
  return { controls, values, reset };
}

// Without case and line breaks, which a text field of one line takes out of what is put into it.
const searchable = (text) => text.toLowerCase().replace(/[\r\n]/g, "");

// Indices of the completions that pass the filters, in their order.
function selected(report, { text, run, step, group, reward, sort, tokens }) {
  const { completions } = report;
  const within = ([low, high], value) => (low === null || value >= low) && (high === null || value <= high);
  const byReward = reward.some((end) => end !== null);
  const prompts = text ? completions.prompts.map((prompt) => searchable(prompt).includes(text)) : [];
  const found = [];
  for (let index = 0; index < completions.count; index++) {
    if (run !== null && completions.run[index] !== run) continue;
    if (!within(step, completions.step[index])) continue;
    if (group !== null && completions.group[index] !== group) continue;
    if (byReward && !within(reward, rounded(completions.reward[index]))) continue;
    if (tokens && !report.records.has(index)) continue;
    if (text && !prompts[completions.prompt[index]] && !searchable(completions.text[index]).includes(text)) continue;
    found.push(index);
  }
  if (sort === "order") return found;
  const values = completions[sort.replace("-", "")];
  const sign = sort.startsWith("-") ? 1 : -1;
  const key = (index) => (Number.isNaN(values[index]) || (values === completions.length && values[index] < 0) ? Infinity : sign * values[index]);
  return found.sort((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)));
}

// As it is shown, so that a filter from 0.7 finds a reward of 0.7.
const rounded = (value) => Number(value.toPrecision(4));

function row(report, index, at, chosen) {
  const { completions } = report;
  const made = element(
    "div",
    { className: `row cohort-${report.runs[completions.run[index]].cohortNumber % 8}`, style: { top: `${at * ROW}px` } },
    element(
      "div",
      { className: "row-head" },
      element("span", {}, `step ${completions.step[index]} · group ${completions.group[index]} · sample ${completions.sample[index]}`),
      report.records.has(index) ? element("span", { className: "has-tokens", title: "has token numbers" }, "▦") : null,
      element("span", { className: "reward" }, Number.isNaN(completions.reward[index]) ? "no reward" : short(completions.reward[index])),
    ),
    element("div", { className: "row-text" }, completions.text[index].slice(0, 200).replace(/\s+/g, " ") || "(empty)"),
  );
  made.dataset.index = index;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", chosen);
  return made;
}

function heading(report, index) {
  const { completions } = report;
  const run = report.runs[completions.run[index]];
  // The header has the arguments of model and data.
  const named = { objective: (text) => text, model: nameOf, data: nameOf, seed: (text) => text };
  const about = Object.keys(named).filter((label) => run.facts[label]).map((label) => `${label} ${named[label](run.facts[label])}`);
  const chips = [
    ["reward", completions.reward[index]],
    ["advantage", completions.advantage[index]],
    ["length", completions.length[index] < 0 ? NaN : completions.length[index]],
  ].map(([name, value]) => element("span", { className: "chip" }, element("span", { className: "muted" }, name), ` ${short(value)}${name === "length" ? " tokens" : ""}`));
  return element(
    "div",
    { className: "heading" },
    element("h2", {}, swatch(run.cohortNumber), `${run.name}, step ${completions.step[index]}, group ${completions.group[index]}, sample ${completions.sample[index]}`, element("span", { className: "chips" }, chips)),
    about.length ? element("p", { className: "about" }, about.join(" · ")) : null,
  );
}

const nameOf = (text) => text.replace(/\(.*$/s, "");

function promptBox(report, index, find) {
  const text = report.completions.prompts[report.completions.prompt[index]];
  const button = element("button", { type: "button", className: "quiet", title: "List all completions of this prompt, in all runs and steps" }, "find all of its completions");
  button.addEventListener("click", () => find(text));
  return element("div", { className: "prompt" }, element("div", { className: "prompt-head" }, element("span", { className: "muted" }, "prompt"), button), element("pre", {}, text));
}

function plainText(report, index) {
  const hint = report.records.size ? "This completion has no token numbers: they are kept of some optimizer steps only, and of completions that have a gradient." : "";
  const text = element("pre", { className: "text" }, report.completions.text[index] || "(empty)");
  return element("div", {}, text, hint ? element("p", { className: "muted" }, hint) : null);
}

const recordBound = (report, quantity, record) =>
  boundOf(quantity, report.tokens.values[quantity.name] ?? [], report.tokens.length, report.tokens.start, [record]);

const pageBound = (report, quantity) =>
  boundOf(quantity, report.tokens.values[quantity.name] ?? [], report.tokens.length, report.tokens.start, report.tokens.length.keys());

// Legend, tokens, and the same numbers against the position.
function heatMap(report, record, quantity, bound) {
  const { tokens } = report;
  const [start, length] = [tokens.start[record], tokens.length[record]];
  const numbers = tokens.values[quantity.name];
  const count = countOf(numbers ?? [], start, length);
  const flags = (name) => tokens.marks[name];
  const seen = {};
  const map = element("div", { className: "heat", attributes: { "data-quantity": quantity.name, "data-bound": bound } });
  const positions = [];
  for (let at = start; at < start + length; at++) {
    const value = numbers ? numbers[at] : NaN;
    const position = place(quantity, value, count, bound);
    const marks = ["clipped", "overflow", "untrained"].filter((name) => flags(name === "clipped" ? quantity.mark : name)?.[at]);
    if (Number.isNaN(position)) marks.push("missing");
    marks.forEach((name) => (seen[name] = true));
    const color = Number.isNaN(position) ? null : colorAt(position);
    const token = element("span", { className: ["token", ...marks].join(" ") }, visible(tokens.vocabulary[tokens.text[at]]));
    if (color) {
      token.style.backgroundColor = css(color);
      token.style.color = inkOn(color);
    }
    token.dataset.at = at - start;
    map.append(token);
    positions.push({ position, value, color, marks });
  }
  const plot = positionPlot(quantity, positions, bound);
  const pointed = (event) => {
    const target = event.target.closest("[data-at]");
    for (const old of document.querySelectorAll(".pointed")) old.classList.remove("pointed");
    if (!target) return hideTip();
    for (const same of [map, plot]) same.querySelector(`[data-at="${target.dataset.at}"]`)?.classList.add("pointed");
    showTip(event, ...tokenNumbers(report, record, Number(target.dataset.at)));
  };
  for (const part of [map, plot]) {
    part.addEventListener("pointermove", pointed);
    part.addEventListener("pointerleave", (event) => pointed({ ...event, target: document.body }));
  }
  const table = tokenTable(report, record);
  const meaning = quantity.meaning ? element("p", { className: "muted meaning" }, quantity.meaning) : null;
  return [legend(quantity, bound, seen), meaning, map, plot, table].filter(Boolean);
}

// All numbers of all tokens, to read without a pointer and to copy; made when it is opened.
function tokenTable(report, record) {
  const { tokens } = report;
  const quantities = report.quantities.filter(({ name, scale }) => tokens.values[name] && scale !== "sides");
  const marks = Object.keys(tokens.marks);
  const content = element("div", { className: "scroll" });
  const box = element("details", { className: "numbers" }, element("summary", {}, "numbers of all tokens"), content);
  const cells = (position) => {
    const at = tokens.start[record] + position;
    const token = element("code", {}, visible(tokens.vocabulary[tokens.text[at]]).trim());
    const numbers = quantities.map(({ name }) => element("td", { className: "number" }, short(tokens.values[name][at])));
    const marked = marks.filter((name) => tokens.marks[name][at]).join(", ");
    return element("tr", {}, element("td", { className: "number" }, String(position + 1)), element("td", {}, token), numbers, element("td", {}, marked));
  };
  box.addEventListener("toggle", () => {
    if (!box.open || content.childElementCount) return;
    const head = ["position", "token", ...quantities.map(titleOf), "marks"].map((title, index) => element("th", { className: index === 1 || index > quantities.length + 1 ? "" : "number" }, title));
    const rows = Array.from({ length: tokens.length[record] }, (_, position) => cells(position));
    content.append(element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)));
  });
  return box;
}

// Bars of the same colors by position, of height |position| on the scale.
function positionPlot(quantity, positions, bound) {
  const width = 900;
  const [left, right, top, height, bottom] = [64, 8, 8, 92, 46];
  const middle = top + (height - top) / 2;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height + bottom}`, class: "positions", role: "img" });
  svg.append(svgElement("title", {}, `${quantity.label} against the position of the token`));
  const step = (width - left - right) / Math.max(positions.length, 1);
  const ends = legendLabels(quantity, bound).map((label) => label.replace(/^[≤≥] /, ""));
  const ticks = quantity.scale === "sides" ? ["below 0", "", "above 0"] : quantity.scale === "share" ? [ends[0], "equal", ends[2]] : ends;
  [height, middle, top].forEach((y, index) => {
    svg.append(svgElement("line", { x1: left, x2: width - right, y1: y, y2: y, class: index === 1 ? "zero" : "rule" }));
    svg.append(svgElement("text", { x: left - 6, y: y + 4, class: "tick", "text-anchor": "end" }, ticks[index]));
  });
  positions.forEach(({ position, color, marks }, at) => {
    const size = Number.isNaN(position) ? 0 : (Math.abs(position) * (height - top)) / 2;
    const y = position > 0 ? middle - size : middle;
    const group = svgElement("g", { "data-at": at });
    group.append(
      svgElement("rect", { x: left + at * step, y: top, width: step, height: height - top, class: "target" }),
      svgElement("rect", { x: left + at * step + step * 0.08, y, width: step * 0.84, height: size, class: "bar", fill: color ? css(color) : "none" }),
    );
    if (marks.includes("clipped")) {
      const x = left + (at + 0.5) * step;
      const half = Math.min(4, Math.max(1.5, step / 2));
      group.append(svgElement("path", { d: `M${x - half},${height + 8}L${x},${height + 2}L${x + half},${height + 8}Z`, class: "clip-sign" }));
    }
    svg.append(group);
  });
  const within = (x, text) => Math.min(x, width - text.length * 3.4);
  const label = (at) => svgElement("text", { x: within(left + (at + 0.5) * step, String(at + 1)), y: height + 22, class: "tick", "text-anchor": "middle" }, String(at + 1));
  const ticksAt = positions.length > 1 ? ticksBetween(1, positions.length, 12).filter(Number.isInteger).map((tick) => Math.max(tick, 1) - 1) : [0];
  svg.append(...ticksAt.map(label));
  svg.append(svgElement("text", { x: (left + width - right) / 2, y: height + 41, class: "axis", "text-anchor": "middle" }, "position of the token in the completion"));
  return svg;
}

function tokenNumbers(report, record, position) {
  const { tokens, quantities } = report;
  const at = tokens.start[record] + position;
  const length = tokens.length[record];
  const rows = quantities
    .filter((quantity) => tokens.values[quantity.name] && quantity.scale !== "sides")
    .map((quantity) => {
      const value = tokens.values[quantity.name][at];
      const multiple = () => short(value * countOf(tokens.values[quantity.name], tokens.start[record], length), 3);
      const extra = quantity.scale === "share" && !Number.isNaN(value) ? ` (${multiple()} × equal share)` : "";
      return [`${quantity.label}${quantity.symbol ? ` ${quantity.symbol}` : ""}`, `${short(value)}${quantity.unit && !Number.isNaN(value) ? ` ${quantity.unit}` : ""}${extra}`];
    });
  const marks = Object.keys(tokens.marks).filter((name) => tokens.marks[name][at]);
  const id = tokens.id[at] < 0 ? "" : `, id ${tokens.id[at]}`;
  return [
    element("strong", {}, element("code", {}, visible(tokens.vocabulary[tokens.text[at]]).trim()), ` token ${position + 1} of ${length}${id}`),
    pairs([...rows, ...(marks.length ? [["marks", marks.join(", ")]] : [])]),
  ];
}

function factsTable(report, index, record) {
  const facts = { ...report.completions.facts[index], ...(record < 0 ? {} : { "optimizer step": String(report.tokens.step[record]), ...report.tokens.facts[record] }) };
  const rows = Object.entries(facts);
  return rows.length ? element("div", { className: "facts" }, pairs(rows)) : element("div");
}
