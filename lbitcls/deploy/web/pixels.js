/* The pipeline's steps on bytes: conversion to gray, resizing, cropping, normalization.

An image is { data: Uint8Array (H, W, C), height, width, channels }. Every function returns the bytes or floats that the
training pipeline returns for the same bytes. */

const PRECISION = 22; // most bits of a weight's fraction
const GRAY = [0.299, 0.587, 0.114].map(Math.fround); // ITU-R 601

/** Filters by interpolation: half their width in pixels of the input, and their value at a distance. */
const FILTERS = {
  bilinear: { radius: 1, value: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { radius: 2, value: cubic },
};

/** Keys' cubic with a = -0.5. */
function cubic(distance) {
  const x = Math.abs(distance);
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Return the steps' result for an RGB image: float32 (C, H, W). */
export function prepare(image, steps) {
  let current = image;
  for (const step of steps) current = STEPS[step.type](current, step);
  return current.data;
}

const STEPS = {
  Gray: (image) => toGray(image, luminance),
  Resize: (image, step) => resize(image, step.size ?? inProportion(image, step.short), step.interpolation),
  Fit: (image, step) => resize(largestWindow(image, step.size), step.size, "bilinear"),
  CenterCrop: (image, step) => centerCrop(image, step.size),
  Normalize: (image, step) => normalize(withChannels(image, step.mean.length), step),
  Scale: (image, step) => normalize(withChannels(image, step.channels), null),
};

/** Return [h, w] of an image scaled to a short side. */
export function inProportion({ height, width }, short) {
  return height <= width
    ? [short, Math.trunc((short * width) / height)]
    : [Math.trunc((short * height) / width), short];
}

/** Round half to even, as Python's `round`. */
function roundEven(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 === 0 ? down : down + 1;
}

/** Return the start of a centered window; negative if the window is longer than the image. */
function middle(outer, inner) {
  return inner <= outer ? roundEven((outer - inner) / 2) : -Math.floor((inner - outer) / 2);
}

function largestWindow(image, [h, w]) {
  const high = Math.min(image.height, Math.max(1, roundEven((image.width * h) / w)));
  const wide = Math.min(image.width, Math.max(1, roundEven((image.height * w) / h)));
  return cut(image, middle(image.height, high), middle(image.width, wide), high, wide);
}

function centerCrop(image, [high, wide]) {
  return cut(image, middle(image.height, high), middle(image.width, wide), high, wide);
}

/** Return a window of an image; what lies outside of the image is 0. */
function cut(image, top, left, height, width) {
  const { data, channels } = image;
  if (top === 0 && left === 0 && height === image.height && width === image.width) return image;
  const out = new Uint8Array(height * width * channels);
  const first = Math.max(0, left);
  const last = Math.min(image.width, left + width);
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y += 1) {
    const row = (top + y) * image.width;
    out.set(data.subarray((row + first) * channels, (row + last) * channels), (y * width + first - left) * channels);
  }
  return { data: out, height, width, channels };
}

/** Luminance of a decoder that reads files as gray, in integers. */
function luminance(red, green, blue) {
  return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
}

/** Luminance of a step that converts pixels, rounded half to even in float32. */
function roundedLuminance(red, green, blue) {
  const f = Math.fround;
  return roundEven(f(f(f(GRAY[0] * red) + f(GRAY[1] * green)) + f(GRAY[2] * blue)));
}

function toGray({ data, height, width }, formula) {
  const out = new Uint8Array(height * width);
  for (let i = 0, at = 0; i < out.length; i += 1, at += 3) out[i] = formula(data[at], data[at + 1], data[at + 2]);
  return { data: out, height, width, channels: 1 };
}

function withChannels(image, channels) {
  if (image.channels === channels) return image;
  if (channels === 1) return toGray(image, roundedLuminance);
  const out = new Uint8Array(image.data.length * 3);
  for (let i = 0; i < out.length; i += 1) out[i] = image.data[Math.trunc(i / 3)];
  return { ...image, data: out, channels: 3 };
}

/** Return float32 (C, H, W): (byte - mean) / std, channels reversed if the step says so; byte / 255 without a step. */
function normalize({ data, height, width, channels }, step) {
  const size = height * width;
  const out = new Float32Array(size * channels);
  for (let c = 0; c < channels; c += 1) {
    const source = step?.reversed ? channels - 1 - c : c;
    const [mean, std] = step ? [step.mean[c], step.std[c]] : [0, 255];
    const table = Float32Array.from({ length: 256 }, (_, byte) => Math.fround(byte - mean) / std);
    for (let i = 0; i < size; i += 1) out[c * size + i] = table[data[i * channels + source]];
  }
  return { data: out, height, width, channels };
}

/** Resize with antialiasing to [h, w]: first the rows, then the columns, each rounded to bytes. */
export function resize(image, [height, width], interpolation) {
  if (image.height === height && image.width === width) return image;
  if (interpolation === "nearest") return nearest(image, height, width);
  const filter = FILTERS[interpolation];
  let current = image;
  if (width !== current.width) current = alongRows(current, taps(current.width, width, filter));
  if (height !== current.height) current = alongColumns(current, taps(current.height, height, filter));
  return current;
}

function nearest({ data, height: oldHeight, width: oldWidth, channels }, height, width) {
  const places = (old, length) => {
    const scale = Math.fround(old / length);
    return Array.from({ length }, (_, i) => Math.min(Math.floor(Math.fround(Math.fround(i + 0.5) * scale)), old - 1));
  };
  const columns = places(oldWidth, width);
  const out = new Uint8Array(height * width * channels);
  let at = 0;
  for (const y of places(oldHeight, height)) {
    for (const x of columns) {
      for (let c = 0; c < channels; c += 1) out[at++] = data[(y * oldWidth + x) * channels + c];
    }
  }
  return { data: out, height, width, channels };
}

/** Return the integer weights of a filter: for each output, where its inputs start, how many there are, and theirs. */
function taps(from, to, { radius, value }) {
  const scale = from / to;
  const support = radius * Math.max(scale, 1);
  const inverse = scale >= 1 ? 1 / scale : 1;
  const most = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(to);
  const counts = new Int32Array(to);
  const floats = new Float64Array(to * most);
  for (let i = 0; i < to; i += 1) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.max(Math.min(Math.trunc(center + support + 0.5), from) - start, 0), most);
    let total = 0;
    for (let j = 0; j < count; j += 1) total += floats[i * most + j] = value((j + start - center + 0.5) * inverse);
    for (let j = 0; j < count; j += 1) floats[i * most + j] /= total;
    starts[i] = start;
    counts[i] = count;
  }
  const bits = precision(floats);
  const weights = Int16Array.from(floats, (weight) => Math.trunc(weight * 2 ** bits + (weight < 0 ? -0.5 : 0.5)));
  return { starts, counts, weights, most, bits, to };
}

/** Return the number of fraction bits with which all weights fit into 16 bits. */
function precision(weights) {
  const largest = weights.reduce((most, weight) => Math.max(most, weight), 0);
  let bits = 0;
  while (bits < PRECISION && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits += 1;
  return bits;
}

function alongRows({ data, height, width, channels }, { starts, counts, weights, most, bits, to }) {
  const out = new Uint8ClampedArray(height * to * channels);
  const half = 1 << (bits - 1);
  for (let x = 0; x < to; x += 1) {
    const first = starts[x] * channels;
    for (let y = 0; y < height; y += 1) {
      for (let c = 0; c < channels; c += 1) {
        let sum = half;
        let at = y * width * channels + first + c;
        for (let j = 0; j < counts[x]; j += 1, at += channels) sum += weights[x * most + j] * data[at];
        out[(y * to + x) * channels + c] = sum >> bits;
      }
    }
  }
  return { data: new Uint8Array(out.buffer), height, width: to, channels };
}

function alongColumns({ data, width, channels }, { starts, counts, weights, most, bits, to }) {
  const row = width * channels;
  const out = new Uint8ClampedArray(to * row);
  const half = 1 << (bits - 1);
  const sums = new Int32Array(row);
  for (let y = 0; y < to; y += 1) {
    sums.fill(half);
    for (let j = 0; j < counts[y]; j += 1) {
      const weight = weights[y * most + j];
      const start = (starts[y] + j) * row;
      for (let i = 0; i < row; i += 1) sums[i] += weight * data[start + i];
    }
    for (let i = 0; i < row; i += 1) out[y * row + i] = sums[i] >> bits;
  }
  return { data: new Uint8Array(out.buffer), height: to, width, channels };
}
