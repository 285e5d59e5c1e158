"use strict";
// Report of one run: a click on a table row shows the clip.

const RUN = JSON.parse(document.getElementById("run").textContent);
const LOST = 0.1; // an object counts as lost in frames where its J is below this value

document.querySelectorAll("table.sortable").forEach(makeSortable);
for (const row of document.querySelectorAll("tr[data-clip]")) {
  row.addEventListener("click", () => showClip(row.dataset.clip));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter") showClip(row.dataset.clip);
  });
}
if (RUN.clips.length) showClip(RUN.clips[0].name);

function showClip(name) {
  const clip = RUN.clips.find((other) => other.name === name);
  for (const row of document.querySelectorAll("tr[data-clip]")) {
    row.classList.toggle("chosen", row.dataset.clip === name);
  }
  document.getElementById("clip-name").textContent = name;
  const cards = [frameCard(clip), scoreCard(clip), attentionCard(clip), headCard(clip), lossCard(clip), timeCard(clip)];
  document.getElementById("clip").replaceChildren(...cards.filter(Boolean));
}

function card(title, ...children) {
  return element("section", { class: "card" }, element("h3", {}, title), ...children);
}

function frameCard(clip) {
  if (!clip.samples.length) return null;
  const image = element("img", { id: "sample", alt: `frame of ${clip.name}` });
  const caption = element("span", { class: "faint" });
  const kinds = element("select", { "aria-label": "image type" }, element("option", { value: "overlay" }, "masks"));
  if (clip.samples.some((sample) => sample.errors)) kinds.append(element("option", { value: "errors" }, "errors"));
  const colours = legend(RUN.error_colours.concat({ name: "correct", colour: "#aaaaaa" }));
  let current = 0;
  const show = (index = current) => {
    current = index;
    const sample = clip.samples[index];
    image.src = sample[kinds.value] ?? sample.overlay;
    caption.textContent = `frame ${sample.frame}`;
    colours.hidden = kinds.value !== "errors";
  };
  kinds.addEventListener("change", () => show());
  const range = slider(clip.samples.length, "frame", show);
  range.id = "frame-slider";
  show(0);
  return card("Frames", image, element("div", { class: "controls" }, range, caption, kinds), colours);
}

function scoreCard(clip) {
  const objects = Object.entries(clip.objects);
  if (!objects.length) return null;
  const lines = [];
  const marks = [];
  const notes = [element("p", { class: "faint" }, "solid: J, dashed: F; x axis: frame")];
  objects.forEach(([id, curve]) => {
    const { colour } = curve;
    lines.push({ name: `object ${id}: J`, x: curve.frames, y: curve.J, colour });
    lines.push({ name: `object ${id}: F`, x: curve.frames, y: curve.F, colour, dashed: true });
    const lost = curve.frames.filter((_, index) => curve.J[index] < LOST);
    if (lost.length) {
      marks.push({ name: `object ${id} is lost`, x: lost, colour });
      notes.push(element("p", { class: "faint" }, `object ${id} is lost (J < ${LOST}) in frames ${ranges(lost)}`));
    }
  });
  const names = objects.map(([id, { colour }]) => ({ name: `object ${id}`, colour }));
  return card("Scores per frame", lineChart(lines, { label: `J and F of ${clip.name} per frame`, marks }),
    legend(names), ...notes);
}

function attentionCard(clip) {
  if (!clip.attention) return null;
  const { attention } = clip;
  const [rows, columns] = attention.grid;
  const target = element("canvas", { id: "attention-target", "aria-label": "target frame; click to select the query" });
  const layers = element("select", { "aria-label": "layer" },
    ...attention.layers.map((layer, index) => element("option", { value: index }, layer.name)));
  const figures = attention.memory.map((index) => {
    const canvas = element("canvas", { class: "attention-memory" });
    const caption = element("figcaption", {}, `frame ${index}`);
    return { canvas, caption, figure: element("figure", {}, canvas, caption) };
  });
  const section = card("Attention", element("p", { class: "faint" },
    `Click on frame ${attention.frame} to select a query. The heat maps show its attention over the memory frames, ` +
    "averaged over heads; the percentages are the sums per frame."),
    element("div", { class: "controls" }, layers),
    element("div", { class: "frames" }, element("figure", {}, target,
      element("figcaption", {}, `frame ${attention.frame}: query`)), ...figures.map(({ figure }) => figure)));
  section.classList.add("wide");
  let cell = null;
  let maps = [];
  Promise.all([
    ...[target, ...figures.map(({ canvas }) => canvas)].map((canvas, index) => drawImage(canvas, attention.images[index])),
    ...attention.layers.map((layer) => greyValues(layer.maps)),
  ]).then((loaded) => {
    maps = loaded.slice(figures.length + 1);
    const images = loaded.slice(0, figures.length + 1);
    const show = () => {
      if (!cell) return;
      const layer = Number(layers.value);
      const query = cell[0] * columns + cell[1];
      drawQuery(target, images[0], cell, rows, columns);
      figures.forEach(({ canvas, caption }, memory) => {
        const first = (query * figures.length + memory) * rows * columns;
        drawHeat(canvas, images[memory + 1], maps[layer].subarray(first, first + rows * columns), rows, columns);
        const weight = attention.layers[layer].frame_weights[query][memory];
        caption.textContent = `frame ${attention.memory[memory]}: ${(weight * 100).toFixed(0)} %`;
        canvas.dataset.query = query;
      });
    };
    target.addEventListener("click", (event) => {
      const box = target.getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
      const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
      cell = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
      show();
    });
    layers.addEventListener("change", show);
    cell = [Math.floor(rows / 2), Math.floor(columns / 2)];
    show();
    section.dataset.ready = "true";
  }).catch(() => section.append(element("p", { class: "warning" }, "The attention images of this clip cannot be decoded.")));
  return section;
}

async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

async function drawImage(canvas, url) {
  const image = await loadImage(url);
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  return image;
}

// Pixel values of a greyscale PNG in row-major order.
async function greyValues(url) {
  const image = await loadImage(url);
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, index) => index % 4 === 0);
}

function drawQuery(canvas, image, [row, column], rows, columns) {
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const [x, y] = [((column + 0.5) * canvas.width) / columns, ((row + 0.5) * canvas.height) / rows];
  for (const [colour, thickness] of [["white", 5], ["#d00000", 2.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    context.moveTo(x - 9, y);
    context.lineTo(x + 9, y);
    context.moveTo(x, y - 9);
    context.lineTo(x, y + 9);
    context.stroke();
  }
}

// Draws a heat map over a grey memory frame; `values` is the square root of the attention, 255 at the maximum.
function drawHeat(canvas, image, values, rows, columns) {
  const heat = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  values.forEach((value, index) => {
    const v = value / 255;
    pixels.data.set([Math.min(255, 130 + 250 * v), 235 * v * v, 60 * (1 - v) + 40 * v * v, 235 * Math.min(1, 1.3 * v)],
      index * 4);
  });
  heat.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1) brightness(0.75)";
  context.drawImage(image, 0, 0);
  context.filter = "none";
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(heat, 0, 0, canvas.width, canvas.height);
}

function headCard(clip) {
  const layers = Object.entries(clip.head_weights);
  if (!layers.length) return null;
  const maximum = Math.max(...layers.flatMap(([, weights]) => weights));
  const heads = Math.max(...layers.map(([, weights]) => weights.length));
  const table = element("table", { class: "heat" });
  const header = table.createTHead().insertRow();
  header.append(element("th", { class: "left" }, "layer"), ...Array.from({ length: heads }, (_, h) => element("th", {}, `head ${h}`)));
  const body = table.createTBody();
  for (const [layer, weights] of layers) {
    const row = body.insertRow();
    row.append(element("td", { class: "left" }, layer));
    for (const weight of weights) {
      const percent = Math.round((weight / maximum) * 100);
      row.append(element("td", {
        style: `background:color-mix(in oklab, var(--accent) ${percent}%, var(--card));` + (percent > 55 ? "color:var(--card)" : ""),
      }, weight.toFixed(3)));
    }
  }
  return card("Head weights", element("div", { class: "scroll" }, table));
}

function lossCard(clip) {
  const curves = Object.entries(clip.losses);
  if (!curves.length) return null;
  const values = curves.flatMap(([, losses]) => losses).filter(Number.isFinite);
  const lines = curves.map(([name, losses], number) => {
    const steps = losses.map((_, step) => step).filter((step) => Number.isFinite(losses[step]));
    return { name, x: steps, y: steps.map((step) => losses[step]), colour: colourOf(number) };
  });
  const low = Math.min(...values, 0);
  return card("Adaptation loss per step",
    lineChart(lines, { label: "loss per step", low, high: Math.max(...values) }),
    legend(lines.map(({ name, colour }) => ({ name, colour }))));
}

function timeCard(clip) {
  const stages = Object.entries(clip.stages).filter(([, seconds]) => seconds > 0);
  if (!stages.length) return null;
  const longest = Math.max(...stages.map(([, seconds]) => seconds));
  const bars = element("div", { class: "bars" });
  for (const [stage, seconds] of stages) {
    bars.append(element("span", {}, stage), element("div", { style: `width:${(100 * seconds) / longest}%` }),
      element("span", {}, seconds.toFixed(3)));
  }
  return card("Seconds per frame, by stage", bars,
    element("p", { class: "faint" }, "decode, write and score run in background threads"));
}
