// The page of raft review. Words of datasets and people enter it as text nodes, never as markup.

const PAGE = 100; // questions listed at once
const at = (id) => document.getElementById(id);

let rows = []; // the questions listed
let shown = null; // the question in view, as the server tells it
let lastDecided = null; // the id of the question that "undo" is about
let busy = false; // a decision is on its way
let moving = false; // the next question is
let loads = 0; // lists asked for: an answer that comes after a later question is passed over
let opens = 0; // questions asked for, likewise

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const plain = (name) => name.replaceAll("_", " ");

// ---- the server

async function call(path, body) {
  const settings = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, settings);
  } catch {
    throw new Error("The server cannot be reached. Is raft review still running? What was decided is kept.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const error = new Error(answer.error?.message ?? `The server refused: status ${response.status}`);
  error.warnings = answer.error?.warnings ?? [];
  throw error;
}

// Do a piece of work whose failure is told on the page.
async function told(work) {
  at("error").hidden = true;
  try {
    return await work();
  } catch (error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
    return undefined;
  }
}

const urlOf = (id) => `/api/questions/${encodeURIComponent(id)}`;

// ---- the list

function filters() {
  return {
    status: at("filter-status").value,
    type: at("filter-type").value,
    document: at("filter-document").value.trim(),
    search: at("filter-search").value.trim(),
  };
}

// Load a page of questions: the first, or the one behind or in front of a question. False when there is none.
async function load(where = {}) {
  const mine = ++loads;
  const found = await call(`/api/questions?${new URLSearchParams({ ...filters(), limit: PAGE, ...where })}`);
  if (mine !== loads) return undefined;
  renderProgress(found.progress);
  if (!found.questions.length && (where.after ?? where.before) !== undefined) return false;
  rows = found.questions;
  at("range").textContent = rows.length ? `${found.first + 1}–${found.first + rows.length} of ${found.total}` : "none";
  at("page-back").disabled = found.first === 0;
  at("page-on").disabled = found.first + rows.length >= found.total;
  renderList();
  return true;
}

function renderList() {
  at("list").replaceChildren(...rows.map((row) => element("li", "", listButton(row))));
  markCurrent();
}

function listButton(row) {
  const chips = [element("span", `chip ${row.status}`, row.status), ...row.flags.map((flag) => element("span", "chip flag", plain(flag)))];
  const button = element("button", "", element("span", "", row.question), element("br", ""), ...chips);
  button.type = "button";
  button.dataset.id = row.id;
  button.addEventListener("click", () => told(() => open(row.id)));
  return button;
}

function markCurrent() {
  for (const button of at("list").querySelectorAll("button")) {
    const isCurrent = button.dataset.id === shown?.id;
    button.setAttribute("aria-current", String(isCurrent));
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

function renderProgress(progress) {
  const decided = progress.total - progress.undecided;
  at("bar").max = progress.total;
  at("bar").value = decided;
  at("progress").textContent = `${decided} of ${progress.total} decided: ${progress.accepted} accepted, ${progress.edited} edited, ${progress.rejected} rejected`;
  lastDecided = progress.last_decided;
  at("undo").disabled = lastDecided === null;
}

// ---- one question

async function open(id, focus = true) {
  const mine = ++opens;
  const question = await call(urlOf(id));
  if (mine !== opens) return;
  render(question);
  if (!focus) return;
  window.scrollTo(0, 0);
  at("question").focus({ preventScroll: true });
}

function render(question) {
  shown = question;
  closeEditor();
  at("detail").hidden = false;
  at("chips").replaceChildren(
    element("span", `chip ${question.status}`, question.status),
    ...[question.split, question.question_type, `from ${question.source}`].filter(Boolean).map((text) => element("span", "chip", text)),
    ...question.flags.map((flag) => element("span", "chip flag", plain(flag))),
  );
  at("question").textContent = question.question;
  at("verdict").textContent = question.answer || "The documents do not hold the answer.";
  at("verdict").classList.toggle("abstained", !question.answer);
  note("warnings", question.warnings.length ? `The quality gate says: ${question.warnings.map(plain).join(", ")}` : "");
  note("history", question.decisions.map(decisionText).join(" "));
  at("reasoning-part").hidden = !question.words.reasoning;
  at("reasoning").textContent = question.words.reasoning;
  at("evidence-part").hidden = !question.oracles.length;
  at("evidence").replaceChildren(...question.oracles.map(passage));
  renderExample(question.example);
  markCurrent();
}

function note(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

function decisionText(row) {
  const why = row.reason ? ` (${row.reason})` : "";
  return `${row.decision} by ${row.who}${why}, ${new Date(row.when).toLocaleString()}.`;
}

function passage(oracle) {
  return element("div", "passage", element("div", "place", `${oracle.place} · ${oracle.document_id}`),
    element("div", "words", ...marked(oracle.text, oracle.spans)));
}

// The text with its quotes marked. The server counts code points, JavaScript UTF-16 units.
function marked(text, spans) {
  const points = Array.from(text);
  const nodes = [];
  let from = 0;
  for (const [start, end] of spans) {
    const first = Math.max(start, from);
    if (end <= first) continue; // inside a quote that is marked already
    nodes.push(points.slice(from, first).join(""), element("mark", "", points.slice(first, end).join("")));
    from = end;
  }
  return [...nodes, points.slice(from).join("")];
}

function renderExample(example) {
  at("example-part").hidden = example === null;
  if (example === null) return;
  at("target").textContent = example.target;
  at("example-note").textContent = example.oracle_present
    ? "Its context, in the order of the prompt:"
    : "Its context does not hold the answer; in the order of the prompt:";
  at("context").replaceChildren(...example.context.map((chunk) => {
    const summary = element("summary", "", chunk.place, ...(chunk.oracle ? [" ", element("span", "chip accepted", "oracle")] : []));
    return element("li", "", element("details", "passage", summary, element("div", "words", chunk.text)));
  }));
}

// ---- going through

async function move(step) {
  const now = rows.findIndex((row) => row.id === shown?.id);
  const next = rows[now < 0 ? 0 : now + step];
  if (next) return open(next.id);
  const edge = step > 0 ? { after: rows.at(-1)?.id } : { before: rows[0]?.id };
  if (rows.length && (await load(edge))) return open(rows.at(step > 0 ? 0 : -1).id);
  at("status").textContent = step > 0 ? "That was the last question of this list." : "This is the first question of this list.";
  return undefined;
}

async function turnPage(step) {
  const edge = step > 0 ? { after: rows.at(-1)?.id } : { before: rows[0]?.id };
  if (await load(edge)) await open(rows[0].id);
}

async function refresh() {
  if ((await load()) === undefined) return undefined;
  at("status").textContent = "";
  if (rows.length) return open(rows[0].id, false);
  shown = null;
  at("detail").hidden = true;
  at("status").textContent = at("filter-status").value === "undecided" ? "Nothing is left to decide here." : "No question passes these filters.";
  return undefined;
}

// ---- deciding

// Send a decision; the question as it is then.
async function decide(id, decision) {
  if (busy) return undefined;
  busy = true;
  try {
    const { question, progress } = await call(`${urlOf(id)}/decision`, decision);
    rows = rows.map((row) => (row.id === id ? { ...row, question: question.question, status: question.status } : row));
    renderProgress(progress);
    renderList();
    return question;
  } finally {
    busy = false;
  }
}

async function accept() {
  if (shown && !moving && (await decide(shown.id, { decision: "accept" }))) {
    at("status").textContent = "Accepted.";
    await moveOn();
  }
}

// After a decision: the next question, or this one as it is now.
async function moveOn() {
  const was = shown.id;
  moving = true;
  try {
    await move(1);
    if (shown.id === was) await open(was);
  } finally {
    moving = false;
  }
}

async function undo() {
  if (lastDecided === null) return;
  const question = await decide(lastDecided, { decision: "undo" });
  if (!question) return;
  render(question);
  at("status").textContent = "The last decision is undone.";
}

function askReason() {
  if (!shown) return;
  at("reject-form").reset();
  at("reject-dialog").showModal();
  at("reasons").querySelector("input").focus();
}

async function reject() {
  const chosen = at("reasons").querySelector("input:checked")?.value;
  const reason = [chosen, at("other-reason").value.trim()].filter(Boolean).join(": ");
  if (!reason) return at("other-reason").focus();
  at("reject-dialog").close();
  if (await decide(shown.id, { decision: "reject", reason })) {
    at("status").textContent = "Rejected.";
    await moveOn();
  }
  return undefined;
}

// ---- editing

function openEditor() {
  if (!shown) return;
  for (const name of ["question", "answer", "reasoning"]) at(`edit-${name}`).value = shown.words[name];
  at("edit-quotes").replaceChildren();
  shown.words.quotes.forEach(addQuote);
  at("add-quote").hidden = !shown.oracles.length;
  note("edit-warnings", "");
  at("save-anyway").hidden = true;
  at("editor").hidden = false;
  at("decide").hidden = true;
  at("edit-question").focus();
}

function closeEditor() {
  at("editor").hidden = true;
  at("decide").hidden = false;
}

function addQuote(quote = { chunk_id: shown.oracles[0].chunk_id, text: "" }) {
  const number = at("edit-quotes").childElementCount + 1;
  const chunk = element("select", "", ...shown.oracles.map((oracle) => new Option(`${oracle.place} (${oracle.chunk_id})`, oracle.chunk_id)));
  chunk.value = quote.chunk_id;
  chunk.setAttribute("aria-label", `Chunk of quote ${number}`);
  const text = element("textarea", "");
  text.rows = 2;
  text.maxLength = 20000;
  text.value = quote.text;
  text.setAttribute("aria-label", `Quote ${number}`);
  const remove = element("button", "", `Remove quote ${number}`);
  remove.type = "button";
  const box = element("div", "quote", chunk, text, remove);
  remove.addEventListener("click", () => {
    box.remove();
    at("add-quote").focus();
  });
  at("edit-quotes").append(box);
  return text;
}

function writtenWords() {
  const quotes = [...at("edit-quotes").children].map((box) => ({ chunk_id: box.querySelector("select").value, text: box.querySelector("textarea").value }));
  return { question: at("edit-question").value, answer: at("edit-answer").value, reasoning: at("edit-reasoning").value, quotes };
}

async function save(override) {
  note("edit-warnings", "");
  at("save-anyway").hidden = true;
  try {
    const question = await decide(shown.id, { decision: "edit", words: writtenWords(), override });
    if (!question) return;
    render(question);
    at("status").textContent = "Saved.";
    at("question").focus();
  } catch (error) {
    const warnings = error.warnings ?? [];
    note("edit-warnings", warnings.length ? `${error.message}: ${warnings.map(plain).join(", ")}` : error.message);
    at("save-anyway").hidden = !warnings.length;
    if (warnings.length) at("save-anyway").focus();
  }
}

// ---- keys and buttons

const keys = {
  a: accept,
  r: askReason,
  e: openEditor,
  u: undo,
  j: () => move(1),
  k: () => move(-1),
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  "/": () => at("filter-search").focus(),
  "?": () => at("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || (event.repeat && "areu".includes(event.key))) return;
  if (event.target.closest("#editor")) {
    if (event.key === "Escape") {
      closeEditor();
      at("edit").focus();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) told(() => save(false));
    return;
  }
  if (event.ctrlKey || event.metaKey) return;
  if (event.target.closest("#filters") && event.key === "Escape") {
    event.preventDefault(); // the browser would empty the field
    event.target.blur();
    at("question").focus();
  } else if (!at("editor").hidden) {
    return; // what is written there would be lost
  } else if (!event.target.closest("input, select, textarea, dialog") && Object.hasOwn(keys, event.key)) {
    event.preventDefault();
    told(keys[event.key]);
  }
});

at("reject-dialog").addEventListener("keydown", (event) => {
  if (event.target === at("other-reason")) return;
  const chosen = at("reasons").querySelectorAll("input")[Number(event.key) - 1];
  if (!chosen) return;
  chosen.checked = true;
  chosen.focus();
});

const buttons = {
  accept,
  reject: askReason,
  edit: openEditor,
  undo,
  next: () => move(1),
  previous: () => move(-1),
  "page-on": () => turnPage(1),
  "page-back": () => turnPage(-1),
  "add-quote": () => addQuote().focus(),
  "save-anyway": () => save(true),
  "edit-cancel": closeEditor,
  "reject-cancel": () => at("reject-dialog").close(),
  "help-open": () => at("help").showModal(),
  "help-close": () => at("help").close(),
};
for (const [id, work] of Object.entries(buttons)) at(id).addEventListener("click", () => told(work));

at("editor").addEventListener("submit", (event) => {
  event.preventDefault();
  told(() => save(false));
});
at("reject-form").addEventListener("submit", (event) => {
  event.preventDefault();
  told(reject);
});
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("change", () => told(refresh));

// ---- start

told(async () => {
  const dataset = await call("/api/dataset");
  at("dataset").textContent = dataset.name;
  at("reviewer").textContent = dataset.reviewer;
  at("apply").textContent = dataset.apply;
  at("filter-type").append(...dataset.types.map((type) => new Option(type, type)));
  at("reasons").replaceChildren(...dataset.reasons.map((reason, n) => {
    const input = element("input", "");
    Object.assign(input, { type: "radio", name: "reason", value: reason });
    return element("label", "", input, `${n + 1}. ${reason}`);
  }));
  await refresh();
});
