"use strict";
// Texts only ever become text nodes or attributes set by name: nothing of a model's output is parsed
// as HTML. The state of the page is in the address behind "#", so that a view can be linked.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, ...inside) {
  const svg = typeof tag === "string" && tag.startsWith("svg:");
  const node = svg ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...inside.filter((one) => one !== null && one !== undefined));
  return node;
}

// Figures: [value] or [value, low, high]; null where there is none.
const points = (x) => (Math.abs(x) < 0.05 ? "0.0" : x.toFixed(1)).replace("-", "\u2212");
const percent = (x) => `${Math.round(100 * x) || 0}%`.replace("-", "\u2212");
const bare = (x) => percent(x).replace("%", "");
function interval(figure, show) {
  return figure && figure.length > 1 ? `[${show(figure[1])}, ${show(figure[2])}]` : "";
}
const inPoints = (f) => (f ? `${points(f[0])} ${interval(f, points)}`.trim() : "-");
const inPercent = (f) => (f ? `${percent(f[0])} ${interval(f, bare)}`.trim() : "-");

const GLYPHS = {
  "recovers": "\u25B2", "forgets": "\u2713", "forgets (utility not measured)": "\u2713", "holds": "=",
  "not decided": "?", "had not forgotten": "\u25CF", "target forgets": "\u2013", "collapsed": "\u2715",
};
const NONE = data.conditions.findIndex((c) => c[0] === "none");
const verdictOf = (row) => data.rows.verdicts[data.rows.verdict[row]];
const isReference = (place) => place.state === "target" || place.state === "retrained";
const shownCondition = (i) => (data.conditions[i][1] ? data.conditions[i][0] : `(${data.conditions[i][0]})`);

// The number of a place's row at a task and a condition.
const rowAt = new Map();
const total = data.rows.place.length;
for (let i = 0; i < total; i++) rowAt.set(`${data.rows.place[i]} ${data.rows.task[i]} ${data.rows.condition[i]}`, i);
const find = (place, task, condition) => rowAt.get(`${place} ${task} ${condition}`);
const TARGET = data.places.findIndex((p) => p.state === "target");
const RETRAINED = data.places.findIndex((p) => p.state === "retrained");

// ---- the address
const DEFAULTS = {
  task: data.focus[0], at: data.focus[1], q: "", "only-task": "", family: "", condition: "", verdict: "",
  sort: "", cols: "", open: "", sample: "",
};
let state = { ...DEFAULTS };
function readAddress() {
  const given = location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : new URLSearchParams();
  state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) if (given.has(name)) state[name] = given.get(name);
  if (!data.tasks.some((t) => t[0] === state.task)) state.task = DEFAULTS.task;
  if (!data.conditions.some((c) => c[0] === state.at)) state.at = DEFAULTS.at;
}
function change(update) {
  Object.assign(state, update);
  const kept = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const address = new URLSearchParams(kept).toString();
  history.replaceState(null, "", address ? `#${address}` : location.href.split("#")[0]);
}

// ---- what is said beside a mark, on hover and on focus
const tip = at("tip");
function told(node, text) {
  const show = () => {
    tip.textContent = text;
    tip.hidden = false;
    const box = node.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), wide - own.width - 8);
    const above = box.top - own.height - 8;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above < 4 ? box.bottom + 8 : above) + window.scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  node.addEventListener("mouseenter", show);
  node.addEventListener("focus", show);
  node.addEventListener("mouseleave", hide);
  node.addEventListener("blur", hide);
  node.setAttribute("aria-label", text.replaceAll("\n", ". "));
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// One tab stop for many marks; arrows go between them.
function rove(nodes, across) {
  nodes.forEach((node, i) => {
    node.setAttribute("tabindex", i === 0 ? "0" : "-1");
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
      const next = event.key === "Home" ? 0 : event.key === "End" ? nodes.length - 1 : step && i + step;
      if (next === undefined || !nodes[next]) return;
      event.preventDefault();
      nodes.forEach((other) => other.setAttribute("tabindex", "-1"));
      nodes[next].setAttribute("tabindex", "0");
      nodes[next].focus();
    });
  });
}

function fill(select, options, chosen, change) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = chosen;
  select.onchange = () => change(select.value);
}
