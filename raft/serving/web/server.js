// What the page asks of its server, and what can go wrong.

// `status` is that of the response (0 when there was none), `wait` the seconds after which asking again may help.
export class Failure extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

export const key = {
  known: () => sessionStorage.getItem("raft-key"),
  keep: (secret) => sessionStorage.setItem("raft-key", secret),
};

const USUAL_WAIT = 5; // seconds
const LONGEST_WAIT = 3600;

async function request(path, body, signal) {
  const headers = key.known() ? { Authorization: `Bearer ${key.known()}` } : {};
  const options = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const said = (await response.json().catch(() => null))?.error?.message;
  const given = Number.parseInt(response.headers.get("retry-after"), 10);
  const wait = Math.min(Number.isFinite(given) ? given : USUAL_WAIT, LONGEST_WAIT);
  if (status === 401) return new Failure("The server asks for a key, or does not know this one.", status);
  if (status === 413) return new Failure("This is more than the server reads at once. Begin a new conversation.", status);
  if (status === 429) return new Failure("The server has as much to do as it can.", status, wait);
  if (status === 503) return new Failure("The server is not ready to answer.", status, wait);
  return new Failure(`The server refused: ${sentence(said ?? `status ${status}`)}`, status);
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

// The ids of the models that may be asked, the default one first.
export async function models() {
  const list = await (await request("/v1/models")).json();
  return list.data.map((model) => model.id);
}

// The events of an answer: {id, content, raft, cut}, each with what has come so far. `raft` comes with the last one.
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", { ...body, stream: true }, signal);
  const made = { id: null, content: "", raft: null, cut: false };
  for await (const event of events(response)) {
    if (event.error) throw new Failure(`The server failed: ${sentence(event.error.message)}`);
    const choice = event.choices?.[0];
    made.id ??= event.id;
    made.content += choice?.delta?.content ?? "";
    made.cut ||= choice?.finish_reason === "length";
    made.raft = event.raft ?? made.raft;
    yield made;
  }
  if (!made.raft) throw new Failure("The connection broke before the answer was complete.");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  while (true) {
    const { done, value } = await next(reader);
    if (done) return;
    buffer += value;
    const whole = buffer.split(/\r?\n\r?\n/);
    buffer = whole.pop();
    for (const event of whole) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { done: true };
  }
}

// Keep what somebody says of an answer: {id, rating, correction, comment}.
export async function rate(opinion) {
  await request("/v1/feedback", opinion);
}
