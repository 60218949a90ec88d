/* The model, as the page uses it: requests to the worker. */

const THREADS = 4;

export class Classifier {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #next = 0;

  constructor(description, progress) {
    this.description = description;
    this.#worker.addEventListener("message", ({ data }) => this.#receive(data, progress));
    this.#worker.addEventListener("error", (event) => this.#fail(event.message || "This browser cannot run the page's worker."));
  }

  /** Load the model; `threads` counts only on a page that is cross-origin isolated. */
  open(threads = Math.min(THREADS, navigator.hardwareConcurrency || 1)) {
    return this.#ask({ task: "open", description: this.description, base: document.baseURI, threads });
  }

  /** Return the classes of an image, a Blob or an ImageBitmap, best first, with the times in ms. */
  async classify(image) {
    const found = await this.#ask({ task: "classify", image }, image instanceof ImageBitmap ? [image] : []);
    return { ...found, classes: this.#ranked(found.logits) };
  }

  /** Return the model's input for an image, float32 (C, H, W). */
  prepare(image) {
    return this.#ask({ task: "prepared", image });
  }

  /** Return { outputs: [{ data, shape }] } for an input float32 (N, C, H, W). */
  run(input, shape) {
    return this.#ask({ task: "run", input, shape }, [input.buffer]);
  }

  #ranked(logits) {
    const most = logits.reduce((a, b) => Math.max(a, b));
    const powers = Array.from(logits, (logit) => Math.exp(logit - most));
    const sum = powers.reduce((a, b) => a + b);
    const names = this.description.classes;
    return powers
      .map((power, label) => ({ label, name: names ? names[label] : `class ${label}`, score: power / sum }))
      .sort((a, b) => b.score - a.score || a.label - b.label);
  }

  #ask(request, transfer = []) {
    const id = (this.#next += 1);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...request }, transfer);
    });
  }

  #receive({ id, result, error, progress }, told) {
    if (progress !== undefined) {
      told(progress);
      return;
    }
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) reject(Object.assign(new Error(error.text), { expected: error.expected }));
    else resolve(result);
  }

  #fail(text) {
    for (const { reject } of this.#waiting.values()) reject(new Error(text));
    this.#waiting.clear();
  }
}
