/* The page: images from files, the clipboard, the camera and a drawing; their classes; the images so far. */

import { Camera } from "./camera.js";
import { Classifier } from "./classifier.js";
import { Pad } from "./pad.js";

const BARS = 5;
const MOST_IMAGES = 500;
const THUMBNAIL = 320; // pixels
const SMALL_MODEL = 64; // pixels of the sides of a model that one can draw for

const $ = (id) => document.getElementById(id);
const [body, stage, grid, video] = [document.body, $("stage"), $("grid"), $("video")];
const camera = new Camera(video);
const pad = new Pad($("pad"), () => later(answerDrawing));
const items = []; // { file, url, button, found, error }
let classifier;
let shown = null; // the item on the stage

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
  const parts = [facts.quantization, facts.classes && `${facts.classes.toLocaleString("en")} classes`, `${(facts.size / 2 ** 20).toPrecision(2)} MB`, `${width} × ${height} pixels`, `ONNX Runtime Web ${runtime.version}`, `lbitcls ${facts.version}`];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
  $("draw").hidden = !(channels === 1 && Math.max(height, width) <= SMALL_MODEL);
  if (classes && classes.length <= 4) $("hint").textContent = `${new Intl.ListFormat("en", { type: "disjunction" }).format(classes)}? ${$("hint").textContent}`;
}

function showProgress(part) {
  const percent = Math.min(100, Math.round(100 * part));
  $("loading").setAttribute("aria-valuenow", percent);
  $("loading").firstElementChild.style.setProperty("--done", percent / 100);
}

// What is shown

function setMode(mode) {
  if (mode !== "camera") camera.stop();
  body.dataset.mode = mode;
  $("welcome").hidden = mode !== "welcome";
  stage.hidden = mode === "welcome";
  $("home").hidden = mode === "welcome";
  $("photo").hidden = mode !== "photo";
  video.hidden = mode !== "camera";
  $("pad").hidden = mode !== "draw";
  $("shoot").hidden = $("turn").hidden = mode !== "camera";
  $("erase").hidden = mode !== "draw";
  $("choose").classList.toggle("primary", mode === "welcome" || mode === "photo");
  grid.hidden = items.length < 2 || mode === "draw";
  if (mode !== "photo") select(null);
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
  return score > 0.9995 ? "100 %" : `${(100 * score).toFixed(score < 0.0995 ? 1 : 0)} %`;
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
  fail("");
  const free = MOST_IMAGES - items.length;
  if (images.length > free) fail(`The page keeps up to ${MOST_IMAGES} images; the first ${free} of these ${images.length} were added. Start over to add more.`);
  const added = images.slice(0, Math.max(0, free)).map(newItem);
  if (!added.length) return;
  setMode("photo");
  select(added[0]);
  await ready;
  for (const item of added) await answer(item);
  if (added.length > 1) say(`${added.length} images classified.`);
}

function newItem(file) {
  const item = { file, url: URL.createObjectURL(file), found: null, error: "" };
  const canvas = element("canvas");
  canvas.width = canvas.height = THUMBNAIL;
  item.button = element("button", canvas, element("span", "name"), element("span", "percent"));
  item.button.type = "button";
  item.button.addEventListener("click", () => {
    setMode("photo");
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
    item.error = error.expected ? error.message : `The model could not classify it: ${error.message}`;
  }
  const [, name, score] = item.button.children;
  const best = item.found?.classes[0];
  name.textContent = best?.name ?? "Not classified";
  score.textContent = best ? percent(best.score) : item.file.name;
  if (shown === item) {
    show(item);
    if (best) say(`${best.name}, ${percent(best.score)}`);
  }
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
  show(item);
}

function show(item) {
  const { file, url, found, error } = item;
  if ($("photo").src !== url) $("photo").src = url;
  $("photo").alt = file.name;
  if (found) {
    const [width, height] = found.size;
    $("photo").classList.toggle("whole", Math.max(width / height, height / width) > 1.6);
    $("photo").classList.toggle("tiny", Math.max(width, height) <= 4 * SMALL_MODEL);
  }
  fail(error ? `${file.name}: ${error}` : "");
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

// The camera and the drawing

async function startCamera(start) {
  fail("");
  try {
    await start();
  } catch (error) {
    fail(error.message);
    if (body.dataset.mode === "camera") setMode("welcome");
    return;
  }
  setMode("camera");
  showAnswer("Camera", null);
  $("turn").hidden = (await Camera.count()) < 2;
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

let waiting = false;

/** Run a task once, soon, however often it is asked for meanwhile. */
function later(task) {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(async () => {
    waiting = false;
    await task();
  });
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
window.lbitcls = Object.freeze({ ready, run: (...given) => classifier.run(...given), classify: (image) => classifier.classify(image) });
