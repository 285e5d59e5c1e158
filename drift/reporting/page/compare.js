"use strict";
// Several runs: a click on a row of the table shows its clip in each of them.

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
  const found = RUNS.map((run) => ({ run: run.name, clip: run.clips.find((one) => one.name === name) }));
  const cards = [curves(name, found.filter((one) => one.clip)), pictures(found.filter((one) => one.clip?.samples.length))];
  document.getElementById("clip").replaceChildren(...cards.filter(Boolean));
}

// The mean over the objects of J and F, frame by frame.
function meanCurve(objects) {
  const sums = new Map();
  for (const curve of Object.values(objects)) {
    curve.frames.forEach((frame, place) => {
      const [sum, count] = sums.get(frame) ?? [0, 0];
      sums.set(frame, [sum + (curve.J[place] + curve.F[place]) / 2, count + 1]);
    });
  }
  const frames = [...sums.keys()].sort((a, b) => a - b);
  return { x: frames, y: frames.map((frame) => sums.get(frame)[0] / sums.get(frame)[1]) };
}

function curves(name, found) {
  const lines = found.map(({ run, clip }) => ({
    name: run, colour: colourOf(RUNS.findIndex((one) => one.name === run)), ...meanCurve(clip.objects),
  })).filter((line) => line.x.length);
  if (!lines.length) return null;
  const section = element("section", { class: "card wide" }, element("h3", {}, "J&F by frame"),
    lineChart(lines, { label: `J&F of ${name} by frame`, height: 230 }), legend(lines));
  return section;
}

function pictures(found) {
  if (!found.length) return null;
  const indices = [...new Set(found.flatMap(({ clip }) => clip.samples.map((one) => one.frame)))].sort((a, b) => a - b);
  const figures = found.map(({ run, clip }) => {
    const picture = element("img", { alt: run });
    const caption = element("figcaption", {});
    return { run, clip, picture, caption, figure: element("figure", {}, picture, caption) };
  });
  const kinds = element("select", { "aria-label": "what is drawn" },
    element("option", { value: "overlay" }, "masks"), element("option", { value: "errors" }, "errors"));
  let place = 0;
  const show = (chosen = place) => {
    place = chosen;
    for (const { run, clip, picture, caption } of figures) {
      const nearest = clip.samples.reduce((best, one) =>
        (Math.abs(one.frame - indices[place]) < Math.abs(best.frame - indices[place]) ? one : best));
      picture.src = nearest[kinds.value] ?? nearest.overlay;
      caption.textContent = `${run}, frame ${nearest.frame}`;
    }
  };
  kinds.addEventListener("change", () => show());
  const range = slider(indices.length, "frame", show);
  range.id = "frame-slider";
  show(0);
  return element("section", { class: "card wide" }, element("h3", {}, "Frames"),
    element("div", { class: "controls" }, range, kinds), element("div", { class: "frames" }, ...figures.map((one) => one.figure)));
}
