"use strict";
// Reading of the data: Base64, gzip, then the length of a JSON header, the header, and the arrays that it refers to.

const KINDS = { f4: Float32Array, i4: Int32Array, u1: Uint8Array };

async function readReport(element) {
  if (!("DecompressionStream" in window)) {
    throw new Error("This browser cannot decompress the data; open the page with one of 2023 or newer.");
  }
  const text = atob(element.textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(whole.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(whole.subarray(4, 4 + length)));
  return resolved(header, whole.subarray(4 + length));
}

// An array, whose bytes are sorted by significance.
function arrayOf({ at, n, as }, bytes) {
  const Kind = KINDS[as];
  const size = Kind.BYTES_PER_ELEMENT;
  const sorted = new Uint8Array(n * size);
  for (let byte = 0; byte < size; byte++) {
    for (let index = 0; index < n; index++) sorted[index * size + byte] = bytes[at + byte * n + index];
  }
  return new Kind(sorted.buffer);
}

const isReference = (value) => value !== null && typeof value === "object" && "at" in value && "as" in value;

// Texts from outside are values and never names here, except for names of metrics, quantities and facts.
function resolved(header, bytes) {
  const arrays = (object) =>
    Object.fromEntries(Object.entries(object).map(([k, v]) => [k, isReference(v) ? arrayOf(v, bytes) : v]));
  const report = { ...header, completions: arrays(header.completions), tokens: arrays(header.tokens) };
  report.runs = header.runs.map((run) => ({ ...arrays(run), metrics: arrays(run.metrics) }));
  report.tokens.values = arrays(header.tokens.values);
  report.tokens.marks = arrays(header.tokens.marks);
  report.completions.count = report.completions.run.length;
  // Where the tokens of each record start, and which records each completion has.
  const { length, completion } = report.tokens;
  report.tokens.start = new Int32Array(length.length);
  report.records = new Map();
  for (let record = 0, at = 0; record < length.length; record++) {
    report.tokens.start[record] = at;
    at += length[record];
    if (!report.records.has(completion[record])) report.records.set(completion[record], []);
    report.records.get(completion[record]).push(record);
  }
  report.cohorts = cohortsOf(report.runs);
  return report;
}

// Runs that differ in their seed only.
function cohortsOf(runs) {
  const cohorts = new Map();
  runs.forEach((run, index) => {
    const key = run.cohort === "" ? `run ${index}` : `cohort ${run.cohort}`;
    if (!cohorts.has(key)) cohorts.set(key, { members: [] });
    cohorts.get(key).members.push(index);
  });
  const list = [...cohorts.values()];
  list.forEach((cohort, number) => {
    cohort.number = number;
    cohort.runs = cohort.members.map((index) => runs[index]);
    cohort.name = cohort.runs.map((run) => run.name).join(", ");
    for (const run of cohort.runs) run.cohortNumber = number;
  });
  return list;
}
