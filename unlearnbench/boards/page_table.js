// ---- the table: only the rows that are looked at are in the document
const PAGE = window.matchMedia("(max-width: 48rem)").matches ? 25 : 100;
const R = data.rows, tbody = at("table").tBodies[0];
const figureCell = (figure, show, one) => (figure ? [show(figure[0]) + (one || ""), interval(figure, show === percent ? bare : show)] : ["-", ""]);
const place = (row) => data.places[R.place[row]];
const rankKey = (row) => (place(row).rank === null ? 1e6 + R.place[row] : place(row).rank);
// Name, head, whether it stands in the table at first, what it sorts by, and what it shows.
const COLUMNS = [
  ["rank", "rank", false, rankKey, (i) => place(i).position],
  ["entry", "entry", true, (i) => place(i).name, null],
  ["task", "task", true, (i) => data.tasks[R.task[i]][0], (i) => data.tasks[R.task[i]][0]],
  ["condition", "condition", true, (i) => R.condition[i], (i) => shownCondition(R.condition[i])],
  ["n", "samples", false, (i) => R.n[i], (i) => [String(R.n[i]), ""]],
  ...[["value", "value", true, points], ["excess", "excess", true, points], ["utility", "utility", false, percent],
    ["change", "change", true, points], ["recovered", "came back", true, percent], ["retained", "retained", false, percent]]
    .map(([name, head, first, show]) => [name, head, first, (i) => (R[name][i] ? R[name][i][0] : null),
      (i) => figureCell(R[name][i], show, name === "change" && R.significant[i] ? "*" : "")]),
  ["verdict", "verdict", true, (i) => verdictOf(i), (i) => (verdictOf(i) ? `${GLYPHS[verdictOf(i)] || ""} ${verdictOf(i)}` : "-")],
];
const USUAL = COLUMNS.filter((c) => c[2]).map((c) => c[0]).join(".");
let limit = PAGE, rows = [];

function columns() {
  const chosen = new Set((state.cols || USUAL).split("."));
  return COLUMNS.filter((c) => c[0] === "entry" || chosen.has(c[0]));
}

function matching() {
  const wanted = state.q.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  for (let i = 0; i < total; i++) {
    const condition = data.conditions[R.condition[i]];
    if (state["only-task"] && data.tasks[R.task[i]][0] !== state["only-task"]) continue;
    if (state.family && condition[2] !== state.family) continue;
    if (state.condition && condition[0] !== state.condition) continue;
    if (state.verdict && verdictOf(i) !== state.verdict) continue;
    const text = `${place(i).name} ${place(i).position} ${data.tasks[R.task[i]][0]} ${condition[0]} ${verdictOf(i)}`.toLowerCase();
    if (wanted.every((word) => text.includes(word))) found.push(i);
  }
  const [name, order] = state.sort.split(":"), column = COLUMNS.find((c) => c[0] === name);
  if (column) {
    const sign = order === "down" ? -1 : 1, keys = new Map(found.map((i) => [i, column[3](i)]));
    const missing = (k) => k === null || k === "";
    found.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y); // what is missing comes last
      return sign * (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) || a - b;
    });
  }
  return found;
}

const keyOf = (row) => [place(row).name, data.tasks[R.task[row]][0], data.conditions[R.condition[row]][0]].join("~");

function drawHead() {
  const [sorted, order] = state.sort.split(":");
  at("table").tHead.replaceChildren(make("tr", { role: "row" }, ...columns().map(([name, head, , key]) => {
    const numeric = ["n", "value", "excess", "utility", "change", "recovered", "retained"].includes(name);
    const sort = name !== sorted ? "none" : order === "down" ? "descending" : "ascending";
    const button = make("button", { type: "button", onclick: () => {
      change({ sort: sort === "ascending" ? `${name}:down` : `${name}:up` });
      drawTable();
      at("table").querySelector(`[data-column="${name}"] button`).focus();
    } }, head);
    return make("th", { scope: "col", role: "columnheader", "aria-sort": sort, "data-column": name, class: numeric ? "number" : null }, button);
  })));
}

function rowOf(i) {
  const line = make("tr", { role: "row", class: isReference(place(i)) ? "reference" : null });
  for (const [name, head, , , show] of columns()) {
    if (name === "entry") {
      const open = make("button", { type: "button", class: "open", "aria-expanded": "false", onclick: () => toggle(line, i) }, make("bdi", {}, place(i).name));
      line.append(make("th", { scope: "row", role: "rowheader" }, open));
      continue;
    }
    const shown = show(i);
    if (typeof shown === "string") line.append(make("td", { role: "cell", "data-label": head }, shown));
    else line.append(make("td", { role: "cell", class: "number", "data-label": head }, `${shown[0]} `, name === "n" ? null : make("span", { class: "ci" }, shown[1])));
  }
  return line;
}

function drawTable() {
  drawHead();
  rows = matching();
  tbody.replaceChildren(...rows.slice(0, limit).map(rowOf));
  at("count").textContent = `${rows.length} of ${total} rows`;
  at("more").hidden = rows.length <= limit;
  at("more").textContent = `Show ${Math.min(PAGE, rows.length - limit)} more of ${rows.length} rows`;
  const opened = rows.findIndex((i) => keyOf(i) === state.open);
  if (opened >= 0 && opened < limit) toggle(tbody.rows[opened], rows[opened], true);
}

function toggle(line, i, quiet) {
  const button = line.querySelector(".open"), open = button.getAttribute("aria-expanded") === "true";
  if (open) line.nextElementSibling.remove();
  else line.after(make("tr", { role: "row", class: "opened" }, make("td", { role: "cell", class: "detail", colspan: columns().length }, make("div", {}, ...detail(i)))));
  button.setAttribute("aria-expanded", String(!open));
  if (!quiet) change({ open: open ? "" : keyOf(i), sample: "" });
}

// From the heat map: the row, wherever it is, opened and in sight.
function openRow(i) {
  change({ ...DEFAULTS, task: state.task, at: state.at, cols: state.cols, "only-task": data.tasks[R.task[i]][0], q: place(i).name, open: keyOf(i) });
  drawFilters();
  limit = Math.max(PAGE, matching().indexOf(i) + 1);
  drawTable();
  const line = tbody.rows[rows.indexOf(i)];
  line.scrollIntoView({ block: "center" });
  line.querySelector(".open").focus();
}

function detail(i) {
  const condition = R.condition[i], own = R.place[i], parts = [], name = data.conditions[condition][0];
  for (const note of place(i).notes) parts.push(make("p", { class: "note" }, make("bdi", {}, note)));
  const value = (p, task, c) => { const row = find(p, task, c); return inPoints(row === undefined ? null : R.value[row]); };
  const heads = ["task", "full precision", name, `target at ${name}`, "retrained", "change", "came back", "verdict"];
  const body = data.tasks.map(([task], k) => {
    const row = find(own, k, condition);
    if (row === undefined) return null;
    const cells = [value(own, k, NONE), value(own, k, condition), value(TARGET, k, condition), value(RETRAINED, k, NONE), inPoints(R.change[row]) + (R.significant[row] ? " *" : ""), inPercent(R.recovered[row])];
    return make("tr", {}, make("th", { scope: "row" }, task), ...cells.map((c) => make("td", { class: "number" }, c)), make("td", {}, verdictOf(row)));
  });
  const table = make("table", { class: "plain" }, make("thead", {}, make("tr", {}, ...heads.map((h, k) => make("th", { scope: "col", class: k && k < 7 ? "number" : null }, h)))), make("tbody", {}, ...body));
  parts.push(make("h3", {}, "Metrics"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Metrics" }, table));
  parts.push(make("h3", {}, "Samples"), ...viewer(i));
  parts.push(make("h3", {}, "Provenance"));
  for (const [, , training, facts] of data.runs.filter((run) => run[0] === own && run[1] === condition)) {
    const pairs = [["training", training], ...facts].flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, make("bdi", {}, v))]);
    parts.push(make("dl", { class: "facts" }, ...pairs));
  }
  return parts;
}

function viewer(i) {
  const task = data.tasks[R.task[i]][0], condition = R.condition[i];
  const found = data.samples[R.place[i]].filter((s) => s[0] === task && s[4].some((o) => o[0] === condition));
  if (!found.length) {
    const why = data.texts.length ? "No texts of this row are in this page; a task of likelihoods has none." : "This board publishes no texts.";
    return [make("p", { class: "soft" }, why)];
  }
  const score = (sample, c) => (sample[4].find((o) => o[0] === c) || [])[2];
  const rise = (sample) => score(sample, condition) - (score(sample, NONE) ?? score(sample, condition));
  found.sort((a, b) => rise(b) - rise(a));
  const box = make("div", { class: "viewer", role: "region", "aria-live": "polite", "aria-label": "Sample" });
  const select = make("select", { class: "samples" });
  const options = found.map((s, k) => [String(k), `${s[1]}: ${score(s, NONE) ?? "-"} \u2192 ${score(s, condition)}`]);
  const show = (k) => {
    const [, , prompt, target, outputs] = found[k], reference = data.texts[target];
    const inTurn = [NONE, condition, ...outputs.map((o) => o[0])].filter((c, n, all) => all.indexOf(c) === n);
    const boxes = inTurn.map((c) => outputs.find((o) => o[0] === c)).filter(Boolean).map(([c, text, points]) => {
      const title = `${c === NONE ? "full precision" : data.conditions[c][0]}: ${points}`;
      return textBox(title, data.texts[text], overlap(data.texts[text], reference));
    });
    box.replaceChildren(textBox("Prompt", data.texts[prompt], [], "wide"), textBox("Reference", reference, []), ...boxes);
  };
  const chosen = Math.max(0, found.findIndex((s) => s[1] === state.sample));
  fill(select, options, String(chosen), (k) => { show(Number(k)); change({ sample: found[k][1] }); });
  show(chosen);
  const said = data.left_out ? `${data.left_out} samples of the board are left out for want of room; the entries' files have them.` : "";
  return [make("p", { class: "controls" }, make("label", {}, "Sample, what rises most first", select)), box, said && make("p", { class: "soft" }, said)];
}

// ---- the words of a longest common subsequence: what ROUGE-L counts
const MOST_WORDS = 4000; // marking more would stall the page
function wordsOf(text) {
  return [...text.matchAll(/[a-z0-9]+/gi)].map((m) => [m[0].toLowerCase(), m.index, m[0].length]);
}
function overlap(output, target) {
  const a = wordsOf(output).slice(0, MOST_WORDS), b = wordsOf(target).slice(0, 500);
  const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i * width + j] = a[i][0] === b[j][0] ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  const found = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i][0] === b[j][0]) { found.push(a[i]); i++; j++; }
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return found;
}
function textBox(title, text, marks, kind) {
  const pre = make("pre", { tabindex: "0", "aria-label": title });
  let from = 0;
  for (const [, start, length] of marks) {
    pre.append(text.slice(from, start), make("mark", {}, text.slice(start, start + length)));
    from = start + length;
  }
  pre.append(text.slice(from));
  return make("div", { class: kind }, make("h3", {}, title), pre);
}

// ---- filters, columns, downloads
function drawFilters() {
  const named = (values) => [["", "all"], ...values.map((v) => [v, v])];
  const again = (update) => { limit = PAGE; change(update); drawTable(); };
  fill(at("filter-task"), named(data.tasks.map((t) => t[0])), state["only-task"], (v) => again({ "only-task": v }));
  fill(at("filter-family"), named([...new Set(data.conditions.map((c) => c[2]))]), state.family, (v) => again({ family: v }));
  fill(at("filter-condition"), named(data.conditions.map((c) => c[0])), state.condition, (v) => again({ condition: v }));
  fill(at("filter-verdict"), named(R.verdicts.filter(Boolean)), state.verdict, (v) => again({ verdict: v }));
  at("search").value = state.q;
  at("search").oninput = () => again({ q: at("search").value });
  at("columns").replaceChildren(at("columns").firstElementChild, ...COLUMNS.filter((c) => c[0] !== "entry").map(([name, head]) => {
    const box = make("input", { type: "checkbox", onchange: () => {
      const chosen = [...at("columns").querySelectorAll("input")].filter((one) => one.checked).map((one) => one.value);
      const cols = COLUMNS.map((c) => c[0]).filter((c) => c === "entry" || chosen.includes(c)).join(".");
      again({ cols: cols === USUAL ? "" : cols });
    }, value: name });
    box.checked = columns().some((c) => c[0] === name);
    return make("label", {}, box, head);
  }));
}
at("clear").addEventListener("click", () => {
  limit = PAGE;
  change({ q: "", "only-task": "", family: "", condition: "", verdict: "", sort: "", open: "", sample: "" });
  drawFilters();
  drawTable();
});
at("more").addEventListener("click", () => {
  const first = limit;
  limit += PAGE;
  tbody.append(...rows.slice(first, limit).map(rowOf));
  at("more").hidden = rows.length <= limit;
  at("more").textContent = `Show ${Math.min(PAGE, rows.length - limit)} more of ${rows.length} rows`;
  tbody.rows[tbody.rows.length - Math.min(PAGE, rows.length - first)].querySelector(".open").focus();
});

function save(name, kind, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const FIGURES = ["value", "excess", "utility", "change", "recovered", "retained"];
function csv() {
  // No cell that a spreadsheet takes for a formula; names are the submitters'.
  const cell = (x) => { const text = /^[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]/.test(x) ? `'${x}` : String(x); return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  const lines = [["rank", "state", "entry", "seeds", "task", "condition", "required", "n", ...FIGURES.flatMap((f) => [f, `${f}_low`, `${f}_high`]), "significant", "verdict"].join(",")];
  for (const i of rows) {
    const p = place(i), c = data.conditions[R.condition[i]];
    const figures = FIGURES.flatMap((f) => [0, 1, 2].map((k) => String(R[f][i]?.[k] ?? "")));
    const own = [cell(p.rank ?? ""), cell(p.state), cell(p.name), p.seeds, cell(data.tasks[R.task[i]][0]), cell(c[0]), c[1], R.n[i]];
    lines.push([...own, ...figures, Boolean(R.significant[i]), cell(verdictOf(i))].join(","));
  }
  return `${lines.join("\n")}\n`;
}
at("csv").addEventListener("click", () => save("board.csv", "text/csv", csv()));
at("json").addEventListener("click", () => {
  const { texts, samples, left_out, focus, ...figures } = data;
  save("board.json", "application/json", JSON.stringify(figures));
});

function drawControls() {
  fill(at("chart-task"), data.tasks.map((t) => [t[0], t[0]]), state.task, (v) => { change({ task: v }); drawCharts(); });
  const others = data.conditions.filter((c, i) => i !== NONE || data.conditions.length === 1);
  fill(at("chart-at"), others.map((c) => [c[0], c[0]]), state.at, (v) => { change({ at: v }); drawCharts(); });
}
function drawAll() {
  readAddress();
  drawControls();
  drawCharts();
  drawFilters();
  drawTable();
}
window.addEventListener("hashchange", () => { if (location.hash.includes("=") || !location.hash) drawAll(); });
drawAll();
drawFront();
