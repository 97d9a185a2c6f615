// Figures that move: sliders over the rows of a table. Without this script the table and the first frame are shown.
"use strict";

function slider(name, values, changed) {
  const label = document.createElement("label");
  const range = document.createElement("input");
  const now = document.createElement("span");
  range.type = "range";
  range.min = 0;
  range.max = values.length - 1;
  range.value = 0;
  now.className = "moving-value";
  const tell = () => {
    now.textContent = values[range.value];
    range.setAttribute("aria-valuetext", values[range.value]);
  };
  range.addEventListener("input", () => { tell(); changed(); });
  label.append(`${name} `, range, now);
  tell();
  return { label, range };
}

function bar(name) {
  const row = document.createElement("div");
  row.className = "moving-bar";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("height", "100%");
  svg.append(rect);
  const title = document.createElement("span");
  title.textContent = name;
  const value = document.createElement("span");
  row.append(title, svg, value);
  return { row, show: (text) => {
    rect.setAttribute("width", `${100 * Math.min(1, Math.max(0, parseFloat(text) || 0))}%`);
    value.textContent = text;
  } };
}

function move(figure) {
  const table = figure.querySelector("table");
  const heads = [...table.querySelectorAll("thead th")];
  const rows = [...table.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
  const many = Number(figure.dataset.sliders);
  const values = heads.slice(0, many).map((_, column) => [...new Set(rows.map((row) => row[column]))]);
  const frame = figure.querySelector(".moving-frame");
  const said = document.createElement("output");
  said.className = "moving-said";
  said.setAttribute("aria-live", "polite");
  const bars = heads.map((head, column) => ("bar" in head.dataset ? { column, ...bar(head.textContent) } : null)).filter(Boolean);
  const show = () => {
    const at = sliders.reduce((place, s, column) => place * values[column].length + Number(s.range.value), 0);
    bars.forEach((b) => b.show(rows[at][b.column]));
    said.textContent = heads.slice(many).map((head, k) => `${head.textContent}: ${rows[at][many + k]}`).join(", ");
    if (frame) frame.style.setProperty("--at", at);
  };
  const sliders = values.map((list, column) => slider(heads[column].textContent, list, show));
  const controls = document.createElement("div");
  controls.className = "moving-controls";
  controls.append(...sliders.map((s) => s.label), ...bars.map((b) => b.row), said);
  figure.querySelector("details").before(controls);
  figure.querySelector("details").open = false;
  figure.classList.add("moving-on");
  show();
}

document.querySelectorAll("figure.kit-moving").forEach(move);
