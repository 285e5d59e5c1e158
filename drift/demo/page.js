// Dragging over the picture writes the box into the field that keyboards use, and sends it.
(() => {
  let start = null, box = null, dragged = false;
  const picture = (event) => event.target.closest?.("#picture")?.querySelector("img");
  const pixel = (image, x, y) => {
    const shown = image.getBoundingClientRect();
    return [
      ((x - shown.left) * image.naturalWidth) / shown.width,
      ((y - shown.top) * image.naturalHeight) / shown.height,
    ].map((value) => Math.round(value));
  };
  document.addEventListener("dragstart", (event) => picture(event) && event.preventDefault());
  document.addEventListener("pointerdown", (event) => {
    dragged = false;
    const image = picture(event);
    if (image && event.button === 0 && event.pointerType === "mouse")
      start = { image, x: event.clientX, y: event.clientY };
  });
  document.addEventListener("pointermove", (event) => {
    if (!start) return;
    const width = Math.abs(event.clientX - start.x), height = Math.abs(event.clientY - start.y);
    if (!box && Math.max(width, height) > 6) {
      box = document.createElement("div");
      box.className = "drag-box";
      document.body.append(box);
    }
    if (!box) return;
    Object.assign(box.style, {
      left: `${Math.min(event.clientX, start.x)}px`,
      top: `${Math.min(event.clientY, start.y)}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
  });
  document.addEventListener("pointerup", (event) => {
    if (box) {
      const corners = [...pixel(start.image, start.x, start.y), ...pixel(start.image, event.clientX, event.clientY)];
      const field = document.querySelector("#place input, #place textarea");
      field.value = corners.join(",");
      field.dispatchEvent(new Event("input", { bubbles: true }));
      setTimeout(() => document.querySelector("#place-go").click(), 50);
      box.remove();
      dragged = true;
    }
    start = box = null;
  });
  // A drag ends with a click, which is none.
  document.addEventListener("click", (event) => {
    if (dragged && picture(event)) {
      event.stopPropagation();
      event.preventDefault();
    }
    dragged = false;
  }, true);
})();
