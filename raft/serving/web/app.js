// The page of a raft server. Words of models and documents enter it as text nodes, never as markup.

const { model, quoteBegin, quoteEnd, answerMark } = document.body.dataset;
const markers = [quoteBegin, quoteEnd, answerMark];
const at = (id) => document.getElementById(id);

let running = null; // the AbortController of the question in work

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// ---- the text of an answer

// The text without a marker that has only partly arrived.
function withoutTornMarker(text) {
  for (const marker of markers) {
    for (let size = Math.min(marker.length - 1, text.length); size > 0; size--) {
      if (text.endsWith(marker.slice(0, size))) return text.slice(0, -size);
    }
  }
  return text;
}

function withoutMarkers(text) {
  return markers.reduce((clean, marker) => clean.replaceAll(marker, ""), text);
}

// {thought, final}: what stands before the last answer mark, and the line after it (null without a mark).
function splitAnswer(text) {
  const mark = text.lastIndexOf(answerMark);
  if (mark < 0) return { thought: text, final: null };
  const lines = text.slice(mark + answerMark.length).split("\n").map((line) => line.trim());
  return { thought: text.slice(0, mark), final: withoutMarkers(lines.find(Boolean) ?? "") };
}

// The plain and the quoted parts of a thought. `start` is where a quote's words begin in the whole text.
function* parts(thought) {
  let from = 0;
  while (from < thought.length) {
    const begin = thought.indexOf(quoteBegin, from);
    yield { quoted: false, text: thought.slice(from, begin < 0 ? undefined : begin) };
    if (begin < 0) return;
    const start = begin + quoteBegin.length;
    const end = thought.indexOf(quoteEnd, start);
    yield { quoted: true, text: thought.slice(start, end < 0 ? undefined : end), start };
    if (end < 0) return;
    from = end + quoteEnd.length;
  }
}

// Nodes for a thought. `raft` is null while the text streams: its quotes are not yet checked.
function thoughtNodes(content, thought, raft) {
  const cited = new Map((raft?.citations ?? []).map((citation) => [utf16Offset(content, citation.text_start), citation]));
  return [...parts(thought)].flatMap((part) => {
    const text = withoutMarkers(part.text);
    if (!part.quoted) return text ? [text] : [];
    const citation = cited.get(part.start);
    const quote = element("q", raft && !citation ? "unverified" : "", text.trim());
    if (citation) return [quote, citationButton(citation, raft)];
    if (raft) quote.title = "These words do not stand in the documents";
    return [quote];
  });
}

// Offsets of the server count Unicode code points; those of JavaScript strings count UTF-16 units.
function utf16Offset(text, points) {
  return Array.from(text).slice(0, points).join("").length;
}

// ---- rendering

function renderStreaming(content) {
  const { thought, final } = splitAnswer(withoutTornMarker(content));
  at("evidence").hidden = !thought.trim();
  at("reasoning").replaceChildren(...thoughtNodes(content, thought.trimEnd(), null));
  if (final) at("verdict").replaceChildren(final);
  at("verdict").classList.toggle("waiting", !final);
}

function renderFinal(content, raft, wasCut) {
  const { thought, final } = splitAnswer(content);
  const nodes = thoughtNodes(content, thought.trimEnd(), raft);
  const verdict = at("verdict");
  verdict.classList.remove("waiting");
  verdict.classList.toggle("abstained", raft.abstained);
  if (raft.abstained) verdict.replaceChildren("The documents do not hold the answer.");
  else verdict.replaceChildren(...(final === null ? nodes : [final]));
  at("evidence").hidden = raft.abstained || final === null || !thought.trim();
  at("reasoning").replaceChildren(...(final === null ? [] : nodes));
  renderCaution(raft, wasCut);
  renderSources(raft);
  const count = new Set(raft.citations.map((citation) => citation.rank)).size;
  at("status").textContent = raft.abstained
    ? `${raft.documents.length} passages were read`
    : `${count} of ${raft.documents.length} passages quoted`;
}

function renderCaution(raft, wasCut) {
  const cautions = [];
  if (wasCut) cautions.push("The answer was cut at the server's length limit.");
  if (!raft.abstained && raft.unverified_quotes > 0) {
    cautions.push("Underlined words are put forward as a quote, but do not stand in the documents.");
  } else if (!raft.abstained && raft.citations.length === 0) {
    cautions.push("The answer quotes no document. Check it against the sources.");
  }
  at("caution").hidden = cautions.length === 0;
  at("caution").textContent = cautions.join(" ");
}

function renderSources(raft) {
  const cited = new Set(raft.citations.map((citation) => citation.rank));
  at("sources").hidden = raft.documents.length === 0;
  at("sources-title").textContent = raft.abstained ? "Passages that were read" : "Sources";
  at("source-list").replaceChildren(
    ...raft.documents.map((source) => {
      const place = element("span", "place", placeOf(source));
      const title = element("span", "title", titleOf(source), ...(cited.has(source.rank) ? [element("span", "tag", "quoted")] : []));
      const button = element("button", "source", element("span", "number", String(source.rank)),
        element("span", "about", title, place, element("span", "snippet", snippetOf(source))));
      button.type = "button";
      button.addEventListener("click", () => openPassage(source, raft.citations.filter((c) => c.rank === source.rank)));
      return element("li", "", button);
    }),
  );
}

function citationButton(citation, raft) {
  const button = element("button", "cite", String(citation.rank));
  button.type = "button";
  button.setAttribute("aria-label", `Show the quote in source ${citation.rank}`);
  const source = raft.documents.find((document) => document.rank === citation.rank);
  button.addEventListener("click", () => openPassage(source, [citation]));
  return button;
}

const titleOf = (source) => source.title || source.document_id;

// The passage without the headings it begins with: those stand above it already.
const snippetOf = (source) => source.text.trim().replace(/^(#+ .*\n+)+/, "");

function placeOf(source) {
  const headings = source.headings.filter((heading) => heading !== source.title);
  const page = source.page === null ? [] : [`page ${source.page}`];
  return [headings.join(" › "), ...page, source.document_id].filter(Boolean).join(" · ");
}

// Show a passage with the quotes marked in it.
function openPassage(source, citations) {
  at("passage-title").textContent = titleOf(source);
  at("passage-place").textContent = placeOf(source);
  at("passage-text").replaceChildren(...passageNodes(source, citations));
  at("passage").showModal();
  const mark = at("passage-text").querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else at("passage-text").scrollTop = 0;
  at("passage-text").focus({ preventScroll: true });
}

function passageNodes(source, citations) {
  const points = Array.from(source.text);
  const nodes = [];
  let from = 0;
  for (const { start, end } of citations.toSorted((a, b) => a.start - b.start)) {
    const [first, last] = [Math.max(start - source.start, from), end - source.start];
    if (last <= first) continue; // inside a quote that is marked already
    nodes.push(points.slice(from, first).join(""), element("mark", "", points.slice(first, last).join("")));
    from = last;
  }
  return [...nodes, points.slice(from).join("")];
}

// ---- asking

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    buffer += read.value;
    const whole = buffer.split("\n\n");
    buffer = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
  throw new Error("The connection ended before the answer was complete.");
}

async function complaint(response) {
  if (response.status === 429) {
    return `The server is busy. Try again in ${response.headers.get("retry-after") ?? "a few"} seconds.`;
  }
  const body = await response.json().catch(() => null);
  return `The server refused: ${body?.error?.message ?? `status ${response.status}`}.`;
}

async function request(question, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("raft-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = JSON.stringify({ model, messages: [{ role: "user", content: question }], stream: true });
  try {
    return await fetch("/v1/chat/completions", { method: "POST", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
}

async function streamAnswer(question, signal) {
  const response = await request(question, signal);
  if (response.status === 401) return askForKey();
  if (!response.ok) throw new Error(await complaint(response));
  let content = "";
  let raft = null;
  let reason = null;
  for await (const event of events(response)) {
    if (event.error) throw new Error(`The server failed: ${event.error.message}.`);
    const choice = event.choices[0];
    content += choice?.delta.content ?? "";
    reason = choice?.finish_reason ?? reason;
    raft = event.raft ?? raft;
    if (!raft) renderStreaming(content);
  }
  renderFinal(content, raft, reason === "length");
}

function askForKey() {
  at("result").hidden = true;
  at("status").textContent = "";
  at("key-form").hidden = false;
  at("key").focus();
}

function showWorking(question) {
  at("asked").textContent = question;
  at("verdict").className = "waiting";
  at("verdict").textContent = "Reading the documents…";
  for (const id of ["error", "caution", "evidence", "sources", "key-form"]) at(id).hidden = true;
  at("result").hidden = false;
  at("status").textContent = "";
}

function setBusy(busy) {
  at("result").setAttribute("aria-busy", String(busy));
  at("stop").hidden = !busy;
  at("submit").disabled = busy;
}

async function ask(question) {
  running = new AbortController();
  showWorking(question);
  setBusy(true);
  try {
    await streamAnswer(question, running.signal);
  } catch (error) {
    if (at("verdict").classList.contains("waiting")) at("verdict").textContent = "No answer";
    if (error.name === "AbortError") {
      at("status").textContent = "Stopped. Quotes of an unfinished answer are not checked.";
    } else {
      at("error").textContent = error.message;
      at("error").hidden = false;
    }
  } finally {
    running = null;
    setBusy(false);
  }
}

function submitQuestion() {
  const question = at("question").value.trim();
  if (question && !running) ask(question);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submitQuestion();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submitQuestion();
  }
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("raft-key", at("key").value.trim());
  at("key").value = "";
  submitQuestion();
});
at("stop").addEventListener("click", () => running?.abort());
at("passage-close").addEventListener("click", () => at("passage").close());
at("passage").addEventListener("click", (event) => {
  if (event.target === at("passage")) at("passage").close(); // the backdrop
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("textarea, input, dialog")) {
    event.preventDefault();
    at("question").focus();
  }
});
