// Shows a routing trace. Reads the data blocks of its own page, asks for nothing else, and sets text as text alone.
"use strict";
(() => {
const WINDOW = 400;   // tokens that are shown at a time
const MARGIN = 34;    // left of the canvases, where layers are numbered
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const { tokens, layers, k, experts: nExperts, segments, texts } = facts;
const blocks = {};
for (const block of document.querySelectorAll('script[type="text/plain"]')) blocks[block.id] = block.textContent;

// Three bytes stand in four characters, so that any part can be decoded alone: gate weights are, a token at a time.
function bytes(name, start, stop) {
  const raw = atob(blocks[name].slice(Math.floor(start / 3) * 4, Math.ceil(stop / 3) * 4));
  const found = new Uint8Array(stop - start), shift = start % 3;
  for (let i = 0; i < found.length; i++) found[i] = raw.charCodeAt(i + shift);
  return found;
}
const experts = bytes("experts", 0, tokens * layers * k);
const routed = bytes("routed", 0, tokens);
const codes = new Int16Array(bytes("codes", 0, 2 * tokens).buffer);
const spans = new Int32Array(bytes("spans", 0, 8 * tokens).buffer);
const places = new Int32Array(bytes("places", 0, 8 * tokens).buffer);
const logs = new Float32Array(bytes("logs", 0, 4 * tokens).buffer);

function float16(bits) {
  const sign = bits >> 15 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
  if (power === 31) return rest ? NaN : sign * Infinity;
  return power ? sign * 2 ** (power - 15) * (1 + rest / 1024) : sign * 2 ** -14 * (rest / 1024);
}
function gatesOf(token) {
  if (!blocks.gates) return null;
  const size = 2 * layers * k;
  return Array.from(new Uint16Array(bytes("gates", token * size, (token + 1) * size).buffer), float16);
}

// Colours: those of the plots for experts, a dark-to-light scale for amounts.
const LEVELS = [[0.50, 0.62], [0.72, 0.55], [0.33, 0.70]];
const hues = Array.from({ length: nExperts }, (_, expert) => {
  const [light, strong] = LEVELS[expert % 3];
  return `${((expert * 0.618033988749895) % 1) * 360} ${strong * 100}% ${light * 100}%`;
});
const tint = (expert, alpha) => `hsl(${hues[expert]} / ${alpha})`;
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function amount(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1), i = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[i].map((one, c) => Math.round(one + (SCALE[i + 1][c] - one) * (at - i)));
}

// What draws nothing, or turns the direction of writing, gets a sign; a text of blanks is shown as such.
function visible(text) {
  if (!text.replaceAll(" ", "")) return text ? "␣".repeat(text.length) : "·";  // a further byte of a character
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (sign) => sign === "\n" ? "↵" : sign === "\t" ? "⇥" : "▯");
}
function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}
// "evidence" takes every "evidence n", nothing takes all
const isOf = (name, segment) => !segment || name === segment || name.startsWith(`${segment} `);
const number = (value) => value.toLocaleString("en");

const state = { segment: facts.segment, layer: 0, expert: -1, start: 0, token: 0 };
let usage = null;  // {shares [layers × experts], rows} of the segment
let overview = null;  // the strip without its marks, drawn once for a width

function countUsage() {
  const wanted = segments.map((name) => isOf(name, state.segment));
  const counts = new Float64Array(layers * nExperts), width = layers * k;
  let rows = 0;
  for (let t = 0; t < tokens; t++) {
    if (!routed[t] || !wanted[codes[t]]) continue;
    rows++;
    for (let i = 0, at = t * width; i < width; i++) counts[Math.floor(i / k) * nExperts + experts[at + i]]++;
  }
  return { shares: counts.map((count) => count / Math.max(rows, 1)), rows };
}

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.fillStyle = pen.strokeStyle = getComputedStyle(document.body).color;
  return pen;
}

function usagePlace() {
  const width = Math.min((byId("usage").clientWidth - MARGIN) / nExperts, 52);
  return { top: 22, width, height: layers > 16 ? 19 : 26 };
}
function drawUsage() {
  const canvas = byId("usage"), { top, width, height } = usagePlace(), { shares, rows } = usage;
  const pen = prepare(canvas, top + layers * height + 4), ink = pen.fillStyle;
  const most = shares.reduce((one, other) => Math.max(one, other), 0);
  const every = Math.ceil(26 / width);  // columns that one label covers
  pen.textAlign = "center";
  for (let e = 0; e < nExperts; e += every) pen.fillText(e, MARGIN + (e + 0.5) * width, top / 2);
  for (let l = 0; l < layers; l++) {
    pen.textAlign = "right";
    pen.fillStyle = ink;
    pen.fillText(l, MARGIN - 8, top + (l + 0.5) * height);
    pen.textAlign = "center";
    for (let e = 0; e < nExperts; e++) {
      const share = shares[l * nExperts + e], colour = amount(most ? share / most : 0);
      pen.fillStyle = `rgb(${colour.join(" ")})`;
      pen.fillRect(MARGIN + e * width, top + l * height, width - 1, height - 1);
      if (width < 30) continue;
      pen.fillStyle = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140 ? "#000" : "#fff";
      pen.fillText((100 * share).toFixed(share < 0.0995 ? 1 : 0), MARGIN + (e + 0.5) * width, top + (l + 0.5) * height);
    }
  }
  pen.strokeStyle = ink;
  pen.lineWidth = 1.5;
  pen.strokeRect(MARGIN - 1.5, top + state.layer * height - 1.5, nExperts * width + 2, height + 2);
  pen.lineWidth = 3.5;
  if (state.expert >= 0) {
    pen.strokeRect(MARGIN + state.expert * width - 1, top + state.layer * height - 1, width + 1, height + 1);
  }
  sayUsage(state.layer, state.expert);
  canvas.setAttribute("aria-label", `Share of ${number(rows)} tokens sent to each of ${nExperts} experts in ` +
    `${layers} layers; arrow keys choose a cell`);
}
function sayUsage(layer, expert) {
  const { shares, rows } = usage, even = (100 * k / nExperts).toFixed(1);
  const share = expert < 0 ? 0 : shares[layer * nExperts + expert];
  byId("usage-says").textContent = expert < 0 ?
    `Rows are layers, columns experts: % of ${number(rows)} routed tokens sent to each; ${even} % if used alike.` :
    `Layer ${layer}, expert ${expert}: ${(100 * share).toFixed(1)} % of ${number(rows)} routed tokens ` +
      `(${number(Math.round(share * rows))}); ${even} % if used alike.`;
}

// A column of the strip stands for one token or for many: then it shows the commonest first expert, paler where it is
// less common. Layers are rows.
function drawOverview(columns) {
  const made = document.createElement("canvas");
  [made.width, made.height] = [columns, layers];
  const pen = made.getContext("2d"), image = pen.createImageData(columns, layers), counts = new Int32Array(nExperts);
  const colours = hues.map((hue) => {
    pen.fillStyle = `hsl(${hue})`;  // a canvas gives its colour back as #rrggbb
    return [1, 3, 5].map((at) => parseInt(pen.fillStyle.slice(at, at + 2), 16));
  });
  for (let c = 0; c < columns; c++) {
    const from = Math.floor(c * tokens / columns), to = Math.floor((c + 1) * tokens / columns);
    for (let l = 0; l < layers; l++) {
      counts.fill(0);
      let best = 0, seen = 0;
      for (let t = from; t < to; t++) {
        if (!routed[t]) continue;
        const first = experts[(t * layers + l) * k];
        seen++;
        if (++counts[first] > counts[best]) best = first;
      }
      if (seen) image.data.set([...colours[best], 55 + 200 * counts[best] / seen], 4 * (l * columns + c));
    }
  }
  pen.putImageData(image, 0, 0);
  return made;
}
function stripPlace() {
  const width = Math.floor(byId("strip").clientWidth - MARGIN - 2);
  return { top: 10, width, height: layers > 16 ? 5 : 14 };
}
function drawStrip() {
  const canvas = byId("strip"), { top, width, height } = stripPlace();
  const pen = prepare(canvas, top + layers * height + 4), ink = pen.fillStyle;
  const columns = Math.max(1, Math.min(tokens, width));
  if (!overview || overview.width !== columns) overview = drawOverview(columns);
  // segments are told apart by two greys above the layers
  for (let t = 0, from = 0, band = 0; t <= tokens; t++) {
    if (t < tokens && codes[t] === codes[from]) continue;
    pen.globalAlpha = band++ % 2 ? 0.3 : 0.65;
    pen.fillRect(MARGIN + from / tokens * width, 1, Math.max((t - from) / tokens * width - 0.5, 0.5), 5);
    from = t;
  }
  pen.globalAlpha = 1;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(overview, MARGIN, top, width, layers * height);
  pen.textAlign = "right";
  for (let l = 0; l < layers; l += layers > 16 ? 4 : 1) pen.fillText(l, MARGIN - 8, top + (l + 0.5) * height);
  pen.strokeStyle = ink;
  pen.lineWidth = 1;
  pen.strokeRect(MARGIN - 0.5, top + state.layer * height - 0.5, width + 1, height + 1);
  const left = MARGIN + state.start / tokens * width;
  pen.lineWidth = 2.5;
  pen.strokeRect(left, top - 2, Math.max(Math.min(WINDOW, tokens) / tokens * width, 2), layers * height + 4);
  const each = tokens <= width ? "the colour is the first expert" :
    `a column is ${Math.ceil(tokens / width)} tokens, its colour their commonest first expert`;
  byId("strip-says").textContent =
    `Tokens from left to right, layers below each other; ${each}. Light and dark grey on top are segments. The frame is ` +
      "the text below; click to move it.";
  canvas.setAttribute("aria-label", `${number(tokens)} tokens by ${layers} layers; arrow keys move the text or layer`);
}

function drawTokens() {
  const stop = Math.min(state.start + WINDOW, tokens), made = document.createDocumentFragment();
  for (let t = state.start; t < stop; t++) {
    const token = element("span", "", "token"), at = (t * layers + state.layer) * k, own = experts.subarray(at, at + k);
    const text = element("b", visible(texts[t])), numbers = element("small");
    token.dataset.token = t;
    token.tabIndex = t === state.token ? 0 : -1;
    if (routed[t]) {
      text.style.background = tint(own[0], 0.4);
      for (const expert of own) {
        numbers.appendChild(element("i", expert)).style.background = tint(expert, 0.4);
      }
      if (own.includes(state.expert)) token.classList.add("uses");
    } else {
      token.classList.add("unrouted");
      numbers.textContent = "–";
    }
    token.append(text, numbers);
    made.append(token);
    if (texts[t].includes("\n")) made.append(element("span", "", "line"));
  }
  byId("tokens").replaceChildren(made);
  byId("window-says").textContent =
    `tokens ${number(state.start)} to ${number(stop - 1)} of ${number(tokens)}, layer ${state.layer}`;
  byId("position").value = state.start;
  byId("previous").disabled = state.start === 0;
  byId("next").disabled = stop === tokens;
  byId("next-use").disabled = state.expert < 0;
}

function drawDetail() {
  const t = state.token, code = codes[t], list = element("dl"), gates = gatesOf(t);
  const isPlaced = places[2 * t] >= 0, span = (isPlaced ? places : spans).subarray(2 * t, 2 * t + 2);
  const told = {
    token: `${number(t)} of ${number(tokens)}`, segment: segments[code], document: facts.documents[code],
    characters: `${number(span[0])}–${number(span[1])} of the ${isPlaced ? "document" : "prompt or answer"}`,
    rank: facts.ranks[code], "log-probability": Number.isNaN(logs[t]) ? null : `${logs[t].toFixed(3)} nats`,
  };
  for (const [name, value] of Object.entries(told)) {
    if (value) list.appendChild(element("div")).append(element("dt", name), element("dd", value));
  }
  byId("detail").replaceChildren(element("p", visible(texts[t]), "text"), list);
  if (!routed[t]) return byId("detail").append(element("p", "This token was not routed."));
  const table = element("table"), head = table.appendChild(element("thead")).appendChild(element("tr"));
  const body = table.appendChild(element("tbody"));
  head.append(element("th", "layer"));
  for (let c = 0; c < k; c++) head.append(element("th", `expert ${c + 1}`), ...(gates ? [element("th", "gate")] : []));
  for (let l = 0; l < layers; l++) {
    const row = body.appendChild(element("tr", "", l === state.layer ? "chosen" : ""));
    row.append(element("th", l));
    for (let at = l * k; at < (l + 1) * k; at++) {
      const expert = experts[t * layers * k + at], cell = element("td", expert);
      cell.style.background = tint(expert, 0.3);
      row.append(cell, ...(gates ? [element("td", gates[at].toFixed(3))] : []));
    }
  }
  byId("detail").append(table);
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);
// Changes what is chosen and draws what depends on it.
function choose(changes) {
  const before = usage ? { ...state } : {}, last = Math.max(tokens - WINDOW, 0);
  Object.assign(state, changes);
  state.layer = clamp(state.layer, layers - 1);
  state.token = clamp(state.token, tokens - 1);
  state.start = clamp(state.start, last);
  if (state.token < state.start || state.token >= state.start + WINDOW) {
    if ("token" in changes) state.start = clamp(state.token - WINDOW / 4, last);
    else state.token = state.start;
  }
  const differs = (...names) => names.some((name) => state[name] !== before[name]);
  if (differs("segment")) usage = countUsage();
  if (differs("segment", "layer", "expert")) drawUsage();
  if (differs("layer", "start")) drawStrip();
  if (differs("layer", "expert", "start")) drawTokens();
  if (differs("layer", "token")) drawDetail();
  [byId("segment").value, byId("layer").value, byId("expert").value] = [state.segment, state.layer, state.expert];
}
function focusToken(token) {
  choose({ token });
  const shown = byId("tokens").querySelectorAll(".token");
  shown.forEach((one) => { one.tabIndex = -1; });
  shown[state.token - state.start].tabIndex = 0;
  shown[state.token - state.start].focus();
}
function nextUse() {
  for (let step = 1; step <= tokens; step++) {
    const t = (state.token + step) % tokens, at = (t * layers + state.layer) * k;
    if (!routed[t] || !isOf(segments[codes[t]], state.segment)) continue;
    if (experts.subarray(at, at + k).includes(state.expert)) return focusToken(t);
  }
}

const on = (id, kind, act) => byId(id).addEventListener(kind, act);
function onKeys(id, moves) {
  on(id, "keydown", (event) => {
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  });
}
function cellAt(event) {
  const { top, width, height } = usagePlace();
  const layer = Math.floor((event.offsetY - top) / height), expert = Math.floor((event.offsetX - MARGIN) / width);
  return layer >= 0 && layer < layers && expert >= 0 && expert < nExperts ? { layer, expert } : null;
}
function openSegment(segment) {
  const own = segments.map((name) => isOf(name, segment));
  choose({ segment, start: codes.findIndex((code) => own[code]) });
}
function listen() {
  const moveExpert = (step) => choose({ expert: clamp(state.expert + step, nExperts - 1) });
  const moveLayer = (step) => choose({ layer: state.layer + step });
  const moveWindow = (step) => choose({ start: state.start + step * WINDOW });
  on("usage", "click", (event) => choose(cellAt(event) ?? {}));
  on("usage", "mousemove", (event) => {
    const cell = cellAt(event) ?? state;
    sayUsage(cell.layer, cell.expert);
  });
  on("usage", "mouseleave", () => sayUsage(state.layer, state.expert));
  on("strip", "click", (event) => {
    const { top, width, height } = stripPlace(), token = Math.floor((event.offsetX - MARGIN) / width * tokens);
    choose({ layer: Math.floor((event.offsetY - top) / height), start: token - WINDOW / 2, token });
  });
  onKeys("usage", { ArrowLeft: () => moveExpert(-1), ArrowRight: () => moveExpert(1), ArrowUp: () => moveLayer(-1),
    ArrowDown: () => moveLayer(1), Escape: () => choose({ expert: -1 }) });
  onKeys("strip", { ArrowLeft: () => moveWindow(-1), ArrowRight: () => moveWindow(1), ArrowUp: () => moveLayer(-1),
    ArrowDown: () => moveLayer(1) });
  const again = (step) => { moveLayer(step); focusToken(state.token); };
  onKeys("tokens", { ArrowLeft: () => focusToken(state.token - 1), ArrowRight: () => focusToken(state.token + 1),
    ArrowUp: () => again(-1), ArrowDown: () => again(1), PageUp: () => focusToken(state.token - WINDOW),
    PageDown: () => focusToken(state.token + WINDOW) });
  for (const kind of ["mouseover", "focusin"]) {
    on("tokens", kind, (event) => {
      const token = event.target.closest(".token");
      if (token) choose({ token: Number(token.dataset.token) });
    });
  }
  on("segment", "change", (event) => openSegment(event.target.value));
  on("layer", "change", (event) => choose({ layer: Number(event.target.value) }));
  on("expert", "change", (event) => choose({ expert: Number(event.target.value) }));
  on("position", "input", (event) => choose({ start: Number(event.target.value) }));
  on("previous", "click", () => moveWindow(-1));
  on("next", "click", () => moveWindow(1));
  on("next-use", "click", nextUse);
  const redraw = () => { drawUsage(); drawStrip(); };
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function fillChoices() {
  const found = segments.filter((_, code) => codes.includes(code));
  const numbered = new Set(found.filter((name) => / \d+$/.test(name)).map((name) => name.replace(/ \d+$/, "")));
  byId("segment").append(new Option("all", ""), ...[...numbered].map((name) => new Option(`${name}, all`, name)),
    ...found.map((name) => new Option(name, name)));
  byId("layer").append(...Array.from({ length: layers }, (_, layer) => new Option(layer, layer)));
  byId("expert").append(new Option("none", -1), ...Array.from({ length: nExperts }, (_, e) => new Option(e, e)));
  byId("position").max = Math.max(tokens - WINDOW, 0);
}

byId("view").hidden = false;
if (tokens && layers) {
  fillChoices();
  listen();
  openSegment(state.segment);
}
})();
