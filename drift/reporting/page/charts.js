"use strict";
// Shared by report.js and compare.js; no libraries, no network access.

const COLOURS = ["#2457c5", "#d1495b", "#2a9d5c", "#e08e0b", "#7a4fc0", "#1599a8", "#a05a2c", "#c2418f"];
const RIGHT = 18;
const SVG = "http://www.w3.org/2000/svg";

function colourOf(number) {
  return COLOURS[number % COLOURS.length];
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svgElement(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Sorts a table by a column when its header is clicked; a second click reverses the order. Rows without a value are last.
function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") === "descending" ||
        (header.getAttribute("aria-sort") !== "ascending" && header.dataset.first !== "descending");
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(valueOf(a), valueOf(b), ascending));
      table.tBodies[0].append(...rows);
    });
  });
}

function compare(a, b, ascending) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  return ascending ? order : -order;
}

// Line chart. Items of `lines` are {name, x, y, colour, dashed}, items of `marks` {name, x, colour};
// the y axis runs from `low` to `high`.
function lineChart(lines, { label, low = 0, high = 1, height = 190, marks = [] }) {
  const [width, left, bottom] = [560, 40, 26];
  const xs = lines.flatMap((line) => line.x);
  const [first, last] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1)];
  const toX = (x) => left + ((x - first) / (last - first)) * (width - left - RIGHT);
  const toY = (y) => 8 + (1 - (y - low) / (high - low || 1)) * (height - bottom - 8);
  const viewBox = `0 0 ${width} ${height + marks.length * 12}`;
  const svg = svgElement("svg", { viewBox, role: "img", "aria-label": label });
  for (let step = 0; step <= 4; step++) {
    const value = low + ((high - low) * step) / 4;
    svg.append(svgElement("line", { x1: left, x2: width - RIGHT, y1: toY(value), y2: toY(value), stroke: "var(--line)" }));
    svg.append(svgElement("text", { x: left - 6, y: toY(value) + 4, "text-anchor": "end" }, shortNumber(value)));
  }
  const ticks = Math.min(6, last - first);
  for (let step = 0; step <= ticks; step++) {
    const x = Math.round(first + ((last - first) * step) / ticks);
    svg.append(svgElement("text", { x: toX(x), y: height - 8, "text-anchor": "middle" }, x));
  }
  for (const line of lines) {
    const points = line.x.map((x, index) => `${toX(x).toFixed(1)},${toY(line.y[index]).toFixed(1)}`);
    const path = svgElement("polyline", {
      points: points.join(" "), fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-linejoin": "round",
      ...(line.dashed ? { "stroke-dasharray": "5 4", "stroke-width": 1.5 } : {}),
    });
    path.append(svgElement("title", {}, line.name));
    svg.append(path);
    if (points.length === 1) {
      svg.append(svgElement("circle", { cx: toX(line.x[0]), cy: toY(line.y[0]), r: 3, fill: line.colour }));
    }
  }
  marks.forEach((mark, row) => {
    for (const x of mark.x) {
      const bar = svgElement("rect", { x: toX(x) - 2, y: height - 2 + row * 12, width: 4, height: 8, fill: mark.colour });
      bar.append(svgElement("title", {}, `${mark.name}, frame ${x}`));
      svg.append(bar);
    }
  });
  return svg;
}

function shortNumber(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(2)).toString();
}

function legend(entries) {
  return element("div", { class: "legend" }, ...entries.map(({ name, colour }) =>
    element("span", {}, element("i", { style: `background:${colour}` }), name)));
}

// Formats sorted integers as ranges, e.g. "3, 7–9".
function ranges(numbers) {
  const pairs = [];
  for (const number of numbers) {
    if (pairs.length && pairs.at(-1)[1] === number - 1) pairs.at(-1)[1] = number;
    else pairs.push([number, number]);
  }
  return pairs.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

// A range input that calls `show` with the selected index.
function slider(count, name, show) {
  const range = element("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": name });
  range.addEventListener("input", () => show(Number(range.value)));
  return range;
}
