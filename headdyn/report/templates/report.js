"use strict";
/* The page's script: it has Vega draw a figure when it is first seen, hides what the filter leaves out, copies commands. */
{
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const runs = read("runs"), config = read("config"), views = new Map();
  const options = { config, renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
  let shown = "."; // a regular expression that the numbers of shown runs match

  const filter = async (view) => {
    if (Object.hasOwn(view.getState().signals, "shown")) await view.signal("shown", shown).runAsync();
  };

  async function draw(place) {
    const figure = place.parentElement, spec = JSON.parse(figure.querySelector("script").textContent);
    views.set(place, null);
    const { view } = await vegaEmbed(place, spec, options);
    views.set(place, (place.view = view));
    await filter(view);
  }

  const drawSeen = () =>
    Promise.all([...document.querySelectorAll(".chart")].filter((place) => !views.has(place) && !place.closest("details:not([open]), [hidden]")).map(draw));

  function open(id) {
    for (let part = document.getElementById(id); part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  }

  async function applyFilter() {
    const off = [...document.querySelectorAll("#filter input")].filter((box) => !box.checked);
    const left = Object.keys(runs).filter((number) => !off.some((box) => runs[number][box.dataset.factor] === box.value));
    shown = off.length ? `\\b(${left.join("|") || "none"})\\b` : ".";
    document.getElementById("shown").textContent = `${left.length} of ${Object.keys(runs).length}`;
    for (const part of document.querySelectorAll("[data-run]")) part.hidden = !new RegExp(shown).test(part.dataset.run);
    await drawSeen();
    await Promise.all([...views.values()].filter(Boolean).map(filter));
  }

  document.addEventListener("toggle", drawSeen, true);
  window.addEventListener("hashchange", () => open(location.hash.slice(1)));
  window.addEventListener("beforeprint", () => document.querySelectorAll("details:not(.vega-embed details)").forEach((part) => (part.open = true)));
  document.addEventListener("click", (event) => {
    const source = event.target.dataset?.copy;
    if (source) navigator.clipboard.writeText(document.getElementById(source).textContent).then(() => (event.target.textContent = "copied"));
    const link = event.target.closest?.("a[href^='#']");
    if (link) open(link.hash.slice(1));
  });
  const form = document.getElementById("filter");
  form?.addEventListener("change", applyFilter);
  form?.addEventListener("reset", () => setTimeout(applyFilter));
  if (location.hash) open(location.hash.slice(1));
  (form ? applyFilter() : drawSeen()).finally(() => {
    window.readyAt = performance.now();
    document.documentElement.dataset.ready = "yes";
  });
}
