// What the pages do beyond being read: the tree moves and is searched, cells tell their pair, a
// recipe is copied, Now follows the daemon. All of it works without this, if less well.
"use strict";

const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function tree(box) {
  const svg = one("svg", box);
  const whole = { x: 0, y: 0, w: Number(svg.dataset.width), h: Number(svg.dataset.height) };
  const nodes = all(".node", svg);
  const edges = all(".edges path", svg);
  const place = (node) => {
    const at = node.transform.baseVal[0].matrix;
    return { x: at.e + 94, y: at.f + 15 };
  };
  let view = { ...whole };

  const size = () => ({ w: svg.clientWidth || 1, h: svg.clientHeight || 1 });
  // One view, in the tree's units, with the box's own proportions.
  function show(x, y, scale) {
    const box = size();
    const w = box.w / scale, h = box.h / scale;
    const margin = 80;
    view = {
      x: w >= whole.w ? (whole.w - w) / 2 : Math.min(Math.max(x, -margin), whole.w - w + margin),
      y: h >= whole.h ? 0 : Math.min(Math.max(y, -margin), whole.h - h + margin),
      w, h,
    };
    svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`);
  }
  const scale = () => size().w / view.w;
  const least = () => Math.min(size().w / whole.w, size().h / whole.h, 1);
  const bounded = (wanted) => Math.min(Math.max(wanted, least()), 3);
  function zoom(factor, at) {
    const before = scale(), after = bounded(before * factor);
    const box = size(), point = at || { x: box.w / 2, y: box.h / 2 };
    show(view.x + point.x / before - point.x / after, view.y + point.y / before - point.y / after, after);
  }
  const fit = () => show(0, 0, least());
  const centre = (node, wanted = scale()) => {
    const at = place(node), box = size();
    show(at.x - box.w / wanted / 2, at.y - box.h / wanted / 2, wanted);
  };
  // All of it where that can be read; else the best model and whoever stands about it.
  function begin() {
    const best = one(".node.best", svg) || nodes[nodes.length - 1];
    if (least() >= 0.6 || !best) fit();
    else centre(best, 0.85);
  }

  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    const frame = svg.getBoundingClientRect();
    const at = { x: event.clientX - frame.left, y: event.clientY - frame.top };
    if (event.ctrlKey || !event.shiftKey) zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), at);
    else show(view.x + event.deltaY / scale(), view.y, scale());
  }, { passive: false });

  const fingers = new Map();
  let moved = 0;
  box.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = 0;
  });
  addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    if (others.length) {
      const apart = (at) => Math.hypot(at.x - others[0].x, at.y - others[0].y) || 1;
      const frame = svg.getBoundingClientRect();
      zoom(apart(now) / apart(before), {
        x: (now.x + others[0].x) / 2 - frame.left, y: (now.y + others[0].y) / 2 - frame.top,
      });
    } else {
      show(view.x - (now.x - before.x) / scale(), view.y - (now.y - before.y) / scale(), scale());
    }
    moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    fingers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, (event) => fingers.delete(event.pointerId));
  // Whoever moved the tree did not mean to open a model.
  box.addEventListener("click", (event) => { if (moved > 6) event.preventDefault(); }, true);
  box.addEventListener("dragstart", (event) => event.preventDefault());

  box.addEventListener("keydown", (event) => {
    const step = 80 / scale();
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) show(view.x + moves[event.key][0], view.y + moves[event.key][1], scale());
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  for (const button of all("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom === "all") fit();
      else zoom(button.dataset.zoom === "in" ? 1.3 : 1 / 1.3);
    });
  }

  // Pointing at a model lights the lines to its parents and children.
  const light = (node) => {
    const index = node && node.dataset.i;
    for (const edge of edges) edge.classList.toggle("lit", edge.dataset.p === index || edge.dataset.c === index);
  };
  for (const node of nodes) {
    node.addEventListener("pointerenter", () => light(node));
    node.addEventListener("pointerleave", () => light(null));
    node.addEventListener("focus", () => {
      light(node);
      const at = place(node);
      if (at.x < view.x || at.x > view.x + view.w || at.y < view.y || at.y > view.y + view.h) centre(node);
    });
  }

  const find = one("#find"), found = one("#found");
  let hits = [], at = -1;
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    hits = wanted ? nodes.filter((node) => one("title", node).textContent.toLowerCase().includes(wanted)) : [];
    at = -1;
    svg.classList.toggle("finding", wanted !== "");
    for (const node of nodes) {
      node.classList.toggle("hit", hits.includes(node));
      node.classList.remove("at");
    }
    found.textContent = wanted ? `${hits.length} found${hits.length ? ", Enter goes there" : ""}` : "";
  });
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !hits.length) return;
    if (at >= 0) hits[at].classList.remove("at");
    at = (at + (event.shiftKey ? hits.length - 1 : 1)) % hits.length;
    hits[at].classList.add("at");
    centre(hits[at], Math.max(scale(), 0.85));
    found.textContent = `${at + 1} of ${hits.length}`;
  });

  begin();
  addEventListener("resize", () => show(view.x, view.y, bounded(scale())));
}

function matrix(svg) {
  const { models, matrix: values } = JSON.parse(one("#matrix").textContent);
  const told = one("#pair");
  if (!values.length) return;
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const side = Math.min(frame.width, frame.height);
    const cell = (at, low, room) => Math.floor(((at - low - (room - side) / 2) / side) * models.length);
    const row = cell(event.clientY, frame.top, frame.height), column = cell(event.clientX, frame.left, frame.width);
    if (!models[row] || !models[column]) return;
    const value = values[row][column];
    told.textContent = `${models[row]} and ${models[column]}: ${value === null ? "unknown" : value.toFixed(3)}`;
  });
}

// Now is made anew by the server whenever something changed; if nobody tells, it looks for itself.
function live(main) {
  let busy = false;
  const wanted = new Map(); // address: the part of the page that it fills
  async function look(address, part) {
    wanted.set(address, part);
    if (busy) return;
    busy = true;
    for (const [each, place] of wanted) {
      wanted.delete(each);
      try {
        const answer = await fetch(each);
        if (answer.ok) one(place).innerHTML = await answer.text();
      } catch { /* the server is away: the next look may find it */ }
    }
    busy = false;
  }
  const all_of_it = () => look(main.dataset.live, "main");
  const source = new EventSource("live");
  source.addEventListener("change", all_of_it);
  source.addEventListener("step", () => look("step", "#step"));
  setInterval(() => { if (source.readyState !== EventSource.OPEN) all_of_it(); }, 10000);
}

for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      button.textContent = "Selected";
    }
  });
}
// In the report a model is a section that opens when something leads to it.
function open() {
  const aim = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (aim && aim.matches("details")) { aim.open = true; aim.scrollIntoView(); }
}
addEventListener("hashchange", open);
open();
for (const box of all(".treebox")) tree(box);
for (const svg of all(".matrix.dense")) matrix(svg);
for (const main of all("[data-live]")) live(main);
