"use strict";
// What the report and the comparison share: no library, no network.

const COLOURS = ["#2457c5", "#d1495b", "#2a9d5c", "#e08e0b", "#7a4fc0", "#1599a8", "#a05a2c", "#c2418f"];
const RIGHT = 18;
const SVG = "http://www.w3.org/2000/svg";

function colourOf(number) {
  return COLOURS[number % COLOURS.length];
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A click on a column's head sorts a table by it, another one the other way round. Rows without a value come last.
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "descending" ||
        (head.getAttribute("aria-sort") !== "ascending" && head.dataset.first !== "descending");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compared(valueOf(a), valueOf(b), rising));
      table.tBodies[0].append(...rows);
    });
  });
}

function compared(a, b, rising) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  return rising ? order : -order;
}

// Lines over a common axis. Each of `lines`: {name, x, y, colour, dashed}. `low` and `high` bound the values.
function lineChart(lines, { label, low = 0, high = 1, height = 190, marks = [] }) {
  const [width, left, bottom] = [560, 40, 26];
  const xs = lines.flatMap((line) => line.x);
  const [first, last] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1)];
  const across = (x) => left + ((x - first) / (last - first)) * (width - left - RIGHT);
  const down = (y) => 8 + (1 - (y - low) / (high - low || 1)) * (height - bottom - 8);
  const full = height + marks.length * 12;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${full}`, role: "img", "aria-label": label });
  for (let step = 0; step <= 4; step++) {
    const value = low + ((high - low) * step) / 4;
    svg.append(drawn("line", { x1: left, x2: width - RIGHT, y1: down(value), y2: down(value), stroke: "var(--line)" }));
    svg.append(drawn("text", { x: left - 6, y: down(value) + 4, "text-anchor": "end" }, shortNumber(value)));
  }
  const ticks = Math.min(6, last - first);
  for (let step = 0; step <= ticks; step++) {
    const x = Math.round(first + ((last - first) * step) / ticks);
    svg.append(drawn("text", { x: across(x), y: height - 8, "text-anchor": "middle" }, x));
  }
  for (const line of lines) {
    const points = line.x.map((x, place) => `${across(x).toFixed(1)},${down(line.y[place]).toFixed(1)}`);
    const path = drawn("polyline", {
      points: points.join(" "), fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-linejoin": "round",
      ...(line.dashed ? { "stroke-dasharray": "5 4", "stroke-width": 1.5 } : {}),
    });
    path.append(drawn("title", {}, line.name));
    svg.append(path);
    if (points.length === 1) {
      svg.append(drawn("circle", { cx: across(line.x[0]), cy: down(line.y[0]), r: 3, fill: line.colour }));
    }
  }
  marks.forEach((mark, place) => {
    for (const x of mark.x) {
      const bar = drawn("rect", { x: across(x) - 2, y: height - 2 + place * 12, width: 4, height: 8, fill: mark.colour });
      bar.append(drawn("title", {}, `${mark.name}, frame ${x}`));
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

// Runs of whole numbers in words: 3, 7–9.
function inRuns(numbers) {
  const runs = [];
  for (const one of numbers) {
    if (runs.length && runs.at(-1)[1] === one - 1) runs.at(-1)[1] = one;
    else runs.push([one, one]);
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

// A slider over pictures; `show` is called with the place that is chosen.
function slider(count, name, show) {
  const range = element("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": name });
  range.addEventListener("input", () => show(Number(range.value)));
  return range;
}
