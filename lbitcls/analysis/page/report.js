"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const layers = data.layers;
const drawn = new Map(); // plot element -> function that draws it

// Plots take their colors from the style sheet.
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Resolves after the browser has painted the page.
const afterPaint = (then) => requestAnimationFrame(() => setTimeout(then));

function plotly() {
  if (!window.Plotly) { // compiling it takes longest by far: run it at the first plot, when the page is visible
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    performance.mark("plotly");
  }
  return window.Plotly;
}

const short = (name) => name.replace(/^backbone\./, "");
const narrow = () => window.matchMedia("(max-width: 760px)").matches;

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 12 }, standoff: 8 }, gridcolor: color("line"), zeroline: false, linecolor: color("line"),
    tickfont: { size: 11 }, automargin: true, fixedrange: true, ...more,
  };
}

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 12, color: color("quiet") },
    margin: { l: 8, r: 8, t: 10, b: 8 }, bargap: 0.3, dragmode: false,
    hoverlabel: { bgcolor: color("sheet"), bordercolor: color("line"), font: { color: color("ink"), size: 12 }, align: "left" },
    ...more,
  };
}

function draw(id, make) {
  const element = typeof id === "string" ? document.getElementById(id) : id;
  const [traces, look] = make();
  drawn.set(element, make);
  plotly().react(element, traces, layout(look), { displayModeBar: false, responsive: true });
  return element;
}

function redraw() {
  for (const [element, make] of drawn) {
    if (element.isConnected) draw(element, make); else drawn.delete(element);
  }
}

// The plots of the whole network

const METRICS = {
  kl: { title: "divergence, nats", of: (e) => e.kl, format: ".3g" },
  changed: { title: "images with another class, %", of: (e) => 100 * e.changed, format: ".1f" },
  sqnr_db: { title: "SQNR of the logits, dB", of: (e) => e.sqnr_db, format: ".1f" },
};
let metric = "kl";

function networkAxis(names) {
  return axis("", {
    showticklabels: !(narrow() && names.length > 30), tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map(short), tickangle: narrow() ? -90 : -50,
    tickfont: { size: names.length > 40 ? 8 : 10 }, showgrid: false, range: [-0.7, names.length - 0.3],
  });
}

function costs() {
  const shown = layers.filter((layer) => layer.scan);
  const x = shown.map((_, i) => i), names = shown.map((layer) => layer.name);
  const { title, of, format } = METRICS[metric];
  const hover = (what) => `<b>%{customdata}</b><br>${what}: %{y:${format}}<extra></extra>`;
  return [[
    { type: "bar", x, y: shown.map((layer) => of(layer.scan.alone)), customdata: names, hovertemplate: hover("alone"),
      marker: { color: shown.map((layer) => color(layer.scan.rank <= 3 ? "own" : "accent")) } },
    ...(data.basis === "float" ? [{ type: "scatter", mode: "lines+markers", x, y: shown.map((layer) => of(layer.scan.up_to)), customdata: names,
      hovertemplate: hover("up to here"), line: { color: color("float"), width: 1.6 }, marker: { size: 4 } }] : []),
  ], { xaxis: networkAxis(names), yaxis: axis(title, { rangemode: "tozero" }) }];
}

function signal() {
  const x = layers.map((_, i) => i), names = layers.map((layer) => layer.name);
  const hover = (what) => `<b>%{customdata}</b><br>${what}: %{y:.1f} dB<extra></extra>`;
  const line = (what, y, tint) => ({ type: "scatter", mode: "lines+markers", name: what, x, y, customdata: names, hovertemplate: hover(what),
    line: { color: color(tint), width: 1.8 }, marker: { size: 5 }, connectgaps: false });
  const against = data.reference === "float" ? "against the float model" : "against no quantizers";
  return [[
    line("its own rounding", layers.map((layer) => layer.output.own_sqnr_db), "accent"),
    line(against, layers.map((layer) => layer.output.sqnr_db), "own"),
  ], { xaxis: networkAxis(names), yaxis: axis("dB"), showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } }];
}

function work() {
  const x = layers.map((_, i) => i), names = layers.map((layer) => layer.name);
  const bar = (what, of, tint) => {
    const all = total(layers.map(of));
    return { type: "bar", name: what, x, y: layers.map((layer) => (100 * of(layer)) / all), customdata: names, marker: { color: color(tint) },
      hovertemplate: `<b>%{customdata}</b><br>%{y:.1f} % of the ${what}<extra></extra>` };
  };
  return [[
    bar("multiply-accumulates", (layer) => layer.macs, "accent"),
    bar("parameters", (layer) => layer.parameters, "own"),
  ], { xaxis: networkAxis(names), yaxis: axis("%"), showlegend: true, barmode: "group", legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } }];
}

// One layer

let place = 0; // its row in the sorted table
let current = null; // layer in the dialog
let logarithmic = true;
const dialog = document.getElementById("layer");
const rows = () => [...document.querySelectorAll("#layers tbody tr")];

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const fixed = (value, digits = 2, unit = "") => value === null || value === undefined ? "–" : value.toFixed(digits) + unit;
const compact = (value) => value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString().replace("-", "−");
const share = (value, digits = 2) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;
const range = (low, high) => low === high ? compact(low) : `${compact(low)} … ${compact(high)}`;

function tensorRows(layer) {
  const pair = (f) => [f(layer.weight), f(layer.input)];
  const grid = (f) => pair((tensor) => tensor.grid ? f(tensor.grid) : "–");
  const table = [
    ["quantizer", grid((g) => `${g.quantizer}, ${g.num_bits} bits`)],
    ["SQNR", pair((t) => t.grid ? t.sqnr_db === null ? "exact" : fixed(t.sqnr_db, 2, " dB") : "–")],
    ["cosine similarity", pair((t) => fixed(t.cosine, 5))],
    ["clipped", grid((g) => share(g.clipped, 3) + (g.clipped ? `; ${share(g.clipped_noise, 1)} of the error` : ""))],
    ["levels used", grid((g) => `${g.levels_used} of ${g.levels_available}` + (g.levels_used_per_channel === null ? "" : `; ${fixed(g.levels_used_per_channel, 1)} a channel`))],
    ["entropy of the levels", grid((g) => fixed(g.entropy_bits, 2, " bits"))],
    ["integers", grid((g) => range(g.quant_min, g.quant_max))],
    ["scale", grid((g) => g.scales === 1 ? compact(g.scale_median) : `${range(g.scale_min, g.scale_max)} (${g.scales})`)],
    ["zero point", grid((g) => range(g.zero_point_min, g.zero_point_max))],
    ["values", pair((t) => range(t.minimum, t.maximum))],
    ["mean ± deviation", pair((t) => `${compact(t.mean)} ± ${compact(t.deviation)}`)],
    ["zeros", pair((t) => share(t.zeros))],
  ];
  const kept = table.filter(([, cells]) => cells.some((cell) => cell !== "–"));
  return kept.map(([name, cells]) => `<tr><th scope="row">${name}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("");
}

function scanRows(scan) {
  const row = (name, e) => e ? `<tr><th scope="row">${name}</th><td>${compact(e.kl)}</td><td>${fixed(e.sqnr_db, 1)}</td><td>${share(e.changed, 1)}</td></tr>` : "";
  if (data.basis === "quantized") {
    return row("this layer off", scan.alone) + row("its weight alone off", scan.weight_alone) + row("its inputs alone off", scan.input_alone)
      + (data.reference === "float" ? row("off, against the float model", scan.without) + row("all on, against the float model", data.everything) : "");
  }
  return row("only this layer", scan.alone) + row("its weight alone", scan.weight_alone) + row("its inputs alone", scan.input_alone)
    + row("all but this layer", scan.without) + row("up to this layer", scan.up_to) + row("all layers", data.everything);
}

function describe(layer) {
  const bits = layer.method ? `${layer.method}, ${layer.num_bit_w}-bit weight, ${layer.num_bit_a}-bit inputs` : "float";
  const rank = layer.scan ? `; cost: rank ${layer.scan.rank} of ${layers.filter((l) => l.scan).length}` : "";
  return `${layer.kind} ${layer.shape.join("×")}; ${bits}${layer.folded ? ", BatchNorm folded" : ""}${rank}`;
}

function costText(layer) {
  const cost = `${layer.parameters.toLocaleString("en")} parameters, ${(layer.macs / 1e6).toFixed(2)} M multiply-accumulates`;
  if (!layer.method) return cost;
  const drift = layer.weight_similarity === null ? "" : ` Cosine of the weight with the float model’s: ${fixed(layer.weight_similarity, 4)}.`;
  return `${cost}, ${(layer.bit_operations / 1e9).toFixed(3)} G bit-operations, ${(layer.size_bits / 8192).toFixed(1)} KiB.${drift}`;
}

function outputText(layer) {
  if (!layer.output) return "";
  const own = layer.output.own_sqnr_db === null ? "" : `${fixed(layer.output.own_sqnr_db, 1)} dB after its own rounding; `;
  const there = data.reference === "float" ? "the float model’s" : "its own without quantizers";
  return `<p class="quiet">Output: ${own}${fixed(layer.output.sqnr_db, 1)} dB and cosine ${fixed(layer.output.cosine, 4)} against ${there}.</p>`;
}

function legend() {
  const float = data.reference === "float" ? `<span style="--c: var(--float)">float model</span>` : "";
  const after = data.reference ? `<span style="--c: var(--own)">quantized, levels</span>` : "";
  return `<div class="legend">${float}<span style="--c: var(--accent)">${data.reference ? "before quantization" : "values"}</span>${after}
    <label><input type="checkbox" id="log"${logarithmic ? " checked" : ""}> logarithmic</label></div>`;
}

function figures(what, tensor, title) {
  const levels = tensor.steps ? `<figure><figcaption>${title}: integer levels</figcaption><div class="plot" id="${what}-levels"></div></figure>` : "";
  return `<figure><figcaption>${title}: values</figcaption><div class="plot" id="${what}-values"></div></figure>${levels}`;
}

function open(at) {
  const order = rows();
  place = at;
  const layer = layers[Number(order[at].dataset.layer)];
  for (const element of dialog.querySelectorAll(".plot")) window.Plotly && Plotly.purge(element);
  dialog.innerHTML = `
    <header><div><h3 id="layer-name">${escaped(layer.name).replaceAll(".", ".<wbr>")}</h3><p class="quiet">${escaped(describe(layer))}</p></div>
      <nav><button type="button" data-go="-1" aria-label="layer above" ${at ? "" : "disabled"}>‹</button>
      <button type="button" data-go="1" aria-label="layer below" ${at < order.length - 1 ? "" : "disabled"}>›</button>
      <button type="button" data-go="0" aria-label="close">×</button></nav></header>
    <div class="body">
      ${legend()}
      <div class="pair">${figures("weight", layer.weight, "weight")}${figures("input", layer.input, "inputs")}</div>
      <h4>Weight and inputs</h4>
      <div class="scroll"><table class="figures"><thead><tr><th></th><th>weight</th><th>inputs</th></tr></thead><tbody>${tensorRows(layer)}</tbody></table></div>
      ${layer.scan ? `<h4>Effect on the output of the network</h4>
      <div class="scroll"><table class="figures"><thead><tr><th>${data.basis === "float" ? "quantized" : "quantizers"}</th><th>nats</th><th>dB</th><th>changed</th></tr></thead><tbody>${scanRows(layer.scan)}</tbody></table></div>` : ""}
      <h4>Output and cost</h4>
      ${outputText(layer)}<p class="quiet">${costText(layer)}</p>
    </div>`;
  if (!dialog.open) dialog.showModal();
  dialog.focus();
  dialog.scrollTop = 0;
  current = layer;
  if (window.Plotly) drawLayer(layer); else afterPaint(() => { if (current === layer) drawLayer(layer); });
}

function drawLayer(layer) {
  for (const [what, tensor] of [["weight", layer.weight], ["input", layer.input]]) {
    draw(`${what}-values`, () => valuePlot(tensor));
    if (tensor.steps) draw(`${what}-levels`, () => levelPlot(tensor));
  }
}

const total = (counts) => counts.reduce((sum, count) => sum + count, 0);

// Percentage of the values in each bin.
function shares(counts, scale = 1) {
  const all = total(counts);
  return counts.map((count) => (100 * scale * count) / all);
}

function outline(bins, counts, tint, name, filled, scale = 1) {
  const x = counts.map((_, i) => bins.start + (i + 0.5) * bins.width);
  const y = shares(counts, scale);
  if (filled) return { type: "bar", x, y, width: bins.width, name, marker: { color: color(tint), opacity: 0.45 }, hovertemplate: `%{x:.3g}: %{y:.3g} %<extra>${name}</extra>` };
  return { type: "scatter", mode: "lines", x, y, name, line: { color: color(tint), width: 1.5, shape: "hvh" }, hovertemplate: `%{x:.3g}: %{y:.3g} %<extra>${name}</extra>` };
}

const POWERS = [100, 10, 1, 0.1, 0.01, 0.001, 0.0001, 0.00001, 0.000001];

function countAxis(title, traces) {
  if (!logarithmic) return axis(title, { rangemode: "tozero" });
  const seen = traces.flatMap((trace) => trace.y).filter((y) => y > 0);
  const least = Math.min(...seen) / 2;
  for (const trace of traces) trace.y = trace.y.map((y) => Math.max(y, least / 10)); // empty bins end below the axis
  const labels = POWERS.map((power) => String(Number(power.toFixed(6)) >= 1 ? power : power.toFixed(6).replace(/0+$/, "")));
  return axis(title, { type: "log", tickvals: POWERS, ticktext: labels, range: [Math.log10(least), Math.log10(Math.max(...seen) * 1.4)] });
}

function valuePlot(tensor) {
  const bins = tensor.values;
  const traces = [outline(bins, bins.before, "accent", "before", true)];
  if (bins.after.length) traces.push(outline(bins, bins.after, "own", "quantized", false));
  if (bins.float_model.length) traces.push(outline(bins, bins.float_model, "float", "float model", false));
  return [traces, { xaxis: axis(""), yaxis: countAxis("% of the values", traces), bargap: 0 }];
}

function levelPlot(tensor) {
  const grid = tensor.grid, bins = tensor.steps;
  const levels = grid.levels || grid.counts.map((_, i) => grid.quant_min + i);
  const value = (level) => grid.scales === 1 ? `<br>value ${compact((level - grid.zero_point_min) * grid.scale_median)}` : "";
  const percent = shares(grid.counts);
  const traces = [outline(bins, bins.before, "accent", "before", true, 1 / bins.width)];
  if (bins.float_model.length) traces.push(outline(bins, bins.float_model, "float", "float model", false, 1 / bins.width));
  traces.push({ type: "bar", x: levels, y: percent, width: levels.length > 64 ? 0.9 : 0.24, name: "levels", marker: { color: color("own") },
    text: levels.map((level, i) => `level ${level}${value(level)}<br>${compact(percent[i])} %`), textposition: "none", hovertemplate: "%{text}<extra></extra>" });
  const end = (x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: color("float"), width: 1, dash: "dot" } });
  return [traces, { xaxis: axis(""), yaxis: countAxis("% a level", traces), bargap: 0, shapes: [end(grid.quant_min), end(grid.quant_max)], barmode: "overlay" }];
}

// User actions

function sort(header) {
  const column = [...header.parentNode.children].indexOf(header);
  const text = header.classList.contains("text");
  const first = text || header.textContent.trim() === "#" ? "ascending" : "descending";
  const now = header.getAttribute("aria-sort");
  const order = now ? (now === "ascending" ? "descending" : "ascending") : first;
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => row.children[column].dataset.value;
  const compare = (a, b) => {
    const [p, q] = [key(a), key(b)];
    if (p === "" || q === "") return (p === "") - (q === ""); // rows without a value come last
    return sign * (text ? p.localeCompare(q, "en", { numeric: true }) : p - q);
  };
  document.querySelector("#layers tbody").append(...rows().sort(compare));
}

function theme() {
  const set = document.documentElement.dataset.theme;
  const dark = set ? set === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  redraw();
}

document.querySelector("#layers thead").addEventListener("click", (event) => {
  const header = event.target.closest("th");
  if (header) sort(header);
});
document.querySelector("#layers tbody").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) open(rows().indexOf(row));
});
dialog.addEventListener("click", (event) => {
  const go = event.target.closest("[data-go]");
  if (event.target === dialog || (go && go.dataset.go === "0")) dialog.close();
  else if (go) open(place + Number(go.dataset.go));
});
dialog.addEventListener("keydown", (event) => {
  const to = place + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0);
  if (to !== place && to >= 0 && to < layers.length) open(to);
});
dialog.addEventListener("change", (event) => {
  if (event.target.id === "log") { logarithmic = event.target.checked; redraw(); }
});
for (const button of document.querySelectorAll("[data-metric]")) {
  button.addEventListener("click", () => {
    metric = button.dataset.metric;
    for (const other of document.querySelectorAll("[data-metric]")) other.setAttribute("aria-pressed", String(other === button));
    draw("costs", costs);
  });
}
document.getElementById("theme").addEventListener("click", theme);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.matchMedia("(max-width: 760px)").addEventListener("change", redraw);

function openNamed(name) {
  open(rows().findIndex((row) => layers[Number(row.dataset.layer)].name === name));
}

for (const button of document.querySelectorAll("[data-open]")) {
  button.addEventListener("click", () => openNamed(button.dataset.open));
}

// Plots of the network are drawn when they scroll into view; the rest of the page does not wait for them.
const networkPlots = { costs: [costs, layers.filter((layer) => layer.scan)], signal: [signal, layers], work: [work, layers] };
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    afterPaint(() => {
      const [make, named] = networkPlots[target.id];
      draw(target, make).on("plotly_click", (event) => openNamed(named[event.points[0].x].name));
    });
  }
}, { rootMargin: "100px" });
for (const id in networkPlots) {
  const element = document.getElementById(id);
  if (element) seen.observe(element);
}

afterPaint(() => {
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
  (window.requestIdleCallback || setTimeout)(plotly); // before a click needs it
});
