/* Area to draw in, white on black as in data sets of handwriting, for small gray models. */

const STROKE = 0.105; // of the side
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.04; // of the side, for the arrow keys

export class Pad {
  #canvas;
  #context;
  #changed;
  #last = null;

  /** `changed()` is called after each part of a stroke. */
  constructor(canvas, changed) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#changed = changed;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#last = null;
      this.#line(this.#place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) for (const part of event.getCoalescedEvents?.() ?? [event]) this.#line(this.#place(part));
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    this.erase();
  }

  erase() {
    this.#last = null;
    this.#context.fillStyle = "#000";
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  /** Return the drawing as an ImageBitmap. */
  picture() {
    return createImageBitmap(this.#canvas);
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #line(place) {
    const context = this.#context;
    const from = this.#last ?? place;
    context.strokeStyle = "#fff";
    context.lineWidth = this.#canvas.width * STROKE;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...place);
    context.stroke();
    this.#last = place;
    this.#changed();
  }

  /** The arrow keys draw; from the middle, if nothing is drawn. */
  #key(event) {
    const direction = ARROWS[event.key];
    if (!direction) return;
    event.preventDefault();
    const side = this.#canvas.width;
    const from = this.#last ?? [side / 2, side / 2];
    this.#line(from.map((value, axis) => Math.min(side, Math.max(0, value + direction[axis] * STEP * side))));
  }
}
