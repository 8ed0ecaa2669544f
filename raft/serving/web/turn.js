// One question of the conversation and what became of it.

import { element, sourceItem, splitAnswer, thoughtNodes, withoutTornMarker } from "./answer.js";
import { takesFeedback } from "./feedback.js";

const REFUSED = "The documents do not hold the answer.";
let count = 0;

export class Turn {
  // `again` asks the same question anew.
  constructor(question, again) {
    this.question = question;
    this.content = null; // the whole text, once it is there
    this.article = document.getElementById("turn").content.firstElementChild.cloneNode(true);
    const heading = this.find("h2");
    heading.id = `turn-${++count}`;
    heading.textContent = question;
    this.article.setAttribute("aria-labelledby", heading.id);
    this.find(".again").addEventListener("click", again);
    this.find(".more").addEventListener("click", () => this.showSources(!this.showsAll));
    this.showsAll = false;
  }

  find(selector) {
    return this.article.querySelector(selector);
  }

  // While it streams: once a frame at most, however fast the words come.
  stream(content) {
    this.latest = content;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.render(this.latest);
    });
  }

  render(content) {
    const { thought, final } = splitAnswer(withoutTornMarker(content));
    this.find(".evidence").hidden = !thought.trim();
    this.find(".reasoning").replaceChildren(...thoughtNodes(content, thought, null));
    if (final) this.find(".verdict").replaceChildren(final);
    this.find(".verdict").classList.toggle("waiting", !final);
  }

  // Stop drawing what streams; returns whether something of it had been shown.
  settle() {
    if (this.frame) {
      cancelAnimationFrame(this.frame);
      this.frame = null;
      this.render(this.latest);
    }
    this.article.setAttribute("aria-busy", "false");
    return Boolean(this.latest);
  }

  // Returns what is said aloud of it.
  finish({ id, content, raft, cut }) {
    this.settle();
    this.content = content;
    const { thought, final } = splitAnswer(content);
    const nodes = thoughtNodes(content, thought, raft);
    const verdict = this.find(".verdict");
    verdict.className = raft.abstained ? "verdict abstained" : "verdict";
    if (raft.abstained) verdict.replaceChildren(REFUSED);
    else verdict.replaceChildren(...(final === null ? nodes : [final]));
    this.find(".evidence").hidden = raft.abstained || final === null || !thought.trim();
    this.find(".reasoning").replaceChildren(...(final === null ? [] : nodes));
    this.find(".searched").hidden = !raft.query || raft.query === this.question;
    this.find(".searched").textContent = `Searched for: ${this.once(raft.query ?? "")}`;
    const cautions = cautionsOf(raft, cut);
    this.find(".caution").hidden = cautions.length === 0;
    this.find(".caution").textContent = cautions.join(" ");
    this.listSources(raft);
    if (takesFeedback) takesFeedback(this.find(".rating"), id);
    const quoted = new Set(raft.citations.map((citation) => citation.rank)).size;
    const shown = `${quoted} of ${raft.documents.length} passages quoted.`;
    return raft.abstained ? REFUSED : `Answer: ${raft.answer}. ${shown} ${cautions.join(" ")}`;
  }

  // What was searched for, with the question in it once: twice, it weighs more in a search, and tells people nothing.
  once(query) {
    return query.endsWith(`${this.question} ${this.question}`) ? query.slice(0, -this.question.length - 1) : query;
  }

  listSources(raft) {
    const citations = (rank) => raft.citations.filter((citation) => citation.rank === rank);
    const items = raft.documents.map((source) => sourceItem(source, citations(source.rank)));
    const unquoted = items.filter((item) => item.classList.contains("unquoted")).length;
    this.find(".sources").hidden = items.length === 0;
    this.find(".sources h3").textContent = raft.abstained ? "Passages that were read" : "Sources";
    this.find(".sources ol").replaceChildren(...items);
    this.find(".more").hidden = unquoted === 0 || unquoted === items.length;
    this.moreText = unquoted === 1 ? "Show 1 more that was read" : `Show ${unquoted} more that were read`;
    this.showSources(unquoted === items.length);
  }

  showSources(all) {
    this.showsAll = all;
    this.find(".sources ol").classList.toggle("quoted-only", !all);
    this.find(".more").textContent = all ? "Show quoted sources only" : this.moreText;
    this.find(".more").setAttribute("aria-expanded", String(all));
  }

  // Stopped by the reader.
  stop() {
    const began = this.settle();
    this.leaveVerdict("Stopped");
    if (began) this.warn("Stopped. Quotes of an unfinished answer are not checked.");
    this.find(".failure").hidden = false;
  }

  // `wait` seconds must pass before the question may be asked again.
  fail(message, wait = 0) {
    const began = this.settle();
    this.leaveVerdict("No answer");
    if (began) this.warn("The answer is not complete, and its quotes are not checked.");
    this.find(".failure").hidden = false;
    this.find(".failure p").textContent = message;
    if (wait) this.countDown(wait);
  }

  leaveVerdict(text) {
    const verdict = this.find(".verdict");
    if (verdict.classList.contains("waiting")) verdict.replaceChildren(element("span", "none", text));
    verdict.classList.remove("waiting");
  }

  warn(text) {
    this.find(".caution").hidden = false;
    this.find(".caution").textContent = text;
  }

  countDown(seconds) {
    const button = this.find(".again");
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? `Ask again in ${seconds} s` : "Ask again";
    if (seconds > 0) setTimeout(() => this.countDown(seconds - 1), 1000);
  }
}

function cautionsOf(raft, cut) {
  const cautions = [];
  if (cut) cautions.push("The answer was cut at the server's length limit.");
  if (raft.dropped === 1) cautions.push("1 more passage was found, but did not fit and was not read.");
  if (raft.dropped > 1) cautions.push(`${raft.dropped} more passages were found, but did not fit and were not read.`);
  if (raft.abstained) return cautions;
  if (raft.unverified_quotes > 0) {
    cautions.push("Underlined words are put forward as a quote, but do not stand in the documents.");
  } else if (raft.citations.length === 0) {
    cautions.push("The answer quotes no document. Check it against the sources.");
  }
  return cautions;
}
