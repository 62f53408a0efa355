// ---- charts: drawn anew at the width that there is, in the page's own colours
const FEW = 30; // entries drawn before the reader asks for all
let everyEntry = false;

function scaleOf(low, high, from, to) {
  return (x) => from + ((x - low) / (high - low || 1)) * (to - from);
}
function ticks(low, high, about) {
  const raw = (high - low) / about, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= raw);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + 1e-9; x += step) found.push(Math.round(x * 1e6) / 1e6);
  return found;
}
function line(x1, y1, x2, y2, kind) { return make("svg:line", { x1, y1, x2, y2, class: kind }); }
function words(x, y, text, kind, anchor) { return make("svg:text", { x, y, class: kind, "text-anchor": anchor || "start" }, text); }
function short(text, most) { return text.length > most ? `${text.slice(0, most - 1)}\u2026` : text; }
function ends(figures) { return figures.filter(Boolean).flat(); }

// A band with its name on top: where the target or the retrained model lies, with its interval.
function band(svg, figure, kind, x, top, bottom) {
  if (figure.length > 1)
    svg.append(make("svg:rect", { class: kind, x: x(figure[1]), y: top, width: Math.max(1, x(figure[2]) - x(figure[1])), height: bottom - top }));
  svg.append(line(x(figure[0]), top, x(figure[0]), bottom, kind));
}

function drawSlopes() {
  const task = data.tasks.findIndex((t) => t[0] === state.task), want = data.tasks[task][1];
  const to = data.conditions.findIndex((c) => c[0] === state.at);
  const value = (place, condition) => { const row = find(place, task, condition); return row === undefined ? null : data.rows.value[row]; };
  const entries = data.places.map((p, i) => i).filter((i) => !isReference(data.places[i]) && (value(i, NONE) || value(i, to)));
  const shown = everyEntry ? entries : entries.slice(0, FEW);
  const target = value(TARGET, to) || value(TARGET, NONE), retrained = value(RETRAINED, NONE);
  const wide = Math.max(300, at("slopes").clientWidth), narrow = wide < 620;
  const left = narrow ? 8 : 190, right = wide - (narrow ? 8 : 120), top = 34, step = narrow ? 46 : 28;
  const bottom = top + step * shown.length, all = [...ends([target, retrained])];
  for (const i of shown) data.conditions.forEach((c, k) => all.push(...ends([value(i, k)])));
  const low = want === "zero" ? Math.min(-20, ...all) : Math.min(0, ...all), high = Math.max(want === "zero" ? 20 : 10, ...all);
  const x = scaleOf(low, high, left, right);
  const svg = make("svg:svg", { viewBox: `0 0 ${wide} ${bottom + 26}`, width: wide, height: bottom + 26, role: "group", "aria-label": `${state.task}, each entry from full precision to ${state.at}` });
  for (const tick of ticks(low, high, narrow ? 4 : 8)) {
    svg.append(line(x(tick), top, x(tick), bottom, "grid"), words(x(tick), bottom + 17, String(tick).replace("-", "\u2212"), "soft number", "middle"));
  }
  const bands = [[retrained, "retrained", `retrained ${retrained ? points(retrained[0]) : ""}`], [target, "target", `target ${target ? points(target[0]) : ""}`]].filter((b) => b[0]);
  bands.sort((a, b) => a[0][0] - b[0][0]);
  bands.forEach(([figure, kind, text], i) => {
    band(svg, figure, kind, x, top, bottom);
    const near = bands.length > 1 && Math.abs(x(bands[0][0][0]) - x(bands[1][0][0])) < 110;
    const anchor = near ? (i ? "start" : "end") : "middle";
    const middle = Math.min(Math.max(x(figure[0]), anchor === "start" ? 0 : anchor === "end" ? 90 : 48), wide - (anchor === "end" ? 0 : anchor === "start" ? 90 : 48));
    svg.append(words(middle + (near ? (i ? 3 : -3) : 0), top - 12, text, kind, anchor));
  });
  const rows = shown.map((place, k) => {
    const y = top + step * k + (narrow ? 32 : step / 2), from = value(place, NONE), now = value(place, to);
    const row = find(place, task, to), verdict = row === undefined ? "" : verdictOf(row);
    const group = make("svg:g", { role: "img", class: verdict === "recovers" ? "rises" : "" });
    group.append(make("svg:rect", { class: "hit", x: 0, y: top + step * k, width: wide, height: step, rx: 4 }));
    const name = data.places[place].name, moves = `${from ? points(from[0]) : "-"} \u2192 ${now ? points(now[0]) : "-"}`;
    const said = narrow ? top + step * k + 17 : y + 4;
    group.append(words(narrow ? 0 : left - 12, said, short(name, narrow ? 26 : 27), "label", narrow ? "start" : "end"), words(wide, said, `${moves} ${GLYPHS[verdict] || ""}`, "label number", "end"));
    data.conditions.forEach((c, i) => {
      const other = i !== NONE && i !== to && value(place, i);
      if (other) group.append(make("svg:rect", { class: "other", x: x(other[0]) - 1, y: y - 4, width: 2, height: 8 }));
    });
    if (now && now.length > 1) group.append(line(x(now[1]), y, x(now[2]), y, "span"));
    if (from && now) group.append(line(x(from[0]), y, x(now[0]), y, "move"));
    if (from) group.append(make("svg:circle", { class: "from", cx: x(from[0]), cy: y, r: 4.5 }));
    if (now) group.append(make("svg:path", { class: "to", d: `M${x(now[0])} ${y - 6}l6 6l-6 6l-6 -6z` }));
    told(group, `${name}\nfull precision ${inPoints(from)}\n${state.at} ${inPoints(now)}${verdict ? `\n${verdict}` : ""}`);
    svg.append(group);
    return group;
  });
  rove(rows, 1);
  at("slopes").replaceChildren(svg);
  at("slopes-said").textContent = `${state.task}, ${want === "zero" ? "0 is the retrained model's" : want === "low" ? "less is forgotten better" : "more is better"}, in points. Circle: the entry in full precision; diamond: at ${state.at}, with its 95% interval; small ticks: its other conditions. Bands: the target at ${state.at} and the retrained model in full precision.`;
  at("slopes-more").hidden = everyEntry || entries.length <= FEW;
  at("slopes-more").textContent = `Show all ${entries.length} entries`;
}

function drawHeat() {
  const task = data.tasks.findIndex((t) => t[0] === state.task);
  const conditions = data.conditions.map((c, i) => i).filter((i) => i !== NONE);
  const entries = data.places.map((p, i) => i).filter((i) => !isReference(data.places[i]));
  const shown = everyEntry ? entries : entries.slice(0, FEW), cells = [], seen = new Set();
  const head = make("tr", {}, make("td"), ...conditions.map((i) => make("th", { scope: "col", class: data.conditions[i][0] === state.at ? "chosen" : null }, shownCondition(i))));
  const body = shown.map((place) => make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, data.places[place].name)), ...conditions.map((condition) => {
    const row = find(place, task, condition), name = `${data.places[place].name} at ${data.conditions[condition][0]}`;
    const verdict = row === undefined ? "not measured" : verdictOf(row) || "no verdict", share = row === undefined ? null : data.rows.recovered[row];
    seen.add(verdict);
    const cell = make("button", { type: "button" }, make("b", {}, share ? percent(share[0]) : "\u00A0"), make("span", {}, `${GLYPHS[verdict] || ""} ${verdict}`));
    cell.style.setProperty("--share", `${share ? Math.round(62 * Math.min(1, Math.max(0, share[0]))) : 0}%`);
    told(cell, `${name}: ${verdict}\ncame back ${inPercent(share)}${row === undefined ? "" : `\nvalue ${inPoints(data.rows.value[row])}\nchange ${inPoints(data.rows.change[row])}`}`);
    if (row !== undefined) cell.addEventListener("click", () => openRow(row));
    cells.push(cell);
    return make("td", {}, cell);
  })));
  rove(cells, conditions.length);
  at("heat").replaceChildren(make("table", { "aria-label": `Share of ${state.task} that came back` }, make("thead", {}, head), make("tbody", {}, ...body)));
  at("heat-said").textContent = `${state.task}: the share that came back of what could, each entry and condition, with its verdict. Intervals show on hover and focus; a cell opens its row in the table.`;
  at("heat-key").replaceChildren(...[...seen].sort().map((v) => make("li", {}, `${GLYPHS[v] || ""} ${v}`)));
}

const pen = document.createElement("canvas").getContext("2d");
function widthOf(text) {
  pen.font = `13px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width + 4;
}

// Where a label stands free: beside its point, then farther off with a lead; null where nowhere.
function placeLabel(x, y, width, taken, frame) {
  for (const far of [0, 14, 28, 44]) {
    for (const [dx, dy] of [[1, -1], [-1, -1], [1, 1], [-1, 1], [1, 0], [-1, 0], [0, -1], [0, 1]]) {
      const left = dx > 0 ? x + 9 + far : dx < 0 ? x - 9 - far - width : x - width / 2;
      const top = y - 8 + dy * (16 + far) * (dx && !far ? 0.6 : 1);
      const box = [left, top, left + width, top + 16];
      const free = box[0] >= frame[0] && box[2] <= frame[2] && box[1] >= frame[1] && box[3] <= frame[3];
      if (free && taken.every((b) => box[2] < b[0] || box[0] > b[2] || box[3] < b[1] || box[1] > b[3])) return box;
    }
  }
  return null;
}

function drawFront() {
  const shown = data.places.filter((p) => p.worst && p.utility && !isReference(p));
  const wide = Math.min(900, Math.max(300, at("front").clientWidth)), narrow = wide < 620, high = narrow ? 340 : 420;
  const frame = [46, 12, wide - 8, high - 44];
  const xs = [0, ...shown.flatMap((p) => p.worst)], ys = [100 * data.floor, ...shown.flatMap((p) => p.utility.map((u) => 100 * u))];
  const pad = (a) => [Math.min(...a), Math.max(...a)].map((v, i, [l, h]) => v + (i ? 1 : -1) * 0.05 * (h - l || 1));
  const [xl, xh] = pad(xs), [yl, yh] = pad(ys), x = scaleOf(xl, xh, frame[0], frame[2]), y = scaleOf(yl, yh, frame[3], frame[1]);
  const svg = make("svg:svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "group", "aria-label": "Worst excess over the retrained model against least utility" });
  for (const t of ticks(xl, xh, narrow ? 4 : 8)) svg.append(line(x(t), frame[1], x(t), frame[3], "grid"), words(x(t), frame[3] + 17, String(t).replace("-", "\u2212"), "soft number", "middle"));
  for (const t of ticks(yl, yh, 5)) svg.append(line(frame[0], y(t), frame[2], y(t), "grid"), words(frame[0] - 8, y(t) + 4, `${t}%`.replace("-", "\u2212"), "soft number", "end"));
  svg.append(line(frame[0], y(100 * data.floor), frame[2], y(100 * data.floor), "floor"));
  svg.append(words((frame[0] + frame[2]) / 2, high - 6, narrow ? "worst excess, points (less is better)" : "worst excess over the retrained model, points (less is better)", "soft", "middle"));
  svg.append(words(frame[0] + 6, frame[1] + 12, "\u2191 least utility, of the target's", "soft"));
  const front = shown.filter((p) => p.front).sort((a, b) => a.worst[0] - b.worst[0]);
  if (front.length) {
    const steps = front.map((p, i) => (i ? `H${x(p.worst[0])}V${y(100 * p.utility[0])}` : `M${x(p.worst[0])} ${frame[3]}V${y(100 * p.utility[0])}`));
    svg.append(make("svg:path", { class: "front", d: `${steps.join("")}H${frame[2]}` }));
  }
  const taken = shown.map((p) => [x(p.worst[0]) - 7, y(100 * p.utility[0]) - 7, x(p.worst[0]) + 7, y(100 * p.utility[0]) + 7]);
  taken.push([frame[0], frame[1], frame[0] + 190, frame[1] + 16]);
  const labels = [];
  const marks = shown.map((p) => {
    const px = x(p.worst[0]), py = y(100 * p.utility[0]), group = make("svg:g", { role: "img", class: p.front ? "in-front" : "" });
    group.append(make("svg:circle", { class: "hit", cx: px, cy: py, r: 11 }));
    if (shown.length <= FEW) {
      if (p.worst.length > 1) group.append(line(x(p.worst[1]), py, x(p.worst[2]), py, "faint"));
      if (p.utility.length > 1) group.append(line(px, y(100 * p.utility[1]), px, y(100 * p.utility[2]), "faint"));
    }
    group.append(p.rank === null ? make("svg:path", { class: "cross", d: `M${px - 4} ${py - 4}l8 8m0 -8l-8 8` }) : make("svg:circle", { class: "dot", cx: px, cy: py, r: 5 }));
    const text = short(p.name, 24), box = placeLabel(px, py, widthOf(text), taken, frame);
    if (box) {
      taken.push(box);
      if (Math.min(Math.abs(box[0] - px), Math.abs(box[2] - px)) > 20 || Math.abs(box[1] + 8 - py) > 24)
        svg.append(line(px, py, Math.min(Math.max(px, box[0]), box[2]), box[1] + 8 > py ? box[1] + 2 : box[3] - 2, "lead"));
      labels.push(words(box[0] + 2, box[1] + 13, text, "label"));
    }
    told(group, `${p.name}, ${p.rank === null ? p.state : `rank ${p.position}`}\nworst excess ${inPoints(p.worst)}\nat ${p.at}\nleast utility ${inPercent(p.utility)}`);
    return group;
  });
  svg.append(...marks, ...labels);
  rove(marks, 1);
  at("front").replaceChildren(svg);
}

function drawCharts() { drawSlopes(); drawHeat(); }
at("slopes-more").addEventListener("click", () => { everyEntry = true; drawCharts(); });
let drawnAt = 0;
new ResizeObserver(() => {
  const wide = document.documentElement.clientWidth;
  if (wide !== drawnAt) { drawnAt = wide; drawSlopes(); drawFront(); }
}).observe(document.body);
