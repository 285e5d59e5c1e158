// A click on the picture, or a box that is dragged over it, is written into a hidden field and sent.
(() => {
  let start = null, box = null, dragged = false;
  const picture = (event) => event.target.closest?.("#picture")?.querySelector("img");
  const pixel = (image, x, y) => {
    const shown = image.getBoundingClientRect();
    return [
      ((x - shown.left) * image.naturalWidth) / shown.width,
      ((y - shown.top) * image.naturalHeight) / shown.height,
    ].map((value, axis) => Math.floor(Math.min(value, (axis ? image.naturalHeight : image.naturalWidth) - 1)));
  };
  const send = (numbers) => {
    const field = document.querySelector("#drag input, #drag textarea");
    field.value = numbers.join(",");
    field.dispatchEvent(new Event("input", { bubbles: true }));
    setTimeout(() => document.querySelector("#drag-go").click(), 50);
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
      dragged = true;
      box.remove();
      send([...pixel(start.image, start.x, start.y), ...pixel(start.image, event.clientX, event.clientY)]);
    }
    start = box = null;
  });
  document.addEventListener("click", (event) => {
    const image = picture(event);
    if (image && !dragged) send(pixel(image, event.clientX, event.clientY)); // a drag ends with a click, too
    if (image) dragged = false;
  });
})();
