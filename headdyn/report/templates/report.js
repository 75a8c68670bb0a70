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

function digits(v) {
  if (v === null || v === undefined) return "–";
  const text = v === 0 ? "0" : Math.abs(v) >= 1000 ? String(Math.round(v)) : Math.abs(v) < 1e-3 ? v.toExponential(1) : v.toPrecision(3);
  return text.replaceAll("-", "−");
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
  titles.append(make("th", "metric"), make("th", data.runs[shown[0]].label), make("th", "null"), make("th", "q"));
  for (const run of shown.slice(1)) titles.append(make("th", data.runs[run].label));
  for (const [metric, columns] of Object.entries(data.runs[shown[0]].heads)) {
    const at = (name) => columns[name]?.[layer]?.[head], row = make("tr"), value = make("td");
    value.append(make("b", digits(at("value"))));
    if (at("ci_low") !== null && at("ci_low") !== undefined) value.append(make("span", ` [${digits(at("ci_low"))}, ${digits(at("ci_high"))}]`, "ci"));
    row.append(Object.assign(make("td", metric), { title: data.meanings[metric] ?? "" }), value, make("td", digits(at("null"))), make("td", digits(at("q"))));
    for (const run of shown.slice(1)) row.append(make("td", digits(data.runs[run].heads[metric]?.value?.[layer]?.[head])));
    body.append(row);
  }
  const heading = make("thead"), scroll = make("div", "", "scroll");
  heading.append(titles);
  table.append(heading, body);
  scroll.append(table);
  return scroll;
}

function drawCourse(drawer, run, layer, head) {
  const own = data.runs[run].course, course = data.courses?.[own] ?? own;
  drawer.append(make("h3", "Course over training"));
  if (!course.steps) {
    drawer.append(make("p", "No snapshots of this run were analysed, so its heads have no course to show.", "soft"));
    return;
  }
  const choice = make("select"), place = make("div");
  for (const metric of Object.keys(course.metrics)) choice.append(make("option", metric));
  if (course.metrics.selectivity) choice.value = "selectivity";
  const draw = () => place.replaceChildren(courseChart(course, choice.value, layer, head));
  choice.addEventListener("change", draw);
  drawer.append(choice, place);
  draw();
}

/* The head's values over steps in colour, the layer's other heads in grey. */
function courseChart(course, metric, layer, head) {
  const width = 540, height = 220, left = 52, bottom = 34, ns = "http://www.w3.org/2000/svg";
  const rows = course.metrics[metric], heads = rows.find((m) => m)?.[layer]?.length ?? 0;
  const value = (i, h) => rows[i]?.[layer]?.[h] ?? null;
  const every = course.steps.flatMap((_, i) => Array.from({ length: heads }, (_, h) => value(i, h))).filter((v) => v !== null);
  const low = Math.min(0, ...every), high = Math.max(...every, low + 1e-9), last = Math.max(...course.steps, 1);
  const x = (step) => left + (step / last) * (width - left - 12), y = (v) => height - bottom - ((v - low) / (high - low)) * (height - bottom - 12);
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("class", "chart"); svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const add = (tag, attributes, text) => {
    const node = document.createElementNS(ns, tag);
    for (const [name, v] of Object.entries(attributes)) node.setAttribute(name, v);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  for (const v of [low, (low + high) / 2, high]) {
    add("path", { class: "grid", d: `M${left},${y(v)}H${width - 12}` });
    add("text", { class: "tick y", x: left - 6, y: y(v) + 4 }, digits(v));
  }
  for (const step of [0, Math.round(last / 2), last]) add("text", { class: "tick x", x: x(step), y: height - bottom + 15 }, step);
  add("text", { class: "label", x: (left + width) / 2, y: height - 4 }, `training step · ${metric}`);
  for (const h of [...Array(heads).keys()].filter((h) => h !== head).concat(head)) {
    const points = course.steps.map((step, i) => [step, value(i, h)]).filter(([, v]) => v !== null);
    const stroke = h === head ? PALETTE[0] : "#c5ccd5";
    add("path", { class: "line", stroke, d: "M" + points.map(([s, v]) => `${x(s)},${y(v)}`).join("L") });
    if (h === head) for (const [s, v] of points) add("circle", { cx: x(s), cy: y(v), r: 3.5, fill: stroke }).append(Object.assign(document.createElementNS(ns, "title"), { textContent: `step ${s}: ${digits(v)}` }));
  }
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
