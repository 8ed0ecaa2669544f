// The text of an answer as nodes. Words of models and documents enter the page as text, never as markup.

const { quoteBegin, quoteEnd, answerMark } = document.body.dataset;
const markers = [quoteBegin, quoteEnd, answerMark];

export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// The text without a marker that has only partly arrived.
export function withoutTornMarker(text) {
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
export function splitAnswer(text) {
  const mark = text.lastIndexOf(answerMark);
  if (mark < 0) return { thought: text.trimEnd(), final: null };
  const lines = text.slice(mark + answerMark.length).split("\n").map((line) => line.trim());
  return { thought: text.slice(0, mark).trimEnd(), final: withoutMarkers(lines.find(Boolean) ?? "") };
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

// Nodes for a thought of `content`. `raft` is null while the text streams: its quotes are not yet checked.
export function thoughtNodes(content, thought, raft) {
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

function citationButton(citation, raft) {
  const button = element("button", "cite", String(citation.rank));
  button.type = "button";
  button.setAttribute("aria-label", `Show the quote in source ${citation.rank}`);
  const source = raft.documents.find((document) => document.rank === citation.rank);
  button.addEventListener("click", () => openPassage(source, [citation]));
  return button;
}

// ---- sources

const titleOf = (source) => source.title || source.document_id;

// The passage without the headings it begins with: those stand above it already.
const snippetOf = (source) => source.text.trim().replace(/^(#+ .*\n+)+/, "");

function placeOf(source) {
  const headings = source.headings.filter((heading) => heading !== source.title);
  const page = source.page === null ? [] : [`page ${source.page}`];
  return [headings.join(" › "), ...page, source.document_id].filter(Boolean).join(" · ");
}

export function sourceItem(source, citations) {
  const isQuoted = citations.length > 0;
  const title = element("span", "title", titleOf(source), ...(isQuoted ? [element("span", "tag", "quoted")] : []));
  const place = element("span", "place", placeOf(source));
  const about = element("span", "about", title, place, element("span", "snippet", snippetOf(source)));
  const button = element("button", "source", element("span", "number", String(source.rank)), about);
  button.type = "button";
  button.addEventListener("click", () => openPassage(source, citations));
  return element("li", isQuoted ? "" : "unquoted", button);
}

// ---- the passage

const at = (id) => document.getElementById(id);

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
  for (const { start, end } of [...citations].sort((a, b) => a.start - b.start)) {
    const [first, last] = [Math.max(start - source.start, from), end - source.start];
    if (last <= first) continue; // inside a quote that is marked already
    nodes.push(points.slice(from, first).join(""), element("mark", "", points.slice(first, last).join("")));
    from = last;
  }
  return [...nodes, points.slice(from).join("")];
}

at("passage-close").addEventListener("click", () => at("passage").close());
at("passage").addEventListener("click", (event) => {
  if (event.target === at("passage")) at("passage").close(); // the backdrop
});
