"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const TITLE = Object.fromEntries(DATA.systems.map(s => [s.name, s.title]));

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter(child => child !== null));
  return node;
}
const badge = (text, kind) => el("span", {class: "badge " + (kind || "")}, text);
const byId = id => document.getElementById(id);
const of = (question, system) => DATA.results[question.id].find(r => r.system === system);
const rightOf = (question, system) => Boolean(of(question, system)?.right);
const STEP = 100;  // questions put on the page at once

/* What can be asked for: name, title, and whether a question belongs to it; a and b are the contrasted systems. */
const FILTERS = [
  ["all", () => "All", () => true],
  ["wrong", a => TITLE[a] + " wrong", (q, a) => !rightOf(q, a)],
  ["gained", (a, b) => TITLE[a] + " right, " + TITLE[b] + " wrong", (q, a, b) => rightOf(q, a) && !rightOf(q, b), 2],
  ["lost", (a, b) => TITLE[b] + " right, " + TITLE[a] + " wrong", (q, a, b) => rightOf(q, b) && !rightOf(q, a), 2],
  ["nowhere", () => "Wrong everywhere", q => !DATA.results[q.id].some(r => r.right), 2],
  ["declined", a => TITLE[a] + " declined", (q, a) => Boolean(of(q, a)?.abstained)],
  ["unanswerable", () => "Unanswerable", q => q.answer_type === "unanswerable"],
  ["missed", () => "Oracle not retrieved", q => q.oracle_retrieved === false],
  ["failed", () => "Failed replies", q => DATA.results[q.id].some(r => r.error !== null)],
].filter(([, , , systems]) => DATA.systems.length >= (systems || 1));
const START = {filter: "all", first: DATA.pair[0], second: DATA.pair[1], find: ""};
let state = {...START};

function strip(question) {
  const results = DATA.results[question.id];
  const right = results.filter(r => r.right).map(r => TITLE[r.system]);
  const node = el("span", {class: "strip", role: "img", "aria-label": "right: " + (right.join(", ") || "none")});
  for (const r of results) node.append(el("i", {class: r.right ? "right" : "", title: TITLE[r.system] + (r.right ? ": right" : ": wrong")}));
  return node;
}

function reference(question) {
  const node = el("div", {class: "reference"}, el("h3", {}, "Reference"));
  const unanswerable = question.answer_type === "unanswerable";
  node.append(el("div", {class: "value"}, unanswerable ? "The documents do not hold the answer." : question.answer));
  if (question.aliases.length) node.append(el("p", {}, "also: " + question.aliases.join("; ")));
  if (question.long_answer) node.append(el("p", {}, question.long_answer));
  for (const e of question.evidence) node.append(el("p", {class: "quote"}, "“" + e.text + "” ", el("span", {class: "soft"}, e.document_id)));
  return node;
}

function quoteLine(quote, numbers) {
  if (quote.chunk_id === null) return el("div", {class: "quote bad"}, "“" + quote.text + "” ", badge("not in its documents", "bad"));
  const number = numbers.get(quote.chunk_id);
  return el("div", {class: "quote"}, "“" + quote.text + "” ", badge("document " + number, "good"), quote.oracle ? badge("oracle", "oracle") : null);
}

function answer(result, numbers) {
  const who = el("div", {class: "who"}, el("b", {}, TITLE[result.system]),
    result.error !== null ? badge("failed", "bad") : badge(result.right ? "right" : "wrong", result.right ? "good" : "bad"));
  if (result.abstained) who.append(badge("declined"));
  if (result.error === null && !result.well_formed) who.append(badge("no answer mark"));
  if (result.truncated) who.append(badge("cut off"));
  const sure = result.confidence === null ? "" : " · confidence " + result.confidence.toFixed(2);
  who.append(el("span", {}, "EM " + result.em.toFixed(0) + " · F1 " + result.f1.toFixed(2) + sure));
  const node = el("div", {class: "answer"}, who);
  node.append(el("p", {class: "final"}, result.error !== null ? result.error : result.final || "(empty)"));
  for (const quote of result.quotes) node.append(quoteLine(quote, numbers));
  if (result.error === null && result.text.trim() !== result.final)
    node.append(el("details", {}, el("summary", {}, "full reply, " + result.completion_tokens + " tokens"), el("pre", {}, result.text)));
  return node;
}

function highlighted(text, spans) {
  const chars = [...text];  // offsets count code points, as Python's do
  const cuts = [...new Set([0, chars.length, ...spans.flatMap(s => [s.start, s.end])])].sort((a, b) => a - b);
  const node = el("div", {class: "text", tabindex: "0", role: "group", "aria-label": "text of the document"});
  for (let i = 0; i + 1 < cuts.length; i++) {
    const piece = chars.slice(cuts[i], cuts[i + 1]).join("");
    const by = [...new Set(spans.filter(s => s.start <= cuts[i] && s.end >= cuts[i + 1]).map(s => TITLE[s.system]))];
    node.append(by.length ? el("mark", {title: "quoted by " + by.join(", ")}, piece) : piece);
  }
  return node;
}

function documentCard(id, number, question) {
  const chunk = DATA.chunks[id];
  const heading = [chunk.title, ...chunk.headings].filter((part, i, all) => part && part !== all[i - 1]).join(" › ");
  const spans = DATA.results[question.id].flatMap(r => r.quotes.filter(q => q.chunk_id === id).map(q => ({...q, system: r.system})));
  const where = el("div", {class: "where"}, el("b", {}, number + ". " + (heading || chunk.document_id)));
  if (heading) where.append(el("span", {}, chunk.document_id));
  if (chunk.page !== null) where.append(el("span", {}, "page " + chunk.page));
  if (question.oracle_ids.includes(id)) where.append(badge("oracle", "oracle"));
  if (!question.hit_ids.includes(id)) where.append(badge("only where the oracle is given"));
  return el("div", {class: "document"}, where, highlighted(chunk.text, spans));
}

function body(question) {
  const results = DATA.results[question.id];
  const ids = [...new Set([...question.hit_ids, ...results.flatMap(r => r.chunk_ids)])];
  const numbers = new Map(ids.map((id, i) => [id, i + 1]));
  const left = el("div", {}, reference(question), el("h3", {}, "Answers"));
  const place = result => [state.first, state.second].indexOf(result.system) >>> 0;  // the contrasted ones come first
  for (const result of [...results].sort((x, y) => place(x) - place(y))) left.append(answer(result, numbers));
  const rank = question.oracle_rank === null ? "no oracle was retrieved" : "first oracle at rank " + question.oracle_rank;
  const right = el("div", {}, el("h3", {}, "Documents of the prompts"),
    el("p", {class: "note"}, question.oracle_ids.length ? "In order of retrieval; " + rank + ". Marked: quoted verbatim." : "In order of retrieval. Marked: quoted verbatim."));
  ids.forEach((id, i) => right.append(documentCard(id, i + 1, question)));
  return el("div", {class: "body"}, left, right);
}

function card(question) {
  const node = el("details", {class: "question", "data-id": question.id},
    el("summary", {}, el("span", {}, el("span", {class: "asked"}, question.question), " ", el("span", {class: "qid"}, question.id)), strip(question)));
  node.addEventListener("toggle", () => { if (node.open && node.childElementCount === 1) node.append(body(question)); });
  return node;
}

/* A card is made when it is first shown, and the words to search when they are first searched: there may be thousands. */
const CARDS = DATA.questions.map(question => ({question, node: null, words: null}));
const cardOf = c => (c.node ??= card(c.question));
const wordsOf = c => (c.words ??= [c.question.id, c.question.question, c.question.answer,
  ...DATA.results[c.question.id].map(r => r.final)].join("\n").toLowerCase());
let found = CARDS, shown = STEP;

function list() {
  byId("list").replaceChildren(...found.slice(0, shown).map(cardOf));
  const left = found.length - shown;
  byId("more").hidden = left <= 0;
  byId("more").textContent = "Show " + Math.min(STEP, left) + " more";
  byId("shown").textContent = found.length + " of " + CARDS.length + " questions" + (left > 0 ? ", the first " + shown + " shown" : "");
}

function apply() {
  const keep = FILTERS.find(f => f[0] === state.filter)[2], find = state.find.trim().toLowerCase();
  found = CARDS.filter(c => keep(c.question, state.first, state.second) && (!find || wordsOf(c).includes(find)));
  shown = STEP;
  list();
  clearTimeout(apply.timer);
  apply.timer = setTimeout(remember, 200);  // browsers limit how often an address may change
}

/* The view is in the address, so that it can be sent: #filter=lost&first=raft&second=rag&find=dose */
function remember() {
  const changed = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const hash = changed.length ? "#" + new URLSearchParams(changed) : location.pathname + location.search;
  if (changed.length || location.hash.includes("=")) history.replaceState(null, "", hash);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  const one = (name, known) => known.includes(given.get(name)) ? given.get(name) : START[name];
  const names = DATA.systems.map(s => s.name);
  state = {filter: one("filter", FILTERS.map(f => f[0])), first: one("first", names), second: one("second", names), find: given.get("find") || ""};
  if (state.first === state.second) [state.first, state.second] = DATA.pair;
  byId("find").value = state.find;
  contrast();
}

function contrast() {
  for (const [name, title, keep] of FILTERS) {
    const radio = document.querySelector(`input[value="${name}"]`), label = radio.nextElementSibling;
    const count = DATA.questions.filter(q => keep(q, state.first, state.second)).length;
    label.replaceChildren(title(state.first, state.second) + " ", el("span", {class: "count"}, String(count)));
    radio.checked = state.filter === name;
  }
  for (const name of DATA.systems.length > 1 ? ["first", "second"] : []) byId(name).value = state[name];
  for (const c of CARDS) if (c.node && c.node.childElementCount > 1) {
    c.node.lastElementChild.remove();
    if (c.node.open) c.node.append(body(c.question));
  }
  apply();
}

for (const [name] of FILTERS) {
  const radio = el("input", {type: "radio", name: "filter", value: name});
  radio.addEventListener("change", () => { state.filter = name; apply(); });
  byId("filters").append(el("label", {class: "pill", "data-filter": name}, radio, el("span", {})));
}
for (const [name, other] of [["first", "second"], ["second", "first"]]) {
  if (DATA.systems.length < 2) { byId("contrast").hidden = true; break; }
  byId(name).append(...DATA.systems.map(s => el("option", {value: s.name}, s.title)));
  byId(name).addEventListener("change", event => {
    if (event.target.value === state[other]) state[other] = state[name];
    state[name] = event.target.value;
    contrast();
  });
}
byId("find").addEventListener("input", event => { state.find = event.target.value; apply(); });
byId("more").addEventListener("click", () => {
  const next = shown;
  shown += STEP;
  list();
  byId("list").children[next].firstElementChild.focus();
});
byId("list").addEventListener("keydown", event => {
  const step = {ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling"}[event.key];
  if (!step || !event.target.matches(".question > summary")) return;
  event.preventDefault();
  event.target.parentElement[step]?.firstElementChild.focus();
});
addEventListener("hashchange", recall);
recall();
