"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, text, name) => Object.assign(document.createElement(tag), { textContent: text ?? "", className: name ?? "" });

/* ---- which runs are shown ---- */

function applyFilter() {
  const off = {};
  for (const box of document.querySelectorAll("#filter input")) {
    if (!box.checked) (off[box.dataset.factor] ??= new Set()).add(box.value);
  }
  const hidden = new Set();
  for (const [number, run] of Object.entries(data.runs)) {
    if (Object.entries(run.levels).some(([factor, level]) => off[factor]?.has(level))) hidden.add(number);
  }
  for (const mark of document.querySelectorAll("[data-run]")) {
    mark.classList.toggle("hidden", mark.dataset.run.split(" ").every((number) => hidden.has(number)));
  }
  const all = Object.keys(data.runs).length;
  byId("shown").textContent = `${all - hidden.size} of ${all}`;
}

/* ---- attention patterns ---- */

const shades = Uint8Array.from(atob(SHADES), (c) => c.charCodeAt(0));
const parsed = {};
const unpacked = {};

function patternsOf(run) {
  const source = byId(`patterns-${run}`);
  return (parsed[run] ??= source ? JSON.parse(source.textContent) : null);
}

/* The bytes of a head on one sequence; null where the page does not hold them. */
function unpack(run, layer, head, sequence) {
  const key = `${run} ${layer} ${head} ${sequence}`;
  return (unpacked[key] ??= (async () => {
    const packed = patternsOf(run)?.heads[`${layer}.${head}`]?.[sequence];
    if (!packed) return null;
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  })());
}

const EDGE = { left: 36, bottom: 34, top: 4, right: 4, strip: 5 };

async function drawPattern(canvas, run, layer, head, sequence) {
  const bytes = await unpack(run, layer, head, sequence);
  if (!bytes) return false;
  const kept = patternsOf(run), length = kept.length, topics = kept.topics[sequence];
  const pixels = new ImageData(length, length);
  for (let query = 0, at = 0; query < length; query++) {
    for (let key = 0; key < length; key++) {
      const place = 4 * (query * length + key), shade = key <= query ? 3 * bytes[at++] : -1;
      for (let c = 0; c < 3; c++) pixels.data[place + c] = shade < 0 ? 244 : shades[shade + c];
      pixels.data[place + 3] = 255;
    }
  }
  const small = Object.assign(document.createElement("canvas"), { width: length, height: length });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const size = Number((canvas.dataset.size ??= canvas.width)), ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(size * ratio);
  canvas.style.width = canvas.style.height = `${size}px`;
  const ink = canvas.getContext("2d"), side = size - EDGE.left - EDGE.right, high = size - EDGE.top - EDGE.bottom;
  const x = (position) => EDGE.left + (position / length) * side, y = (position) => EDGE.top + (position / length) * high;
  ink.scale(ratio, ratio);
  ink.imageSmoothingEnabled = false;
  ink.drawImage(small, EDGE.left, EDGE.top, side, high);
  ink.strokeStyle = "rgb(255 255 255 / 75%)";
  topics.forEach((topic, t) => {
    ink.fillStyle = PALETTE[topic % PALETTE.length];
    ink.fillRect(x(t), EDGE.top + high, side / length + 0.5, EDGE.strip);
    ink.fillRect(EDGE.left - EDGE.strip, y(t), EDGE.strip, high / length + 0.5);
    if (t && topic !== topics[t - 1]) {
      ink.beginPath();
      ink.moveTo(x(t), y(t)); ink.lineTo(x(t), EDGE.top + high);
      ink.moveTo(EDGE.left, y(t)); ink.lineTo(x(t), y(t));
      ink.stroke();
    }
  });
  ink.fillStyle = "#465160";
  ink.font = "10px system-ui, sans-serif";
  const ticks = [0, Math.round(length / 2), length];
  ink.textAlign = "center";
  for (const t of ticks) ink.fillText(t, Math.min(x(t), size - 9), EDGE.top + high + 16);
  ink.fillText("key position (tokens)", x(length / 2), EDGE.top + high + 29);
  ink.textAlign = "right";
  for (const t of ticks) ink.fillText(t, EDGE.left - 8, Math.min(Math.max(y(t) + 3, 10), EDGE.top + high));
  ink.save();
  ink.translate(9, y(length / 2)); ink.rotate(-Math.PI / 2); ink.textAlign = "center";
  ink.fillText("query position", 0, 0);
  ink.restore();
  canvas.reading = { bytes, kept, sequence, length, side, high };
  return true;
}

function readPattern(event) {
  const canvas = event.target.closest("canvas"), tip = byId("tip"), r = canvas?.reading;
  if (!r) return tip.classList.add("hidden");
  const box = canvas.getBoundingClientRect();
  const shrink = box.width / Number(canvas.dataset.size);
  const key = Math.floor((((event.clientX - box.left) / shrink - EDGE.left) / r.side) * r.length);
  const query = Math.floor((((event.clientY - box.top) / shrink - EDGE.top) / r.high) * r.length);
  if (key < 0 || query < 0 || query >= r.length || key > query) return tip.classList.add("hidden");
  const weight = (r.bytes[(query * (query + 1)) / 2 + key] / 255) ** 2;
  const tokens = r.kept.tokens[r.sequence], topics = r.kept.topics[r.sequence], names = r.kept.topic_names;
  tip.textContent =
    `query ${query}: token ${tokens[query]}, ${names[topics[query]]}\n` +
    `key ${key}: token ${tokens[key]}, ${names[topics[key]]}\n` +
    `weight ${weight.toPrecision(2)}${topics[key] === topics[query] ? " (same topic)" : " (other topic)"}`;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 230)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - 76)}px`;
  return tip.classList.remove("hidden");
}

/* ---- one head ---- */

/* Numbers as report/numbers.py writes them: decimals that the interval supports, or four significant digits. */
function decimals(value, low, high) {
  const within = (places) => Math.min(6, Math.max(0, places));
  if (high > low) return within(-Math.floor(Math.log10((high - low) / 7.1)));
  return value === 0 ? 3 : within(3 - Math.floor(Math.log10(Math.abs(value))));
}

function fixed(value, places) {
  const text = value.toFixed(places);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

const pValue = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(p < 0.0995 ? 3 : 2));
const thousands = (step) => String(step).replace(/\B(?=(\d{3})+$)/g, " ");

/* One head's number as [value, interval, null, test]; empty texts where there is nothing to say. */
function spelled(columns, layer, head) {
  const at = (name) => columns?.[name]?.[layer]?.[head] ?? null;
  const [value, low, high, none, p, q] = ["value", "ci_low", "ci_high", "null", "p", "q"].map(at);
  if (value === null) return ["–", "", "", ""];
  const bounded = low !== null && high !== null, places = bounded ? decimals(value, low, high) : decimals(value);
  return [
    fixed(value, places),
    bounded ? `[${fixed(low, places)}, ${fixed(high, places)}]` : "",
    none === null ? "" : none === 0 ? "0" : fixed(none, Math.max(3, places)),
    q !== null ? `q ${pValue(q)}` : p !== null ? `p ${pValue(p)}` : "",
  ];
}

function openHead(run, layer, head) {
  const drawer = byId("drawer"), about = data.runs[run];
  for (const cell of document.querySelectorAll("g.cell.chosen")) cell.classList.remove("chosen");
  for (const cell of document.querySelectorAll(`g.cell[data-head="${run} ${layer} ${head}"]`)) cell.classList.add("chosen");
  const arms = [Number(run), ...about.siblings.filter((other) => other !== Number(run))];
  drawer.replaceChildren(make("h2", `Layer ${layer}, head ${head}`), make("p", about.label, "soft"));
  const close = make("button", "close", "close");
  close.addEventListener("click", closeHead);
  drawer.append(close);
  drawPatterns(drawer, arms, layer, head);
  drawer.append(make("h3", "Statistics"), statisticsTable(arms, layer, head));
  drawCourse(drawer, run, layer, head);
  drawer.classList.remove("hidden");
  drawer.scrollTop = 0;
  close.focus({ preventScroll: true });
}

function closeHead() {
  byId("drawer").classList.add("hidden");
  const chosen = document.querySelector("g.cell.chosen");
  if (chosen) chosen.focus({ preventScroll: true });
}

function drawPatterns(drawer, arms, layer, head) {
  if (!Object.values(data.runs).some((about) => about.patterns)) return;
  drawer.append(make("h3", "Attention patterns"));
  const there = arms.filter((run) => data.runs[run].patterns && patternsOf(run).heads[`${layer}.${head}`]);
  if (!there.length) {
    drawer.append(make("p", "This page does not hold the patterns of this head; the run's patterns.safetensors may.", "soft"));
    return;
  }
  const choice = make("select"), count = Math.min(...there.map((run) => patternsOf(run).sequences));
  for (let i = 0; i < count; i++) choice.append(Object.assign(make("option", `sequence ${i + 1}`), { value: i }));
  const strip = make("div", "", "strip below");
  const figures = there.map((run) => {
    const figure = make("figure"), canvas = Object.assign(make("canvas"), { width: 268, height: 268 });
    figure.append(canvas, make("figcaption", data.runs[run].label));
    strip.append(figure);
    return [canvas, run];
  });
  const draw = () => figures.forEach(([canvas, run]) => drawPattern(canvas, run, layer, head, Number(choice.value)));
  choice.addEventListener("change", draw);
  drawer.append(choice, topicKey(there[0]), strip);
  if (there.length > 1) drawer.append(make("p", "The same head of the same training: its arms differ in what became of the positions.", "soft"));
  draw();
}

function statisticsTable(arms, layer, head) {
  const table = make("table"), titles = make("tr"), body = make("tbody"), shown = arms.filter((run) => data.runs[run].heads);
  titles.append(make("th", "metric"), make("th", data.runs[shown[0]].label), make("th", "null"), make("th", "p or q"));
  for (const run of shown.slice(1)) titles.append(make("th", data.runs[run].label));
  for (const [metric, columns] of Object.entries(data.runs[shown[0]].heads)) {
    const row = make("tr"), name = Object.assign(make("td", metric), { title: data.meanings[metric] ?? "" }), cell = make("td");
    const [value, interval, none, test] = spelled(columns, layer, head);
    if (data.units[metric]) name.append(make("span", ` ${data.units[metric]}`, "soft"));
    cell.append(make("b", value), ...(interval ? [make("span", ` ${interval}`, "ci")] : []));
    row.append(name, cell, make("td", none), make("td", test));
    for (const run of shown.slice(1)) row.append(make("td", spelled(data.runs[run].heads[metric], layer, head)[0]));
    body.append(row);
  }
  const heading = make("thead"), scroll = make("div", "", "scroll");
  heading.append(titles);
  table.append(heading, body);
  scroll.append(table);
  return scroll;
}

function drawCourse(drawer, run, layer, head) {
  const course = data.courses[data.runs[run].course];
  drawer.append(make("h3", "Course over training"));
  if (!course) {
    drawer.append(make("p", "No snapshots of this training were analysed, so its heads have no course to show.", "soft"));
    return;
  }
  const choice = make("select"), place = make("div");
  for (const metric of Object.keys(course.metrics)) choice.append(make("option", metric));
  if (course.metrics.selectivity) choice.value = "selectivity";
  const draw = () => place.replaceChildren(courseChart(course, choice.value, layer, head), ...courseKey(course, choice.value));
  choice.addEventListener("change", draw);
  if (data.runs[run].recalibrated) drawer.append(make("p", "Of the training that this run began with, before its positions changed.", "soft"));
  drawer.append(choice, place);
  draw();
}

/* What the chart draws, as far as it was recorded. */
function courseKey(course, metric) {
  const { ci_low: low, null: none } = course.metrics[metric];
  const parts = ["blue: this head", low && "band: 95 % interval", none && "dashes: its null", "grey: the layer's other heads"];
  return [make("p", parts.filter(Boolean).join("; "), "soft")];
}

/* Round numbers from low to high, and the decimals that tell them apart. */
function niceTicks(low, high, wanted) {
  const raw = (high - low) / wanted, size = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 2.5, 5, 10].find((m) => size * m >= raw * 0.85), step = size * factor, ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) ticks.push(k * step);
  return [ticks, Math.min(20, Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (factor === 2.5)))];
}

/* Where steps stand from 0 to 1, and their ticks. On a log axis step 0 is shown at the left end, like 0.5. */
function stepScale(steps, log) {
  const first = Math.min(...steps), last = Math.max(...steps, 1);
  if (!log) return [(step) => step / last, niceTicks(0, last, 4)[0].filter(Number.isInteger)];
  const place = (step) => Math.log10(Math.max(step, 0.5)), powers = [];
  for (let power = 1; power <= last; power *= 10) powers.push(power);
  const whole = powers.filter((power) => power >= first), every = powers.flatMap((power) => [power, 2 * power, 5 * power]);
  const ticks = whole.length > 2 ? whole : every.filter((step) => step >= first && step <= last);
  const width = place(last) - place(first) || 1;
  return [(step) => (place(step) - place(first)) / width, first ? ticks : [0, ...ticks]];
}

/* The head's values over steps in colour with interval and null, the layer's other heads in grey. */
function courseChart(course, metric, layer, head) {
  const width = 540, height = 220, left = 58, bottom = 34, ns = "http://www.w3.org/2000/svg";
  const columns = course.metrics[metric], rows = columns.value, heads = rows.find((m) => m)?.[layer]?.length ?? 0;
  const at = (name, i, h) => columns[name]?.[i]?.[layer]?.[h] ?? null;
  const points = (name, h) => course.steps.map((step, i) => [step, at(name, i, h)]).filter(([, v]) => v !== null);
  const every = [...Array(heads).keys()].flatMap((h) => points("value", h)).concat(...["ci_low", "ci_high", "null"].map((name) => points(name, head)));
  const low = Math.min(0, ...every.map(([, v]) => v)), high = Math.max(...every.map(([, v]) => v), low + 1e-9);
  const [share, stepTicks] = stepScale(course.steps, course.log_x);
  const x = (step) => left + share(step) * (width - left - 16), y = (v) => height - bottom - ((v - low) / (high - low)) * (height - bottom - 12);
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("class", "chart"); svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const add = (tag, attributes, text) => {
    const node = document.createElementNS(ns, tag);
    for (const [name, v] of Object.entries(attributes)) node.setAttribute(name, v);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  const path = (pairs) => "M" + pairs.map(([step, v]) => `${x(step)},${y(v)}`).join("L");
  const [ticks, places] = niceTicks(low, high, 4);
  for (const v of ticks) {
    add("path", { class: "grid", d: `M${left},${y(v)}H${width - 16}` });
    add("text", { class: "tick y", x: left - 6, y: y(v) + 4 }, fixed(v, places));
  }
  for (const step of stepTicks) add("text", { class: "tick x", x: x(step), y: height - bottom + 15 }, thousands(step));
  const unit = data.units[metric];
  add("text", { class: "label", x: (left + width) / 2, y: height - 4 }, `training step${course.log_x ? " (log scale)" : ""} · ${metric}${unit ? ` (${unit})` : ""}`);
  const upper = points("ci_high", head), lower = points("ci_low", head).reverse(), none = points("null", head);
  if (upper.length > 1) add("path", { class: "band", d: `${path(upper)}L${path(lower).slice(1)}Z` });
  for (const h of [...Array(heads).keys()].filter((h) => h !== head).concat(head)) {
    add("path", { class: "line", stroke: h === head ? PALETTE[0] : "#c5ccd5", d: path(points("value", h)) });
  }
  if (none.length > 1) add("path", { class: "reference", "stroke-dasharray": "7 3", d: path(none) });
  course.steps.forEach((step, i) => {
    const [value, interval] = spelled(Object.fromEntries(Object.entries(columns).map(([name, matrices]) => [name, matrices[i]])), layer, head);
    if (value === "–") return;
    const mark = add("circle", { cx: x(step), cy: y(at("value", i, head)), r: 3.5, fill: PALETTE[0] });
    mark.append(Object.assign(document.createElementNS(ns, "title"), { textContent: `step ${thousands(step)}: ${value} ${interval}`.trim() }));
  });
  return svg;
}

function topicKey(run) {
  const line = make("div", "", "topics");
  patternsOf(run).topic_names.forEach((name, i) => {
    const entry = make("span"), square = make("i");
    square.style.background = PALETTE[i % PALETTE.length];
    entry.append(square, name);
    line.append(entry);
  });
  return line;
}

/* ---- start ---- */

document.addEventListener("click", (event) => {
  const cell = event.target.closest("[data-head]"), copy = event.target.closest("[data-copy]");
  if (cell) openHead(...cell.dataset.head.split(" ").map(Number));
  if (copy) {
    navigator.clipboard?.writeText(byId(copy.dataset.copy).textContent);
    copy.textContent = "copied";
  }
});
document.addEventListener("keydown", (event) => {
  const cell = event.target.closest?.("[data-head]");
  if (cell && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    openHead(...cell.dataset.head.split(" ").map(Number));
  }
  if (event.key === "Escape") closeHead();
});
document.addEventListener("mousemove", readPattern);
if (byId("filter")) {
  byId("filter").addEventListener("change", applyFilter);
  byId("filter").addEventListener("reset", () => setTimeout(applyFilter));
  applyFilter();
}
(async () => {
  const able = "DecompressionStream" in window;
  if (!able && byId("topics")) byId("topics").textContent = "This browser lacks DecompressionStream, so that it cannot draw the patterns.";
  const canvases = !able ? [] : [...document.querySelectorAll("canvas[data-pattern]")];
  if (canvases.length) byId("topics").replaceWith(topicKey(canvases[0].dataset.pattern.split(" ")[0]));
  for (const canvas of canvases) {
    const [run, layer, head] = canvas.dataset.pattern.split(" ");
    await drawPattern(canvas, run, layer, head, 0);
  }
  window.readyAt = performance.now();
  document.documentElement.dataset.ready = "yes";
})();
