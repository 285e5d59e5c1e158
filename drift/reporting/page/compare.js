"use strict";
// Comparison page: a click on a table row shows the clip in all runs.

const RUNS = JSON.parse(document.getElementById("run").textContent).runs;

document.querySelectorAll("table.sortable").forEach(makeSortable);
const clipRows = [...document.querySelectorAll("tr[data-clip]")];
for (const row of clipRows) {
  row.addEventListener("click", () => showClip(row.dataset.clip));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter") showClip(row.dataset.clip);
  });
}
if (clipRows.length) showClip(clipRows[0].dataset.clip);

function showClip(name) {
  for (const row of clipRows) row.classList.toggle("chosen", row.dataset.clip === name);
  document.getElementById("clip-name").textContent = name;
  const results = RUNS.map((run) => ({ run: run.name, clip: run.clips.find((clip) => clip.name === name) }));
  const cards = [curveCard(name, results.filter(({ clip }) => clip)), frameCard(results.filter(({ clip }) => clip?.samples.length))];
  document.getElementById("clip").replaceChildren(...cards.filter(Boolean));
}

// J&F per frame, averaged over objects.
function meanCurve(objects) {
  const sums = new Map();
  for (const curve of Object.values(objects)) {
    curve.frames.forEach((frame, index) => {
      const [sum, count] = sums.get(frame) ?? [0, 0];
      sums.set(frame, [sum + (curve.J[index] + curve.F[index]) / 2, count + 1]);
    });
  }
  const frames = [...sums.keys()].sort((a, b) => a - b);
  return { x: frames, y: frames.map((frame) => sums.get(frame)[0] / sums.get(frame)[1]) };
}

function curveCard(name, results) {
  const lines = results.map(({ run, clip }) => ({
    name: run, colour: colourOf(RUNS.findIndex((other) => other.name === run)), ...meanCurve(clip.objects),
  })).filter((line) => line.x.length);
  if (!lines.length) return null;
  return element("section", { class: "card wide" }, element("h3", {}, "J&F per frame"),
    lineChart(lines, { label: `J&F of ${name} per frame`, height: 230 }), legend(lines));
}

function frameCard(results) {
  if (!results.length) return null;
  const frames = [...new Set(results.flatMap(({ clip }) => clip.samples.map((sample) => sample.frame)))].sort((a, b) => a - b);
  const figures = results.map(({ run, clip }) => {
    const image = element("img", { alt: run });
    const caption = element("figcaption", {});
    return { run, clip, image, caption, figure: element("figure", {}, image, caption) };
  });
  const kinds = element("select", { "aria-label": "image type" },
    element("option", { value: "overlay" }, "masks"), element("option", { value: "errors" }, "errors"));
  let current = 0;
  const show = (index = current) => {
    current = index;
    const distance = (sample) => Math.abs(sample.frame - frames[index]);
    for (const { run, clip, image, caption } of figures) {
      const nearest = clip.samples.reduce((best, sample) => (distance(sample) < distance(best) ? sample : best));
      image.src = nearest[kinds.value] ?? nearest.overlay;
      caption.textContent = `${run}, frame ${nearest.frame}`;
    }
  };
  kinds.addEventListener("change", () => show());
  const range = slider(frames.length, "frame", show);
  range.id = "frame-slider";
  show(0);
  return element("section", { class: "card wide" }, element("h3", {}, "Frames"),
    element("div", { class: "controls" }, range, kinds), element("div", { class: "frames" }, ...figures.map(({ figure }) => figure)));
}
