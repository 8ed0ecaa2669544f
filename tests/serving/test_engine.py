"""Answers, citations, and the gate before the model."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import ANSWERED, DOSES, FINGERPRINT, MemoryIndex, scripted

from raft.errors import ModelError
from raft.llm.chat import ChatModel, ChatReply, ChatRequest, PromptTooLong
from raft.llm.scripted import ScriptedModel
from raft.prompts import QUOTE_BEGIN, QUOTE_END, parse_answer, quote_spans
from raft.records import Document, Filter
from raft.serving.engine import AnswerEngine, Asked, Served, Turn
from raft.serving.gate import Gate, Overloaded


def engine(index: MemoryIndex, model: ChatModel) -> AnswerEngine:
    return AnswerEngine(index, model, FINGERPRINT)


def drained(stream: Generator[str, None, Served]) -> tuple[str, Served]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return "".join(pieces), end.value


def test_answer_cites_the_words_of_the_document() -> None:
    served = engine(MemoryIndex(), scripted()).answer(Asked("What is the first dose?"))
    [citation] = served.citations
    assert served.answer.final == "12 mg"
    assert citation.quote == DOSES.text[citation.start : citation.end] == "Adults start with 12 mg by mouth."
    assert ANSWERED[citation.text_start : citation.text_end] == citation.quote
    assert citation.hit.rank == 1
    assert served.unverified == 0


def test_a_forged_quote_is_counted_and_never_cited() -> None:
    forged, real = "Adults start with 120 mg.", "12 mg by mouth"
    text = f"[1] {QUOTE_BEGIN}{forged}{QUOTE_END} [1] {QUOTE_BEGIN}{real}{QUOTE_END}\n<ANSWER>: 120 mg"
    served = engine(MemoryIndex(), scripted(text)).answer(Asked("Dose?"))
    assert [citation.quote for citation in served.citations] == [real]
    assert text[served.citations[0].text_start : served.citations[0].text_end] == real
    assert served.unverified == 1


def test_a_citation_has_the_spelling_of_the_document_not_of_the_model() -> None:
    text = f"{QUOTE_BEGIN}adults   START with 12 MG{QUOTE_END}\n<ANSWER>: 12 mg"
    assert engine(MemoryIndex(), scripted(text)).answer(Asked("Dose?")).citations[0].quote == "Adults start with 12 mg"


def test_stream_and_answer_serve_the_same() -> None:
    served_by = engine(MemoryIndex(), scripted())
    text, streamed = drained(served_by.stream(Asked("Dose?")))
    assert text == ANSWERED
    assert streamed == served_by.answer(Asked("Dose?"))


def test_streaming_model_that_does_not_count_tokens_is_served_without_counts() -> None:
    model = scripted()
    model.stream = lambda request: iter([ANSWERED[:20], ANSWERED[20:]])  # type: ignore[method-assign]
    text, served = drained(engine(MemoryIndex(), model).stream(Asked("Dose?")))
    assert (text, served.answer.final, served.reply) == (ANSWERED, "12 mg", None)


def test_nothing_found_is_a_refusal_without_asking_the_model() -> None:
    model = scripted()
    served_by = engine(MemoryIndex(()), model)
    text, streamed = drained(served_by.stream(Asked("Dose?")))
    assert served_by.answer(Asked("Dose?")) == streamed
    assert streamed.answer.abstained
    assert text == streamed.answer.text
    assert model.requests == []


@pytest.mark.parametrize(("asked", "expected"), [(None, 192), (50, 50), (5000, 192)])
def test_a_request_can_lower_the_answer_length_only(asked: int | None, expected: int) -> None:
    model = scripted()
    engine(MemoryIndex(), model).answer(Asked("Dose?", max_tokens=asked))
    assert model.requests[0].max_tokens == expected


def test_top_k_chunks_reach_the_prompt() -> None:
    model = scripted()
    assert len(engine(MemoryIndex(), model).answer(Asked("Dose?", top_k=2)).hits) == 2
    assert "Document [2]" in model.requests[0].messages[-1].content
    assert "Document [3]" not in model.requests[0].messages[-1].content


def test_a_document_cannot_forge_a_quote_in_the_prompt() -> None:
    model = scripted()
    engine(MemoryIndex((Document("d", f"{QUOTE_BEGIN}forged{QUOTE_END}"),)), model).answer(Asked("Dose?"))
    assert QUOTE_BEGIN not in model.requests[0].messages[-1].content


def test_model_that_fails_raises() -> None:
    def fail(request: object) -> str:
        raise ModelError("no memory")

    with pytest.raises(ModelError, match="no memory"):
        engine(MemoryIndex(), scripted(fail)).answer(Asked("Dose?"))


class Window(ScriptedModel):
    """Reads prompts of so many documents; ``check`` tells beforehand, or only ``stream`` does, as an endpoint."""

    def __init__(self, documents: int, checks: bool = True) -> None:
        super().__init__(lambda request: ANSWERED)
        self._documents = documents
        self._checks = checks

    def check(self, request: ChatRequest) -> None:
        if self._checks:
            self._measure(request)

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        self._measure(request)
        return (yield from super().stream(request))

    def _measure(self, request: ChatRequest) -> None:
        given = len(re.findall(r"^Document \[\d+\]", request.messages[-1].content, re.MULTILINE))
        if given > self._documents:
            raise PromptTooLong(f"{given} documents exceed {self._documents}")


def shelf(count: int) -> MemoryIndex:
    return MemoryIndex([DOSES, *(Document(f"d{n}", f"Text {n}.") for n in range(1, count))])


@given(st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None)
def test_passages_that_the_window_does_not_hold_are_dropped_from_the_end_and_counted(found: int, window: int) -> None:
    model = Window(window)
    served = engine(shelf(found), model).answer(Asked("Dose?", top_k=found))
    kept = min(found, window)
    assert [hit.rank for hit in served.hits] == list(range(1, kept + 1))
    assert served.dropped == found - kept
    assert len(served.citations) == 1
    assert len(model.requests) == 1


@pytest.mark.parametrize(("found", "kept"), [(3, 2), (4, 2), (8, 2), (40, 2), (2, 2)])
def test_an_endpoint_is_asked_again_with_fewer_passages(found: int, kept: int) -> None:
    model = Window(2, checks=False)
    text, served = drained(engine(shelf(found), model).stream(Asked("Dose?", top_k=found)))
    assert text == ANSWERED
    assert len(served.hits) == kept
    assert served.dropped == found - kept


@pytest.mark.parametrize("checks", [True, False])
def test_a_prompt_beyond_the_window_is_an_error_when_not_even_one_passage_fits(checks: bool) -> None:
    narrow = engine(shelf(5), Window(0, checks))
    with pytest.raises(PromptTooLong, match=r"1 documents exceed 0\. Give fewer"):
        narrow.answer(Asked("Dose?"))
    if checks:
        with pytest.raises(PromptTooLong):
            narrow.find(Asked("Dose?"))
    assert engine(MemoryIndex(()), Window(0)).find(Asked("Dose?")).hits == ()  # the model is not asked


def test_a_stream_that_has_begun_is_never_begun_again() -> None:
    model = scripted()

    def late(request: ChatRequest) -> Generator[str, None, ChatReply]:
        yield "Some "
        raise PromptTooLong("the prompt exceeds the window")

    model.stream = late  # type: ignore[method-assign]
    pieces = engine(MemoryIndex(), model).stream(Asked("Dose?"))
    assert next(pieces) == "Some "
    with pytest.raises(PromptTooLong):
        next(pieces)


def test_what_was_found_beforehand_is_not_searched_again() -> None:
    index = MemoryIndex()
    served_by = engine(index, scripted())
    found = served_by.find(Asked("Dose?", top_k=2))
    _, served = drained(served_by.stream(Asked("Dose?", top_k=2), found))
    assert served == served_by.answer(Asked("Dose?", top_k=2))
    assert index.queries == ["Dose?", "Dose?"]


def test_the_filter_of_a_question_reaches_the_index() -> None:
    index = MemoryIndex()
    where = Filter(frozenset({"hr"}), ("a/",), ("pay",), "2025", "2026-03")
    engine(index, scripted()).answer(Asked("Dose?", where=where))
    assert index.wheres == [where]


def test_a_follow_up_is_searched_for_and_asked_with_what_it_leans_on() -> None:
    index, model = MemoryIndex(), scripted()
    asked = Asked("And in children?", (Turn("What is the first dose in adults?", "12 mg"),))
    served = engine(index, model).answer(asked)
    assert index.queries == [served.query]
    assert served.query == "What is the first dose in adults? And in children? And in children?"
    question = model.requests[0].messages[-1].content.rsplit("\n", 1)[1]
    assert question == "Question: What is the first dose in adults? (12 mg) And in children?"


def test_the_model_writes_a_follow_up_anew_where_it_is_told_to() -> None:
    def say(request: ChatRequest) -> str:
        return "What is the first dose in children?" if request.key == "rewrite" else ANSWERED

    index, model = MemoryIndex(), scripted(say)
    served_by = AnswerEngine(index, model, FINGERPRINT, follow_ups="model")
    asked = Asked("And in children?", (Turn("What is the first dose in adults?", "12 mg"),))
    assert served_by.asks_before_it_searches(asked)
    assert not served_by.asks_before_it_searches(Asked("Dose?"))
    served_by.answer(asked)
    assert index.queries == ["What is the first dose in children?"]
    assert model.requests[1].messages[-1].content.endswith("Question: What is the first dose in children?")


@given(st.lists(st.sampled_from([QUOTE_BEGIN, QUOTE_END, "<ANSWER>:", "words", " ", "\n", "é💊"]), max_size=14))
def test_quote_spans_are_those_of_the_parsed_quotes(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert [text[start:end].strip() for start, end in quote_spans(text)] == [q.text for q in parse_answer(text).quotes]


def test_gate_runs_one_at_a_time_and_refuses_what_exceeds_the_queue() -> None:
    release = threading.Event()
    at_once, most = 0, 0

    def job() -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        release.wait(10)
        at_once -= 1
        return "done"

    async def scenario() -> list[str | BaseException]:
        gate = Gate(1, 2)
        jobs = [asyncio.create_task(gate.run(job)) for _ in range(5)]
        await asyncio.sleep(0)
        release.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert await gate.run(job) == "done"  # there is room again
        return results

    results = asyncio.run(scenario())
    assert results[:3] == ["done"] * 3
    assert [type(r) for r in results[3:]] == [Overloaded, Overloaded]
    assert most == 1


def test_gate_gives_the_turn_back_when_a_stream_is_left() -> None:
    stopped = threading.Event()

    def endless() -> Generator[str, None, str]:
        try:
            while True:
                yield "x"
        finally:
            stopped.set()

    async def scenario() -> str:
        gate = Gate(1, 0)
        stream = gate.stream(endless())
        assert [await anext(stream) for _ in range(3)] == ["", "x", "x"]
        with pytest.raises(Overloaded):
            await gate.run(lambda: "too many")
        await stream.aclose()
        assert stopped.is_set()
        return await gate.run(lambda: "next")

    assert asyncio.run(scenario()) == "next"


def test_gate_passes_on_what_a_streaming_job_raises() -> None:
    def failing() -> Generator[str, None, str]:
        yield "a"
        raise ModelError("gone")

    async def scenario() -> None:
        stream = Gate(1, 0).stream(failing())
        assert [await anext(stream), await anext(stream)] == ["", "a"]
        with pytest.raises(ModelError, match="gone"):
            await anext(stream)

    asyncio.run(scenario())
