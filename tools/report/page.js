"use strict";
// Everything shown here was written by a model or read from a file: it goes into the page as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE_ROWS = 50;
const byId = (id) => document.getElementById(id);

function element(name, text, parent, className) {
  const made = document.createElement(name);
  if (text !== null && text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

// ---- curves: drawn when they come into view, so that the page opens quickly

const unseen = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || !unseen.has(target)) continue;
    draw(target, unseen.get(target));
    unseen.delete(target);
    watcher.unobserve(target);
  }
}, { rootMargin: "150px" });

function draw(place, chart) {
  const modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  return Plotly.react(place, chart.data, chart.layout, { responsive: true, displaylogo: false, modeBarButtons });
}

for (const chart of data.charts) {
  const box = element("div", null, byId("charts"), "chart");
  element("h3", chart.title, box);
  const place = element("div", null, box, "plot");
  place.style.height = `${chart.layout.height}px`;
  element("p", chart.meaning, box, "meaning");
  unseen.set(place, chart);
  watcher.observe(place);
}

element("option", "", byId("other"));
for (const chart of data.others) element("option", chart.title, byId("other"));
byId("other").addEventListener("change", () => {
  const chart = data.others[byId("other").selectedIndex - 1];
  byId("other-chart").replaceChildren();
  if (!chart) return;
  draw(element("div", null, byId("other-chart"), "plot"), chart);
  element("p", chart.meaning, byId("other-chart"), "meaning");
});

// ---- responses

const rows = data.rows.map((values) => Object.fromEntries(data.columns.map((name, place) => [name, values[place]])));
const filters = byId("filters");
let shown = rows;
let first = 0;

const number = (value) => (value === null ? "–" : Number(value).toFixed(3));
const verdict = (value) => (value === null ? "–" : value ? "right" : "wrong");
const searched = (row) => (row.words ??= `${data.prompts[row.prompt]}\n${row.response}\n${row.reference_answer}`.toLowerCase());

for (const [place, name] of data.runs.entries()) element("option", name, filters.elements.run).value = place;
for (const step of [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b)) {
  element("option", step, filters.elements.step).value = step;
}

function select() {
  const wanted = Object.fromEntries(new FormData(filters));
  const text = wanted.text.trim().toLowerCase();
  const same = (key, value) => wanted[key] === "" || wanted[key] === String(value);
  shown = rows.filter((row) =>
    same("run", row.run) && same("step", row.step) && same("correct", row.correct) && same("kept", row.kept) &&
    (wanted.low === "" || row.reward >= Number(wanted.low)) &&
    (wanted.high === "" || row.reward <= Number(wanted.high)) &&
    (text === "" || searched(row).includes(text)));
  if (wanted.order) shown.sort((a, b) => wanted.order * (a.reward - b.reward));
  list(0);
}

function list(start) {
  first = start;
  const part = shown.slice(first, first + PAGE_ROWS);
  const place = part.length ? `: ${first + 1} to ${first + part.length}` : "";
  byId("count").value = `${shown.length} of ${rows.length} responses${place}`;
  byId("previous").disabled = first === 0;
  byId("next").disabled = first + PAGE_ROWS >= shown.length;
  byId("list").tBodies[0].replaceChildren(...part.map(listed));
}

function listed(row) {
  const line = element("tr");
  const cells = [data.runs[row.run], row.step, row.prompt_index, row.sample, number(row.reward),
    number(row.reference_probability), verdict(row.correct), row.extracted_answer, row.reference_answer];
  for (const cell of cells) element("td", cell, line);
  line.addEventListener("click", () => {
    for (const other of byId("list").querySelectorAll(".chosen")) other.className = "";
    line.className = "chosen";
    show(row);
  });
  return line;
}

function show(row) {
  const place = byId("detail");
  place.replaceChildren();
  element("h3", `${data.runs[row.run]}, step ${row.step}, prompt ${row.prompt_index}, response ${row.sample}`, place);
  const parts = {
    "reward": number(row.reward), "reference probability": number(row.reference_probability),
    "base probability": number(row.base_probability), "format": number(row.format),
    "repetition": number(row.repetition), "accuracy in the reward": number(row.accuracy),
    "advantage": row.advantage === null ? "– (not trained on)" : number(row.advantage),
    "answer": `${row.extracted_answer || "(none)"}: ${verdict(row.correct)}`, "reference": row.reference_answer,
    "tokens": `${row.tokens}, ended by ${row.finish_reason}`, "filter": row.kept ? "kept" : "dropped",
    "data source": row.data_source,
  };
  const body = element("tbody", null, element("table", null, place, "parts"));
  for (const [name, value] of Object.entries(parts)) {
    const line = element("tr", null, body);
    element("td", name, line);
    element("td", value, line);
  }
  element("h3", "Reference, its tokens coloured from probability 0 (red) to 1 (green)", place);
  const reference = element("pre", null, place, "reference");
  for (const [token, probability] of row.reference) {
    const made = element("span", token, reference, "token");
    made.title = `probability ${probability.toFixed(4)}`;
    made.style.background = `hsl(${Math.round(120 * probability)} 75% 78%)`;
  }
  if (!row.reference.length) {
    const why = row.splice_valid ? "its tokens' probabilities were not stored" : "it could not be put into this response";
    reference.textContent = `${row.reference_answer} (${why})`;
  }
  element("h3", "Prompt", place);
  element("pre", data.prompts[row.prompt], place, "prompt");
  element("h3", "Response", place);
  element("pre", row.response, place, "response");
}

filters.addEventListener("input", select);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(select));
byId("previous").addEventListener("click", () => list(first - PAGE_ROWS));
byId("next").addEventListener("click", () => list(first + PAGE_ROWS));
select();
// Two frames later what is in view has been drawn.
requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("ready")));
