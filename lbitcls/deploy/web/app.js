/* The page: images from files, the clipboard, the camera and a drawing; their classes; the images so far. */

import { Camera } from "./camera.js";
import { Classifier } from "./classifier.js";
import { Pad } from "./pad.js";

const BARS = 5;
const MOST_IMAGES = 500;
const THUMBNAIL = 320; // pixels
const SMALL_MODEL = 64; // pixels of the sides of a model that one can draw for
const FEW_CLASSES = 4; // are named at the start
const NARROWEST = 0.5; // ratio of the sides of an image that is shown whole
const MOST_ERRORS = 3;

const $ = (id) => document.getElementById(id);
const [body, stage, grid, video] = [document.body, $("stage"), $("grid"), $("video")];
const camera = new Camera(video);
const pad = new Pad($("pad"), () => later(answerDrawing));
const items = []; // { file, url, button, found }
let classifier;
let shown = null; // the item on the stage
let drawable = false;
let errors = [];

// The model

/** Load the model; the judge of an exported page awaits the same promise. */
const ready = (async () => {
  const response = await fetch("model.json");
  if (!response.ok) throw new Error("The folder lacks model.json. Publish all of its files.");
  const description = await response.json();
  describe(description);
  classifier = new Classifier(description, showProgress);
  const threads = Number(new URLSearchParams(location.search).get("threads")) || undefined;
  const opened = await classifier.open(threads);
  for (const id of ["choose", "camera", "draw"]) $(id).disabled = false;
  $("loading").classList.add("done");
  say("The model is ready.");
  return { ...opened, description };
})();
ready.catch((error) => fail(`The model cannot be loaded. ${error.message}`));

function describe({ facts, input, classes, runtime }) {
  const [channels, height, width] = input;
  const number = `${facts.classes.toLocaleString("en")} classes`;
  const parts = [facts.quantization, number, fileSize(facts.size), `${width} × ${height} pixels`];
  $("facts").textContent = [...parts, `ONNX Runtime Web ${runtime.version}`, `lbitcls ${facts.version}`].join(" · ");
  drawable = channels === 1 && Math.max(height, width) <= SMALL_MODEL;
  $("draw").hidden = !drawable;
  if (classes && classes.length <= FEW_CLASSES) {
    const names = new Intl.ListFormat("en", { type: "disjunction" }).format(classes);
    $("hint").textContent = `${names[0].toUpperCase()}${names.slice(1)}?`;
  }
}

function fileSize(bytes) {
  return bytes < 2 ** 20 ? `${Math.round(bytes / 2 ** 10)} KB` : `${(bytes / 2 ** 20).toFixed(1)} MB`;
}

function showProgress(part) {
  const percent = Math.min(100, Math.round(100 * part));
  $("loading").setAttribute("aria-valuenow", percent);
  $("loading").firstElementChild.style.setProperty("--done", percent / 100);
}

// What is shown

function setMode(mode) {
  if (mode !== "camera") camera.stop();
  if (body.dataset.mode !== mode) scrollTo({ top: 0 });
  body.dataset.mode = mode;
  for (const part of document.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.includes(mode);
  if (!drawable) $("draw").hidden = true;
  $("welcome").hidden = mode !== "welcome";
  stage.hidden = mode === "welcome";
  $("photo").hidden = mode !== "photo";
  video.hidden = mode !== "camera";
  $("pad").hidden = mode !== "draw";
  grid.hidden = items.length < 2 || mode !== "photo";
  if (mode !== "photo") select(null);
}

/** Give the stage the proportions of what it shows. */
function setRatio(width, height) {
  const ratio = Math.min(1 / NARROWEST, Math.max(NARROWEST, width / height || 1));
  stage.querySelector("figure").style.setProperty("--ratio", ratio);
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

/** Tell screen readers. */
function say(text) {
  $("said").textContent = text;
}

function percent(score) {
  if (score < 0.0005) return "< 0.1 %";
  return `${(100 * score).toFixed(score < 0.0995 ? 1 : 0)} %`;
}

function showAnswer(source, found) {
  $("source").textContent = source;
  $("label").textContent = found ? found.classes[0].name : "";
  $("time").textContent = found ? `${Math.max(1, Math.round(found.prepare + found.network))} ms, of which ${Math.round(found.network)} ms in the model` : "";
  const best = found ? found.classes.slice(0, BARS) : [];
  while ($("bars").children.length > best.length) $("bars").lastElementChild.remove();
  best.forEach(({ name, score }, i) => {
    const row = $("bars").children[i] ?? newRow();
    row.children[0].textContent = name;
    row.children[1].textContent = percent(score);
    row.children[2].style.setProperty("--share", score);
  });
}

function newRow() {
  const row = element("li", element("span", "name"), element("span", "percent"), element("span", "bar"));
  $("bars").append(row);
  row.getBoundingClientRect(); // drawn empty first, so that the bar grows
  return row;
}

/** Return a new element with a class, or with children. */
function element(tag, ...parts) {
  const created = document.createElement(tag);
  for (const part of parts) {
    if (typeof part === "string") created.className = part;
    else created.append(part);
  }
  return created;
}

// Images

async function add(files) {
  const images = [...files];
  if (!images.length) return;
  errors = [];
  fail("");
  const free = Math.max(0, MOST_IMAGES - items.length);
  if (images.length > free) report(`The page keeps ${MOST_IMAGES} images: ${images.length - free} were left out. Start over to add more.`);
  const added = images.slice(0, free).map(newItem);
  if (!added.length) return;
  setMode("photo");
  select(added[0]);
  await ready;
  for (const item of added) await answer(item);
  if (added.length > 1) say(`${added.length} images classified.`);
}

function newItem(file) {
  const item = { file, url: URL.createObjectURL(file), found: null };
  const canvas = element("canvas");
  canvas.width = canvas.height = THUMBNAIL;
  item.button = element("button", canvas, element("span", "name"), element("span", "percent"));
  item.button.type = "button";
  item.button.addEventListener("click", () => {
    select(item);
    scrollTo({ top: 0, behavior: "smooth" });
  });
  items.push(item);
  grid.append(element("li", item.button));
  return item;
}

async function answer(item) {
  try {
    item.found = await classifier.classify(item.file);
    await drawThumbnail(item);
  } catch (error) {
    if (items.includes(item)) remove(item, error.expected ? error.message : `The model cannot classify it: ${error.message}`);
    return;
  }
  const [, name, score] = item.button.children;
  const [best] = item.found.classes;
  name.textContent = best.name;
  score.textContent = percent(best.score);
  if (shown !== item) return;
  show(item);
  say(`${best.name}, ${percent(best.score)}`);
}

/** Remove an item that is not an image, and say why. */
function remove(item, reason) {
  report(`${item.file.name}: ${reason}`);
  items.splice(items.indexOf(item), 1);
  item.button.parentElement.remove();
  URL.revokeObjectURL(item.url);
  if (body.dataset.mode !== "photo") return;
  setMode(items.length ? "photo" : "welcome");
  if (shown === item) select(items[0] ?? null);
}

function report(error) {
  errors.push(error);
  const more = errors.length - MOST_ERRORS;
  fail([...errors.slice(0, MOST_ERRORS), ...(more > 0 ? [`… and ${more} more.`] : [])].join("\n"));
}

async function drawThumbnail({ file, button }) {
  const bitmap = await createImageBitmap(file);
  const side = Math.min(bitmap.width, bitmap.height);
  const context = button.firstElementChild.getContext("2d");
  context.imageSmoothingEnabled = side > THUMBNAIL;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  bitmap.close();
}

function select(item) {
  shown = item;
  for (const { button } of items) button.removeAttribute("aria-current");
  if (!item) return;
  item.button.setAttribute("aria-current", "true");
  $("photo").alt = ""; // an image that cannot be shown leaves no mark
  $("photo").src = item.url;
  show(item);
}

function show({ file, found }) {
  if (found) {
    const [width, height] = found.size;
    $("photo").alt = file.name;
    $("photo").classList.toggle("tiny", Math.max(width, height) <= 4 * SMALL_MODEL);
  }
  showAnswer(file.name, found);
}

function startOver() {
  for (const { url } of items) URL.revokeObjectURL(url);
  items.length = 0;
  grid.replaceChildren();
  $("photo").removeAttribute("src");
  fail("");
  setMode("welcome");
  $("main").focus();
}

/** Leave the camera or the drawing. */
function goBack() {
  setMode(items.length ? "photo" : "welcome");
  if (items.length) select(items[items.length - 1]);
}

// The camera and the drawing

async function startCamera(start) {
  fail("");
  try {
    await start();
  } catch (error) {
    fail(error.message);
    if (body.dataset.mode === "camera") goBack();
    return;
  }
  setMode("camera");
  setRatio(video.videoWidth, video.videoHeight);
  showAnswer("Camera: looking …", null);
  $("turn").hidden = (await Camera.list()).length < 2;
  watch();
}

/** Classify frame after frame while the camera is on. */
async function watch() {
  let frame;
  while (body.dataset.mode === "camera") {
    if ((frame = await camera.frame())) {
      const found = await classifier.classify(frame);
      if (body.dataset.mode === "camera") showAnswer("Camera", found);
    }
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }
}

function startDrawing() {
  fail("");
  setMode("draw");
  setRatio(1, 1);
  erase();
  $("pad").focus({ preventScroll: true });
}

function erase() {
  pad.erase();
  showAnswer("Draw with a finger or the mouse", null);
}

async function answerDrawing() {
  const found = await classifier.classify(await pad.picture());
  if (body.dataset.mode === "draw") showAnswer("Drawing", found);
}

let busy = false;
let again = false;

/** Run a task once after the last call; one run at a time, however many calls there are meanwhile. */
async function later(task) {
  again = true;
  if (busy) return;
  busy = true;
  while (again) {
    again = false;
    await new Promise((resolve) => requestAnimationFrame(resolve));
    await task();
  }
  busy = false;
}

// Events

$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  add($("files").files);
  $("files").value = "";
});
$("camera").addEventListener("click", () => startCamera(() => camera.start()));
$("turn").addEventListener("click", () => startCamera(() => camera.turn()));
$("shoot").addEventListener("click", async () => add([await camera.photo()]));
$("draw").addEventListener("click", startDrawing);
$("erase").addEventListener("click", erase);
$("home").addEventListener("click", startOver);
$("done").addEventListener("click", goBack);
$("photo").addEventListener("load", () => setRatio($("photo").naturalWidth, $("photo").naturalHeight));
addEventListener("paste", (event) => add([...event.clipboardData.files]));

let depth = 0; // of the elements that a file is dragged over
const dragged = (event, change) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  depth = Math.max(0, depth + change);
  body.classList.toggle("dragging", depth > 0);
};
addEventListener("dragenter", (event) => dragged(event, 1));
addEventListener("dragleave", (event) => dragged(event, -1));
addEventListener("dragover", (event) => dragged(event, 0));
addEventListener("drop", (event) => {
  dragged(event, -depth);
  add(event.dataTransfer.files);
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
const showTheme = () => $("theme").setAttribute("aria-pressed", isDark());
$("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {} // storage is blocked: the choice lasts until the page is left
  showTheme();
});
dark.addEventListener("change", showTheme);
showTheme();

/** For programs that drive the page, such as the judge of an exported model. */
window.lbitcls = Object.freeze({
  ready,
  classify: (image) => classifier.classify(image),
  prepare: (image) => classifier.prepare(image),
  run: (input, shape) => classifier.run(input, shape),
});
