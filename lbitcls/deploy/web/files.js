/* Image files: their format and size from the first bytes, and their pixels as RGB bytes. */

const MOST_BYTES = 2 ** 27; // of a file
const MOST_PIXELS = 2 ** 26; // of an image: 67 million, more than a phone's camera takes
const STRIP = 2 ** 22; // pixels read at once, since some browsers limit a canvas to 16 million

/** Error with a text for the user, which says what to do. */
export class ReadError extends Error {}

/** Return an image file's pixels: { data: Uint8Array (H, W, 3), height, width, channels: 3 }. */
export async function readFile(blob, upright) {
  if (blob.size > MOST_BYTES) throw new ReadError("This file is larger than 128 MB. Save the image smaller.");
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const format = formatOf(bytes);
  if (!format) throw new ReadError("This is not an image that the page can read. Use a JPEG, PNG, WebP, GIF or BMP file.");
  checkPixels(...format.size(new DataView(bytes.buffer)));
  if (!upright) format.hide?.(bytes);
  const image = new Blob([bytes], { type: format.type });
  let bitmap;
  try {
    // Neither color profiles nor transparency change the bytes that a model is trained on.
    bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new ReadError("This image is damaged. Save it again, or choose another one.");
  }
  return readBitmap(bitmap);
}

/** Return the pixels of an ImageBitmap, which is closed. */
export function readBitmap(bitmap) {
  const { width, height } = bitmap;
  checkPixels(width, height);
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const canvas = new OffscreenCanvas(width, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy"; // a transparent pixel replaces the strip before
  const data = new Uint8Array(width * height * 3);
  for (let top = 0; top < height; top += rows) {
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, width, Math.min(rows, height - top)).data;
    for (let from = 0, to = top * width * 3; from < strip.length; from += 4, to += 3) {
      data[to] = strip[from];
      data[to + 1] = strip[from + 1];
      data[to + 2] = strip[from + 2];
    }
  }
  bitmap.close();
  return { data, height, width, channels: 3 };
}

function checkPixels(width, height) {
  if (!(width > 0 && height > 0)) throw new ReadError("This image is damaged. Save it again, or choose another one.");
  if (width * height > MOST_PIXELS) {
    throw new ReadError(`This image has ${Math.round((width * height) / 1e6)} million pixels; the page reads up to 67 million. Save it smaller.`);
  }
}

/** Formats: how a file begins, its size [w, h] from its header, and how to hide its EXIF orientation. */
const FORMATS = [
  { type: "image/jpeg", begins: [0xff, 0xd8, 0xff], size: jpegSize, hide: hideInJPEG },
  { type: "image/png", begins: [0x89, 0x50, 0x4e, 0x47], size: (v) => at(v, 24, () => [v.getUint32(16), v.getUint32(20)]), hide: hideInPNG },
  { type: "image/gif", begins: [0x47, 0x49, 0x46, 0x38], size: (v) => at(v, 10, () => [v.getUint16(6, true), v.getUint16(8, true)]) },
  { type: "image/bmp", begins: [0x42, 0x4d], size: (v) => at(v, 26, () => [Math.abs(v.getInt32(18, true)), Math.abs(v.getInt32(22, true))]) },
  { type: "image/webp", begins: [0x52, 0x49, 0x46, 0x46], also: isWebP, size: webpSize, hide: hideInWebP },
];

function formatOf(bytes) {
  return FORMATS.find(({ begins, also }) => begins.every((byte, i) => bytes[i] === byte) && (!also || also(bytes)));
}

/** Return a size from a header of `length` bytes; [0, 0] if the file is shorter. */
function at(view, length, size) {
  return view.byteLength < length ? [0, 0] : size();
}

function isWebP(bytes) {
  return String.fromCharCode(...bytes.subarray(8, 12)) === "WEBP";
}

function webpSize(view) {
  return at(view, 30, () => {
    const kind = String.fromCharCode(...[12, 13, 14, 15].map((i) => view.getUint8(i)));
    const three = (i) => view.getUint16(i, true) + 65536 * view.getUint8(i + 2);
    if (kind === "VP8X") return [three(24) + 1, three(27) + 1];
    if (kind === "VP8 ") return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
    const packed = view.getUint32(21, true); // lossless: 14 bits each
    return [(packed & 0x3fff) + 1, ((packed >> 14) & 0x3fff) + 1];
  });
}

/** Yield the segments of a JPEG file's header as [marker, start of the content]. */
function* jpegSegments(view) {
  let place = 2;
  while (place + 9 < view.byteLength && view.getUint8(place) === 0xff) {
    const marker = view.getUint8(place + 1);
    if (marker === 0xff) {
      place += 1; // a fill byte
      continue;
    }
    yield [marker, place + 4];
    if (marker === 0xda) return; // pixels follow
    place += 2 + view.getUint16(place + 2);
  }
}

function jpegSize(view) {
  for (const [marker, start] of jpegSegments(view)) {
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return [view.getUint16(start + 3), view.getUint16(start + 1)];
  }
  return [0, 0];
}

function hideInJPEG(bytes) {
  for (const [marker, start] of jpegSegments(new DataView(bytes.buffer))) if (marker === 0xe1) bytes[start] = 0;
}

function hideInPNG(bytes) {
  const view = new DataView(bytes.buffer);
  for (let place = 8; place + 12 <= bytes.length; place += 12 + view.getUint32(place)) {
    if (String.fromCharCode(...bytes.subarray(place + 4, place + 8)) === "eXIf") bytes[place + 4] = 0x78; // unknown: skipped
  }
}

function hideInWebP(bytes) {
  const view = new DataView(bytes.buffer);
  for (let place = 12; place + 8 <= bytes.length; ) {
    if (String.fromCharCode(...bytes.subarray(place, place + 4)) === "EXIF") bytes[place] = 0x58;
    const length = view.getUint32(place + 4, true);
    place += 8 + length + (length % 2);
  }
}
