"""What the stub endpoint says: it reads the prompt, and answers with words of the documents in it.

    "Rules of the Lodge\nA late lantern costs 4 crowns a day.\n\nWrite 1 different questions ..."
        -> "1. What is said of Rules of the Lodge on late lantern costs crowns?"
    "Document [1] Rules of the Lodge\nA late lantern costs 4 crowns a day.\n\nQuestion: What is said of ...?"
        -> "Document [1] says ##begin_quote##A late lantern costs 4 crowns a day.##end_quote## ... <ANSWER>: A late ..."

The prompts of raft, of gorilla's raft.py, of raft-toolkit and of llama-index's RAFT pack are understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = "Zorblat"  # stands in questions that no document answers
_SENTENCE = re.compile(r"[^\s.!?][^.!?\n]*[.!?]?")
_DIGITS = re.compile(r"\d")
_WORD = re.compile(r"[^\W\d_]{4,}")
_ASKED = re.compile(r"^\s*Question: (.+)", re.MULTILINE)
_DOCUMENT = re.compile(r"^Document \[(\d+)\] .*$", re.MULTILINE)
_COUNT = re.compile(r"\b(?:write|generate|ask|make|give)\D{0,60}?(\d{1,2})\b[^.\n]{0,40}question", re.IGNORECASE)
_ASKING = re.compile(r"\n\n(?=(?:Write|Generate|Ask|Make|Give) )")
_CLOZE = re.compile(r"^Sentence: (.+)\nAnswer: ", re.MULTILINE)
_UNANSWERED = re.compile(r"unanswerable|\bnot answer|cannot be answered|\bno answer", re.IGNORECASE)
_YES_NO = re.compile(r"\byes or no\b", re.IGNORECASE)
_NUMERIC = re.compile(r"is a number|\bthe number and its unit\b", re.IGNORECASE)


def compose(body: Mapping[str, Any]) -> tuple[str, str]:
    """(stage, text) of the reply to a request: stage is "questions", "answer" or "other"."""
    messages = body["messages"]
    last, system = text_of(messages[-1]), " ".join(text_of(m) for m in messages if m["role"] == "system")
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    asked = _ASKED.search(last)
    if asked is not None and "Correct answer:" not in last:
        return "answer", _answer(asked.group(1).strip(), last, system)
    if (cloze := _CLOZE.search(last)) is not None:
        return "questions", _questions(cloze.group(1), 1, "")[0]
    wanted = _COUNT.search(last) or _COUNT.search(system)
    if wanted is not None:
        text, *asking = _ASKING.split(last)
        questions = _questions(text, int(wanted.group(1)), asking[-1] if asking else "")
        return "questions", json.dumps({"questions": questions}) if _has_questions(schema) else _numbered(questions)
    if schema is not None:
        return "other", json.dumps(_instance(schema, last))
    return "other", " ".join(_sentences(last)[0].split()[:30])


def text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _has_questions(schema: Mapping[str, Any] | None) -> bool:
    return "questions" in (schema or {}).get("properties", {})


def _numbered(questions: Sequence[str]) -> str:
    return "\n".join(f"{number}. {question}" for number, question in enumerate(questions, 1))


def _sentences(text: str) -> list[str]:
    """The sentences of a text with 5 to 40 words; the whole text where there is none."""
    found = [match.group().strip() for match in _SENTENCE.finditer(text)]
    return [sentence for sentence in found if 5 <= len(sentence.split()) <= 40] or [" ".join(text.split()[:40]) or "?"]


def _parts(text: str) -> list[tuple[int, str]]:
    """(number, text) of the documents of a prompt; the whole text is document 1 where none is numbered."""
    marks = list(_DOCUMENT.finditer(text))
    if not marks:
        return [(1, text)]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [(int(mark.group(1)), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]


def _questions(text: str, count: int, asking: str) -> list[str]:
    """``count`` questions of words of different sentences; over two documents of words of both."""
    subject = " ".join(_DOCUMENT.sub("", text).strip().split("\n", 1)[0].split()[:5]).strip("#[]:.,?")
    documents = [_sentences(part) for _, part in _parts(text)][:2]
    if _NUMERIC.search(asking):
        documents = [[each for each in found if _DIGITS.search(each)] or found for found in documents]
    last = [_ABSENT] if _UNANSWERED.search(asking) else []
    made = []
    for number in range(count):
        picked = [found[number * len(found) // count % len(found)] for found in documents]
        each = 8 // len(picked)
        words = [word for sentence in picked for word in list(dict.fromkeys(_WORD.findall(sentence)))[-each:]]
        made.append(f"What is said of {subject} on {' '.join([*words, *last])}?")
    return list(dict.fromkeys(made))


def _answer(question: str, prompt: str, system: str) -> str:
    """A quote of the nearest sentence of each document that speaks of the question, and an answer of its words."""
    if _ABSENT in question:
        return "None of the documents holds the answer.\n<ANSWER>: not in the documents"
    wanted = set(_WORD.findall(question))
    told = "Context:" in prompt and "Document [" not in prompt
    text = (prompt.split("Context:", 1)[1] if told else prompt).replace(f"Question: {question}", "")
    near = []
    for number, part in _parts(text):
        scored = ((len(wanted.intersection(_WORD.findall(sentence))), sentence) for sentence in _sentences(part))
        score, sentence = max(scored, key=lambda pair: pair[0])
        near.append((score, number, sentence))
    best = max(score for score, *_ in near)
    used = [(number, sentence) for score, number, sentence in near if 2 * score >= best][:2]
    quoted = " ".join(f"Document [{number}] says ##begin_quote##{sentence}##end_quote##" for number, sentence in used)
    return f"{quoted} The document says this itself.\n<ANSWER>: {_short(used[0][1], prompt + system)}"


def _short(sentence: str, asking: str) -> str:
    """Yes, a number with its neighbours, or the sentence's first words, by what is asked for."""
    if _YES_NO.search(asking):
        return "Yes"
    words = sentence.split()
    digits = [at for at, word in enumerate(words) if _DIGITS.search(word)] if _NUMERIC.search(asking) else []
    taken = words[digits[0] : digits[0] + 2] if digits else words[:12]
    return " ".join(taken).strip(" .,;:")


def _instance(schema: Mapping[str, Any], text: str) -> Any:
    """The plainest value that a JSON schema allows; texts are words of the prompt."""
    kind = schema.get("type")
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "object":
        return {name: _instance(value, text) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema.get("items", {}), text)]
    plain = {"boolean": True, "integer": schema.get("maximum", 1), "number": schema.get("maximum", 1.0), "null": None}
    return plain.get(str(kind), " ".join(_sentences(text)[0].split()[:12]))
