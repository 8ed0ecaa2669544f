// The page of a raft server: a conversation with the documents.

import { Failure, answer, key, models } from "./server.js";
import { Turn } from "./turn.js";

const at = (id) => document.getElementById(id);
const MOST_TURNS = 8; // that are sent with a question

let turns = [];
let running = null; // the AbortController of the question in work
let waiting = null; // the question to ask once there is a key

// ---- asking

async function ask(question) {
  if (running) return;
  running = new AbortController(); // before anything is waited for: a second question must find it
  setBusy(true);
  at("error").hidden = true;
  try {
    if (at("collection").value || (await loadModels())) await take(question, running.signal);
    else if (at("key-form").hidden) at("question").value = question;
    else waiting = question;
  } finally {
    running = null;
    setBusy(false);
  }
}

async function take(question, signal) {
  const turn = new Turn(question, () => {
    if (!running) replace(turn);
  });
  show(turn);
  try {
    await follow(turn, signal);
  } catch (error) {
    told(turn, error);
  }
}

async function follow(turn, signal) {
  const messages = [...history(), { role: "user", content: turn.question }];
  const body = { model: at("collection").value, messages, ...filters() };
  let made = null;
  for await (made of answer(body, signal)) {
    if (!made.raft) turn.stream(made.content);
  }
  say(turn.finish(made));
}

function told(turn, error) {
  if (error.name === "AbortError") {
    turn.stop();
    say("Stopped.");
  } else if (error.status === 401) {
    remove(turn);
    waiting = turn.question;
    askForKey();
  } else {
    turn.fail(error instanceof Failure ? error.message : "This page failed to show the answer.", error.wait);
    if (!(error instanceof Failure)) throw error;
  }
}

// The finished turns before this question, as any client sends them.
function history() {
  return turns
    .filter((turn) => turn.content !== null)
    .slice(-MOST_TURNS)
    .flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.content },
    ]);
}

function show(turn) {
  turns.push(turn);
  at("turns").append(turn.article);
  document.body.dataset.talking = "";
  at("new").hidden = false;
  turn.article.scrollIntoView({ block: "start", behavior: "smooth" });
  say("Reading the documents.");
}

function remove(turn) {
  turns = turns.filter((other) => other !== turn);
  turn.article.remove();
}

function replace(turn) {
  remove(turn);
  at("question").focus();
  ask(turn.question);
}

function setBusy(busy) {
  at("stop").hidden = !busy;
  at("submit").disabled = busy;
}

const say = (text) => {
  at("status").textContent = text;
};

// ---- collection and filters

// Whether the server told its models; if not, why not is on the page.
async function loadModels() {
  try {
    const ids = await models();
    at("collection").replaceChildren(...ids.map((id) => new Option(nameOf(id), id)));
    at("collection-field").hidden = ids.length < 2;
    at("key-form").hidden = true;
    if (ids.length === 0) throw new Failure("This key may ask nothing of this server.");
    return true;
  } catch (error) {
    if (error.status === 401) askForKey(Boolean(key.known()));
    else showError(error.message);
    return false;
  }
}

// "raft:legal@tuned" is the collection legal as the model tuned answers.
function nameOf(id) {
  const [, collection = "Main collection", adapter] = /^[^:@]*(?::([^@]+))?(?:@(.+))?$/.exec(id) ?? [null, id];
  return adapter ? `${collection} (model ${adapter})` : collection;
}

const listed = (id) => at(id).value.split(",").map((part) => part.trim()).filter(Boolean);

function filters() {
  const chosen = { sources: listed("sources"), tags: listed("tags"), since: at("since").value, until: at("until").value };
  const given = Object.fromEntries(Object.entries(chosen).filter(([, value]) => value.length));
  return Object.keys(given).length ? { filters: given } : {};
}

function tellFilters() {
  const { sources, tags, since, until } = filters().filters ?? {};
  const parts = [
    sources && `source ${sources.join(" or ")}`,
    tags && `tag ${tags.join(" or ")}`,
    since && `from ${since}`,
    until && `up to ${until}`,
  ].filter(Boolean);
  at("limited").hidden = parts.length === 0;
  at("limits").textContent = `Only documents with ${parts.join(", ")}`;
}

function openFilters(open) {
  at("filters").hidden = !open;
  at("filter-toggle").setAttribute("aria-expanded", String(open));
  if (open) at("sources").focus();
}

// ---- keys, errors, a new conversation

function askForKey(wrong = false) {
  at("key-form").hidden = false;
  if (wrong) showError("The server does not know this key.");
  at("key").focus();
}

function showError(message) {
  at("error").textContent = message;
  at("error").hidden = false;
}

function startAnew() {
  running?.abort();
  turns = [];
  at("turns").replaceChildren();
  delete document.body.dataset.talking;
  for (const id of ["new", "error"]) at(id).hidden = true;
  at("question").value = "";
  at("question").focus();
  say("New conversation.");
}

// ---- the theme

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const following = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const label = `Theme: ${theme}. Change to ${following}`;
  at("theme").setAttribute("aria-label", label);
  at("theme").title = label;
  at("theme").onclick = () => {
    localStorage.setItem("raft-theme", following);
    setTheme(following);
  };
}

// ---- events

function submitQuestion() {
  const question = at("question").value.trim();
  if (!question || running) return;
  at("question").value = "";
  openFilters(false);
  ask(question);
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
at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.keep(at("key").value.trim());
  at("key").value = "";
  at("error").hidden = true;
  if (!(await loadModels())) return;
  at("question").focus();
  const question = waiting;
  waiting = null;
  if (question) ask(question);
});
at("filter-toggle").addEventListener("click", () => openFilters(at("filters").hidden));
at("filters").addEventListener("input", tellFilters);
at("clear").addEventListener("click", () => {
  for (const id of ["sources", "tags", "since", "until"]) at(id).value = "";
  tellFilters();
  at("question").focus();
});
at("new").addEventListener("click", startAnew);
at("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (at("passage").open) return; // its own keys
  if (event.key === "/" && !event.target.closest("textarea, input, select")) {
    event.preventDefault();
    at("question").focus();
  } else if (event.key === "Escape" && event.target.closest("#filters")) {
    openFilters(false);
    at("filter-toggle").focus();
  } else if (event.key === "Escape") {
    running?.abort();
  }
});

setTheme(document.documentElement.dataset.theme);
if ("keyed" in document.body.dataset && !key.known()) askForKey();
else loadModels();
