"""The page: answers, a conversation, feedback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import ANSWERED, DOSES, FINGERPRINT, STORAGE, DrippingModel, MemoryIndex, scripted, serving
from pages import REFUSED, keeping

from raft.llm.chat import PromptTooLong
from raft.llm.scripted import ScriptedModel
from raft.serving.engine import AnswerEngine
from raft.serving.feedback import Opinion, read_feedback

pytestmark = pytest.mark.browser


# --- an answer --------------------------------------------------------------------------------------------------------


def test_ask_stream_cite_and_read_the_source(open_page, server: str) -> None:
    watched = open_page(server)
    page = watched.page
    watched.ask()
    watched.done()
    assert watched.text("h2") == "What is the first dose?"
    assert watched.text(".verdict") == "12 mg"
    assert watched.text(".reasoning q") == "Adults start with 12 mg by mouth."
    assert page.locator(".sources li").count() == 3
    page.get_by_role("button", name="Show the quote in source 1").click()
    assert page.inner_text("#passage-title") == "Corvalexin"
    assert page.inner_text("#passage-text mark") == "Adults start with 12 mg by mouth."
    assert page.evaluate("document.activeElement.id") == "passage-text"
    page.keyboard.press("Escape")
    assert not page.is_visible("#passage")
    assert page.evaluate("document.activeElement.className") == "cite"
    assert [page.locator(".source").nth(n).is_visible() for n in range(3)] == [True, False, False]
    page.get_by_role("button", name="Show 2 more that were read").click()
    page.locator(".source").nth(1).click()
    assert page.text_content("#passage-text") == STORAGE.text
    assert page.locator("#passage-text mark").count() == 0
    assert watched.complaints == []


@pytest.mark.parametrize(
    ("cut", "shown"),
    [
        (ANSWERED.index("ote##"), "Document [1] says"),
        (ANSWERED.index("12 mg by"), "Adults start with"),
        (ANSWERED.index("d_quote##"), "12 mg by mouth."),
        (ANSWERED.index("WER>"), "adult dose at 12 mg."),
        (len(ANSWERED) - 1, "12 m"),
    ],
)
def test_markers_are_never_shown_while_the_answer_streams(open_page, cut: int, shown: str) -> None:
    model = DrippingModel([ANSWERED[:cut], ANSWERED[cut:]])
    with serving(model) as url:
        watched = open_page(url)
        watched.ask()
        model.step.release()
        watched.page.locator(".answer", has_text=shown).wait_for()
        assert not any(torn in watched.text(".answer") for torn in ("#", "quote", "<", "ANSW"))
        model.step.release()
        watched.done()
        assert watched.text(".verdict") == "12 mg"
        assert watched.text(".reasoning q") == "Adults start with 12 mg by mouth."
        assert watched.complaints == []


def test_markup_of_documents_models_and_questions_is_inert(open_page) -> None:
    script = "<script>window.hacked=1</script>"
    text = f'<img src=x onerror="window.hacked=1"> **b** ##begin_quote##{script}##end_quote##\n<ANSWER>: <b>x</b>'
    with serving(scripted(text)) as url:
        watched = open_page(url)
        page = watched.page
        watched.ask(f"{script}<b>?</b>")
        watched.done()
        assert watched.text("h2") == f"{script}<b>?</b>"
        assert watched.text(".verdict") == "<b>x</b>"
        assert '<img src=x onerror="window.hacked=1"> **b**' in watched.text(".reasoning")
        page.get_by_role("button", name="Show the quote in source 3").click()
        assert page.inner_text("#passage-text mark") == script
        assert page.inner_text("#passage-title") == "<b onclick=alert(1)>Hostile</b>"
        assert (
            page.locator("main img, main b, main strong, main script, dialog img, dialog b, dialog script").count() == 0
        )
        assert page.evaluate("window.hacked") is None
        assert watched.complaints == []


def test_a_forged_quote_is_marked_and_cannot_be_opened(open_page) -> None:
    with serving(scripted("[1] ##begin_quote##Adults start with 90 mg.##end_quote##\n<ANSWER>: 90 mg")) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.page.locator("q.unverified").count() == 1
        assert watched.page.locator(".cite").count() == 0
        assert "do not stand in the documents" in watched.text(".caution")
        assert "do not stand in the documents" in watched.status()


def test_an_abstention_is_plain_to_see(open_page) -> None:
    with serving(scripted(REFUSED)) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.text(".verdict.abstained") == "The documents do not hold the answer."
        assert watched.text(".sources h3").lower() == "passages that were read"
        assert watched.page.locator(".source").last.is_visible()
        assert watched.complaints == []


def test_an_answer_without_its_marker_is_shown_with_its_quotes(open_page) -> None:
    with serving(scripted("[1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## \U0001f48a")) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.text(".verdict q") == "Adults start with 12 mg by mouth."
        assert watched.page.locator(".verdict .cite").count() == 1


def test_offsets_hold_behind_characters_outside_the_basic_plane(open_page) -> None:
    with serving(
        scripted("\U0001f48a\U0001f48a [1] ##begin_quote##12 mg by mouth##end_quote##\n<ANSWER>: 12 mg")
    ) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        watched.page.locator(".cite").click()
        assert watched.page.inner_text("#passage-text mark") == "12 mg by mouth"


class SmallWindow(ScriptedModel):
    """Reads one passage and no more."""

    def check(self, request: Any) -> None:
        if "Document [2]" in request.messages[-1].content:
            raise PromptTooLong("the prompt has 900 tokens; the model reads 500")


def test_passages_that_did_not_fit_are_told(open_page) -> None:
    with serving(SmallWindow(lambda request: ANSWERED)) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert "2 more passages were found, but did not fit and were not read." in watched.text(".caution")


# --- a conversation ---------------------------------------------------------------------------------------------------


def test_turns_stay_and_are_sent_until_a_new_conversation(open_page, server: str) -> None:
    watched = open_page(server)
    page = watched.page
    watched.ask("What is the first dose?")
    watched.done()
    watched.ask("And in children?")
    watched.done(2)
    assert page.locator(".turn h2").all_inner_texts() == ["What is the first dose?", "And in children?"]
    assert watched.bodies[1]["messages"] == [
        {"role": "user", "content": "What is the first dose?"},
        {"role": "assistant", "content": ANSWERED},
        {"role": "user", "content": "And in children?"},
    ]
    assert watched.text(".searched") == "Searched for: What is the first dose? And in children?"
    assert not page.locator(".searched").first.is_visible()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.get_by_role("heading", name="Ask the documents").is_visible()
    watched.ask("Who?")
    watched.done()
    assert [message["content"] for message in watched.bodies[2]["messages"]] == ["Who?"]
    assert watched.complaints == []


def test_a_collection_and_filters_go_with_the_question(open_page) -> None:
    legal = MemoryIndex([replace(STORAGE, source="leases/a.pdf", metadata={"tags": ["rent"]}), DOSES])
    more = {
        "raft:legal": AnswerEngine(legal, scripted("<ANSWER>: of the law"), FINGERPRINT),
        "raft:legal@careful": AnswerEngine(legal, scripted(REFUSED), FINGERPRINT),
    }
    with serving(scripted(), more=more) as url:
        watched = open_page(url)
        page = watched.page
        page.get_by_label("Collection").wait_for()
        assert page.locator("#collection option").all_inner_texts() == [
            "Main collection", "legal", "legal (model careful)",
        ]  # fmt: skip
        page.get_by_label("Collection").select_option("raft:legal")
        page.get_by_role("button", name="Filter").click()
        assert page.evaluate("document.activeElement.id") == "sources"
        page.get_by_label("whose source begins with").fill("leases/, statutes/2024")
        page.get_by_label("that bear the tag").fill("rent")
        page.get_by_label("dated from").fill("2024-01-31")
        page.keyboard.press("Escape")
        assert page.get_by_role("button", name="Filter").get_attribute("aria-expanded") == "false"
        limits = "Only documents with source leases/ or statutes/2024, tag rent, from 2024-01-31"
        assert page.inner_text("#limits") == limits
        watched.ask("Who pays?")
        watched.done()
        assert watched.text(".verdict") == "of the law"
        body = watched.bodies[0]
        assert body["model"] == "raft:legal"
        assert body["filters"] == {"sources": ["leases/", "statutes/2024"], "tags": ["rent"], "since": "2024-01-31"}
        assert watched.page.locator(".source").count() == 1
        assert legal.wheres[0].since == "2024-01-31"
        page.get_by_role("button", name="Clear").click()
        watched.ask("Who?")
        watched.done(2)
        assert "filters" not in watched.bodies[1]
        assert watched.complaints == []


def test_with_one_collection_there_is_nothing_to_choose(open_page, server: str) -> None:
    watched = open_page(server)
    watched.ask()
    watched.done()
    assert not watched.page.is_visible("#collection")


def test_a_second_question_waits_until_the_first_is_answered(open_page, server: str) -> None:
    watched = open_page(server)
    page = watched.page
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))  # the page knows no model when it is asked
    page.reload()
    watched.ask("What is the first dose?")
    watched.ask("And in children?")
    assert page.input_value("#question") == "And in children?"
    for route in held:
        route.continue_()
    watched.done()
    assert [body["messages"][-1]["content"] for body in watched.bodies] == ["What is the first dose?"]
    assert watched.complaints == []


# --- feedback ---------------------------------------------------------------------------------------------------------


def test_thumbs_and_a_correction_are_kept(open_page, tmp_path: Path) -> None:
    with keeping(tmp_path) as (url, path):
        watched = open_page(url)
        page = watched.page
        watched.ask("What is the first dose?")
        watched.done()
        page.get_by_role("button", name="Good answer").click()
        page.get_by_text("Thank you.").wait_for()
        assert page.get_by_role("button", name="Good answer").get_attribute("aria-pressed") == "true"
        assert [row.opinion for row in read_feedback(path)] == [Opinion("up")]
        page.get_by_role("button", name="Bad answer").click()
        page.get_by_text("You may add a correction.").wait_for()
        assert page.get_by_role("button", name="Good answer").get_attribute("aria-pressed") == "false"
        assert page.evaluate("document.activeElement.className") == "right"
        page.keyboard.type("5 mg in children")
        page.get_by_label("Anything else?").fill("see page 3")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("Your correction is kept.").wait_for()
        assert not page.is_visible(".correction")
        [row] = read_feedback(path)
        assert row.opinion == Opinion("down", "5 mg in children", "see page 3")
        assert (row.given.question, row.given.text) == ("What is the first dose?", ANSWERED)
        page.get_by_role("button", name="Bad answer").click()
        page.get_by_text("You may add a correction.").wait_for()
        [row] = read_feedback(path)  # a second thumb takes nothing back
        assert row.opinion == Opinion("down", "5 mg in children", "see page 3")
        assert watched.complaints == []


def test_feedback_that_is_not_kept_is_told(open_page, tmp_path: Path) -> None:
    with keeping(tmp_path) as (url, path):
        watched = open_page(url)
        page = watched.page
        watched.ask()
        watched.done()
        page.route("**/v1/feedback", lambda route: route.fulfill(status=404, json={"error": {"message": "gone"}}))
        page.get_by_role("button", name="Good answer").click()
        page.get_by_text("Not kept. The server no longer knows this answer.").wait_for()
        assert page.get_by_role("button", name="Good answer").get_attribute("aria-pressed") == "false"
        assert read_feedback(path) == []


def test_a_server_that_keeps_no_feedback_asks_for_none(open_page, server: str) -> None:
    watched = open_page(server)
    watched.ask()
    watched.done()
    assert not watched.page.get_by_role("button", name="Good answer").is_visible()
