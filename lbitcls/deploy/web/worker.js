/* Worker that prepares images and runs the model, so that the page stays responsive.

Requests are { id, task, … }; replies are { id, result } or { id, error }, and { progress } while files load. */

import { ReadError, readBitmap, readFile } from "./files.js";
import { prepare } from "./pixels.js";

let model; // the description in model.json
let ort;
let session;

const TASKS = { open, classify, prepared, run };

self.addEventListener("message", async ({ data }) => {
  try {
    const result = await TASKS[data.task](data);
    self.postMessage({ id: data.id, result });
  } catch (error) {
    self.postMessage({ id: data.id, error: { text: String(error?.message ?? error), expected: error instanceof ReadError } });
  }
});

/** Load the runtime and the model, and run it once, so that the first image is answered quickly. */
async function open({ description, base, threads }) {
  model = description;
  const { runtime } = model;
  const loaded = new Map();
  const progress = (name, bytes) => {
    loaded.set(name, bytes);
    const sum = [...loaded.values()].reduce((total, part) => total + part, 0);
    self.postMessage({ progress: sum / (runtime.size + model.size) });
  };
  const load = (file, integrity) => fetchBytes(new URL(file, base), integrity, (bytes) => progress(file, bytes));
  const [script, wasm, weights] = await Promise.all([
    importScript(new URL(runtime.script, base), runtime.integrity?.script),
    load(runtime.wasm, runtime.integrity?.wasm),
    load(model.file),
  ]);
  ort = script;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  session = await ort.InferenceSession.create(weights, {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "all",
    extra: {
      session: {
        qdq_matmulnbits_accuracy_level: "1", // else a product of floats with integer weights rounds its input to 8 bits
        intra_op: { allow_spinning: "0" }, // waiting threads leave the processor to others
      },
    },
  });
  const shape = [1, ...model.input];
  await run({ input: new Float32Array(shape.reduce((a, b) => a * b)), shape });
  return { threads: ort.env.wasm.numThreads };
}

/** Return the logits of an image, a Blob or an ImageBitmap, and the times in ms. */
async function classify({ image }) {
  const start = performance.now();
  const pixels = await read(image);
  const input = prepare(pixels, model.steps);
  const middle = performance.now();
  const { outputs } = await run({ input, shape: [1, ...model.input] });
  return { logits: outputs[0].data, size: [pixels.width, pixels.height], prepare: middle - start, network: performance.now() - middle };
}

async function prepared({ image }) {
  return prepare(await read(image), model.steps);
}

function read(image) {
  return image instanceof Blob ? readFile(image, model.upright) : readBitmap(image);
}

/** Return all outputs for an input float32 (N, C, H, W), as { data, shape }. */
async function run({ input, shape }) {
  const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", input, shape) });
  return { outputs: session.outputNames.map((name) => ({ data: outputs[name].data, shape: [...outputs[name].dims] })) };
}

/** Import a module; one with an `integrity` from another server only if its bytes have that digest. */
async function importScript(url, integrity) {
  if (!integrity) return import(url.href);
  const response = await fetch(url, { integrity });
  const local = URL.createObjectURL(new Blob([await response.arrayBuffer()], { type: "text/javascript" }));
  return import(local);
}

async function fetchBytes(url, integrity, progress) {
  const response = await fetch(url, integrity ? { integrity } : {});
  if (!response.ok) throw new ReadError(`The server does not have ${url.pathname.split("/").pop()}. Publish the folder again.`);
  const parts = [];
  let length = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    progress((length += value.length));
  }
  const bytes = new Uint8Array(length);
  let place = 0;
  for (const part of parts) {
    bytes.set(part, place);
    place += part.length;
  }
  return bytes;
}
