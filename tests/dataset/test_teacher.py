from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from raft.dataset.teacher import Budget, Prompt, Teacher
from raft.errors import CheckFailed, EndpointError, InputError
from raft.llm.chat import ChatReply
from raft.llm.replies import Replies
from raft.llm.scripted import ScriptedModel
from raft.prompts import Message


def silent(stage, done, total, note=""):
    pass


def prompts(count, words="tell me"):
    return [Prompt(f"p{n}", (Message("user", f"{words} {n}"),)) for n in range(count)]


def teacher(folder, model, **settings):
    return Teacher(model, Replies(folder / "replies.sqlite"), max_tokens=32, **settings)


def shout(request):
    return request.messages[-1].content.upper()


def test_every_prompt_gets_its_own_reply_as_often_as_it_is_wanted(tmp_path):
    model = ScriptedModel(shout)
    asking = teacher(tmp_path, model)
    asking.ask("answers", prompts(30), 30, silent)
    for prompt in prompts(30):
        assert asking.reply(prompt).text == prompt.messages[0].content.upper()
    assert len(model.requests) == asking.spending.calls == 30
    assert all(request.key.startswith("answers/") for request in model.requests)


def test_the_same_words_are_asked_once_whatever_they_are_called(tmp_path):
    model = ScriptedModel(shout)
    asking = teacher(tmp_path, model)
    seen = []
    twice = [*prompts(5), *(Prompt(f"other {n}", p.messages) for n, p in enumerate(prompts(5)))]
    asking.ask("answers", twice, 10, lambda stage, done, total, note="": seen.append((done, total)))
    assert len(model.requests) == 5
    assert asking.reply(twice[-1]).text == "TELL ME 4"
    assert seen[-1] == (10, 10)
    assert asking.spending.calls == 5


def test_replies_are_taken_in_the_order_of_the_prompts_as_early_as_that_allows(tmp_path):
    class Late(ScriptedModel):
        """Gives the replies of each four requests in the reverse order."""

        def complete(self, requests):
            requests = iter(requests)
            while some := list(itertools.islice(requests, 4)):
                given.append(list(taken))
                yield from reversed(list(super().complete(some)))

    given, taken = [], []

    def take(prompt, reply):
        assert prompt.messages == ()
        taken.append((prompt.name, prompt.about, reply.text))
        return True

    asked = [replace(prompt, about=n) for n, prompt in enumerate(prompts(9))]
    teacher(tmp_path, ScriptedModel(shout)).ask("answers", asked[:2] + asked[5:6], 3, silent)  # some are known
    teacher(tmp_path, Late(shout)).ask("answers", [*asked, asked[3]], 10, silent, take)
    in_order = [(f"p{n}", n, f"TELL ME {n}") for n in (*range(9), 3)]
    assert taken == in_order
    assert given[1] == in_order[:7]  # p2, p3, p4 and p6 were asked; p5 was known


def test_replies_that_wait_behind_a_late_one_hold_up_no_call_for_long(tmp_path):
    class FirstComesLast(ScriptedModel):
        def complete(self, requests):
            requests = iter(requests)
            first = next(requests)
            for n, request in enumerate(requests):
                yield from super().complete([request])
                between.append(len(taken))
                if n == 60:
                    yield from super().complete([first])

    between, taken = [], []

    def take(prompt, reply):
        taken.append(prompt.name)
        return True

    teacher(tmp_path, FirstComesLast(shout)).ask("answers", prompts(100), 100, silent, take)
    assert taken == [prompt.name for prompt in prompts(100)]
    assert between[60] == 0
    assert max(after - before for before, after in itertools.pairwise(between)) <= 8


def test_a_failed_reply_is_taken_like_any_other(tmp_path):
    def script(request):
        if request.messages[-1].content.endswith("1"):
            raise RuntimeError("busy")
        return shout(request)

    taken = []
    teacher(tmp_path, ScriptedModel(script)).ask(
        "answers", prompts(3), 3, silent, lambda prompt, reply: taken.append(reply.error) is None
    )
    assert taken == [None, "RuntimeError: busy", None]


def test_another_setting_model_or_schema_is_another_request(tmp_path):
    calls = []
    for settings in ({}, {"seed": 1}, {"temperature": 0.5}, {"source": ["http://elsewhere"]}):
        model = ScriptedModel(shout)
        teacher(tmp_path, model, **settings).ask("answers", prompts(3), 3, silent)
        calls.append(len(model.requests))
    model = ScriptedModel(shout, name="another")
    teacher(tmp_path, model).ask("answers", prompts(3), 3, silent)
    held = [Prompt(p.name, p.messages, {"type": "object"}) for p in prompts(3)]
    structured = ScriptedModel(shout)
    teacher(tmp_path, structured).ask("answers", held, 3, silent)
    assert [*calls, len(model.requests), len(structured.requests)] == [3] * 6
    assert structured.requests[0].schema == {"type": "object"}
    again = ScriptedModel(shout)
    teacher(tmp_path, again).ask("answers", prompts(3), 3, silent)
    assert again.requests == []


def test_a_cache_serves_every_run(tmp_path):
    cache = tmp_path / "cache.sqlite"
    first, second = ScriptedModel(shout), ScriptedModel(shout)
    for name, model in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        asking = teacher(tmp_path / name, model, cache=Replies(cache))
        asking.ask("answers", prompts(4), 4, silent)
        assert asking.reply(prompts(4)[3]).text == "TELL ME 3"
    assert (len(first.requests), len(second.requests)) == (4, 0)


def test_failed_calls_are_told_counted_and_asked_again_by_the_next_run(tmp_path):
    def script(request):
        if request.messages[-1].content.endswith("3"):
            raise RuntimeError("busy")
        return shout(request)

    asking = teacher(tmp_path, ScriptedModel(script))
    asking.ask("answers", prompts(10), 10, silent)
    assert asking.reply(prompts(10)[3]).error == "RuntimeError: busy"
    assert (asking.spending.calls, asking.spending.failed) == (9, 1)
    again = ScriptedModel(shout)
    resumed = teacher(tmp_path, again)
    resumed.ask("answers", prompts(10), 10, silent)
    assert [request.messages[-1].content for request in again.requests] == ["tell me 3"]
    assert resumed.spending.calls == 10


def test_a_teacher_that_mostly_fails_ends_early(tmp_path):
    def script(request):
        raise RuntimeError("no such model")

    model = ScriptedModel(script)
    with pytest.raises(EndpointError, match=r"20 of 20 calls .*no such model.*--resume"):
        teacher(tmp_path, model).ask("answers", prompts(500), 500, silent)
    assert len(model.requests) < 60


def test_a_budget_of_tokens_stops_the_run_and_loses_nothing(tmp_path):
    model = ScriptedModel(shout)  # three words asked, three written: six tokens a call
    with pytest.raises(CheckFailed, match=r"budget of 100 tokens is spent \(102\), after 17 calls; 17 of 50 answers"):
        teacher(tmp_path, model, budget=Budget(tokens=100)).ask("answers", prompts(50), 50, silent)
    more = ScriptedModel(shout)
    asking = teacher(tmp_path, more, budget=Budget(tokens=1000))
    asking.ask("answers", prompts(50), 50, silent)
    assert len(model.requests) + len(more.requests) == 50
    assert asking.spending.prompt_tokens + asking.spending.completion_tokens == 300


def test_a_budget_of_money_counts_both_prices(tmp_path):
    budget = Budget(money=0.00009, prompt_price=1.0, completion_price=9.0)  # a call: 3 + 27 millionths
    notes = []
    with pytest.raises(CheckFailed, match=r"budget of 9e-05 is spent .*after 3 calls"):
        asking = teacher(tmp_path, ScriptedModel(shout), budget=budget)
        asking.ask("answers", prompts(50), 50, lambda stage, done, total, note="": notes.append(note))
    assert asking.cost == pytest.approx(0.00009)
    assert all("cost" in note for note in notes)


def test_a_budget_that_is_just_enough_is_no_failure(tmp_path):
    asking = teacher(tmp_path, ScriptedModel(shout), budget=Budget(tokens=30))
    asking.ask("answers", prompts(5), 5, silent)
    assert asking.spending.calls == 5


def test_tokens_are_estimated_where_an_endpoint_counts_none(tmp_path):
    class Silent(ScriptedModel):
        def complete(self, requests):
            for reply in super().complete(requests):
                yield ChatReply(reply.key, reply.text)

    asking = teacher(tmp_path, Silent(lambda request: "x" * 400))
    asking.ask("answers", prompts(1, "y" * 400), 1, silent)
    assert asking.spending.completion_tokens == 101
    assert 100 < asking.spending.prompt_tokens < 110


def test_the_progress_tells_the_yield(tmp_path):
    notes = []
    teacher(tmp_path, ScriptedModel(shout)).ask(
        "answers", prompts(4), 4, lambda stage, done, total, note="": notes.append((stage, done, total, note)),
        lambda prompt, reply: prompt.name in ("p0", "p1"),
    )  # fmt: skip
    assert notes[-1] == ("answers", 4, 4, "50% of use")


def test_what_was_never_asked_has_no_reply(tmp_path):
    with pytest.raises(KeyError):
        teacher(tmp_path, ScriptedModel(shout)).reply(prompts(1)[0])


def test_calls_that_fail_for_good_do_not_stop_a_resumed_run(tmp_path):
    """Only they are left to ask: all new calls fail, and yet most prompts have their answer."""

    def script(request):
        if int(request.messages[-1].content.rsplit(" ", 1)[1]) % 6 == 0:
            raise RuntimeError("content filter")
        return shout(request)

    teacher(tmp_path, ScriptedModel(script)).ask("answers", prompts(180), 180, silent)
    again = ScriptedModel(script)
    teacher(tmp_path, again).ask("answers", prompts(180), 180, silent)
    assert len(again.requests) == 30


def test_a_resumed_run_needs_no_budget_for_what_is_on_disk(tmp_path):
    teacher(tmp_path, ScriptedModel(shout)).ask("answers", prompts(20), 20, silent)  # 120 tokens
    again = ScriptedModel(shout)
    asking = teacher(tmp_path, again, budget=Budget(tokens=60))
    asking.ask("answers", prompts(20), 20, silent)
    assert again.requests == []


def test_replies_of_other_runs_cost_nothing_and_stay_as_they_were(tmp_path):
    cache = tmp_path / "cache.sqlite"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    teacher(tmp_path / "one", ScriptedModel(shout), cache=Replies(cache)).ask("answers", prompts(9), 9, silent)
    asking = teacher(tmp_path / "two", ScriptedModel(shout), cache=Replies(cache), budget=Budget(tokens=6))
    asking.ask("answers", prompts(9), 9, silent)
    assert (asking.spending.calls, asking.spending.cached, asking.spending.prompt_tokens) == (0, 9, 0)
    cache.unlink()
    without = ScriptedModel(shout)
    teacher(tmp_path / "two", without).ask("answers", prompts(9), 9, silent)
    assert without.requests == []


def test_a_damaged_journal_is_named(tmp_path):
    store = Replies(tmp_path / "replies.sqlite")
    for n in range(500):
        store.put(ChatReply(f"{n:064d}", "x" * 200))
    store.close()
    path = tmp_path / "replies.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x07" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"replies\.sqlite (?:are damaged|cannot be opened)"):
        Replies(path).get(f"{7:064d}")


def test_a_reply_is_on_disk_as_soon_as_a_model_with_many_calls_has_it(tmp_path):
    class Many(ScriptedModel):
        def complete_and_keep(self, requests, keep):
            for reply in list(super().complete(requests)):
                if reply.error is None:
                    keep(reply)
                    on_disk.append(len(Replies(tmp_path / "replies.sqlite")))
                yield reply

    on_disk, model = [], Many(shout)
    asking = teacher(tmp_path, model)
    asking.ask("answers", prompts(5), 5, silent)
    assert on_disk == [1, 2, 3, 4, 5]
    assert (asking.spending.calls, asking.reply(prompts(5)[4]).text) == (5, "TELL ME 4")
