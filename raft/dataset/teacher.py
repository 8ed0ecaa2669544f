"""The teacher: a chat model whose replies survive a crash, within a budget.

    teacher.ask("answers", prompts, total, progress, take)    one call for each prompt that nobody has asked yet
    take(prompt, reply)                                       called meanwhile, in the order of the prompts
    teacher.reply(prompt)                                     the reply once more, from disk

A request is known by all its words and settings, so that a reply never answers another one, and the same request is
never sent twice. Failed calls are not kept: a resumed run tries them again.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from raft.artifacts import digest
from raft.errors import CheckFailed, EndpointError
from raft.llm.chat import ChatModel, ChatReply, ChatRequest, ConcurrentModel
from raft.llm.replies import Replies
from raft.prompts import Message
from raft.readers.plain import encodable

CHARACTERS_PER_TOKEN = 4  # of English, by rule of thumb
_TAKEN_AT_ONCE = 8  # replies that wait behind a late one, so that no call waits for all of them
_FIRST_REPLIES = 20  # so many replies before failures are judged while asking


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Told a stage, how much of it is done and of how much, and what it has come to so far."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked; ``name`` is the caller's name for it, ``about`` what the caller wants to know beside the reply."""

    name: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    about: Any = None


Take = Callable[[Prompt, ChatReply], bool]
"""Makes use of a reply and says whether it was of any. The prompt comes without its messages."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use at most, and the prices of a million tokens."""

    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@dataclass(slots=True)
class Spending:
    """What the replies of a run have used, those of earlier runs that it goes on from among them."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: int = 0
    cached: int = 0  # replies of other runs

    def add(self, reply: ChatReply) -> None:
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens


@dataclass(slots=True)
class _Stage:
    """One stage of asking: the requests in flight or answered, and how it goes."""

    name: str
    total: int
    progress: Progress
    take: Take
    waiting: dict[str, Prompt] = field(default_factory=dict)  # key -> what is in flight
    line: deque[tuple[Prompt, str]] = field(default_factory=deque)  # what is not yet taken, with its key
    kept: dict[str, ChatReply] = field(default_factory=dict)  # key -> what is on disk and not yet received
    seen: set[bytes] = field(default_factory=set)
    all_asked: bool = False
    done: int = 0
    told: tuple[int, int] = (0, 0)
    taken: int = 0
    of_use: int = 0
    asked: int = 0
    failed: int = 0


def _answered(prompt: Prompt, reply: ChatReply) -> bool:
    return reply.error is None


class Teacher:
    """``source`` says what else, beside its name, decides how the model replies: endpoint, adapter, engine."""

    def __init__(
        self,
        model: ChatModel,
        journal: Replies,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        budget: Budget = Budget(),
        source: Any = None,
        cache: Replies | None = None,
    ) -> None:
        self.spending = Spending()
        self.budget = budget
        self._model = model
        self._stores = [journal, *([] if cache is None else [cache])]
        self._settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._identity = [model.name, source, self._settings]
        self._failures: dict[str, ChatReply] = {}

    @property
    def cost(self) -> float:
        """In the money of the prices."""
        return self.budget.cost(self.spending.prompt_tokens, self.spending.completion_tokens)

    def ask(
        self,
        stage: str,
        prompts: Iterable[Prompt],
        total: int,
        progress: Progress,
        take: Take = _answered,
        *,
        optional: bool = False,
    ) -> None:
        """Ask what has no reply yet. ``take`` gets every prompt with its reply, in the order of the prompts and as
        soon as those before it have theirs, while other calls are in flight.

        Raises EndpointError as soon as more than half of at least 20 calls have failed, or of all at the end (but not
        of the few of an ``optional`` stage); CheckFailed when the budget is spent, the calls in flight (and the few
        that were made ready) finished and kept.
        """
        asking = _Stage(stage, total, progress, take)
        # every ChatModel answers with a generator; closing it cancels what is in flight
        with contextlib.closing(cast("Generator[ChatReply, None, None]", self._replies(prompts, asking))) as replies:
            for reply in replies:
                self._receive(reply, asking)
        self._hand_over(asking)
        if asking.failed and not (optional and asking.asked < _FIRST_REPLIES):
            self._check(asking.failed, asking.done, next(reversed(self._failures.values())).error)
        if (spent := self._spent()) is not None and asking.done < total:
            raise CheckFailed(
                f"{spent}, after {self.spending.calls} calls; {asking.done} of {total} {stage} are done",
                "Raise the teacher's budget and go on with --resume: nothing that was answered is lost",
            )

    def _replies(self, prompts: Iterable[Prompt], asking: _Stage) -> Iterator[ChatReply]:
        requests = self._new(prompts, asking)
        if isinstance(self._model, ConcurrentModel):
            return self._model.complete_and_keep(requests, lambda reply: self._keep(reply, asking))
        return self._model.complete(requests)

    def reply(self, prompt: Prompt) -> ChatReply:
        """The reply to a prompt that was asked before: as it came, or with its ``error``."""
        found = self._said(self._key(prompt))
        if found is None:
            raise KeyError(f"{prompt.name} was never asked")
        return found

    def _said(self, key: str) -> ChatReply | None:
        """The reply on disk, or else the one that failed."""
        return self._failures.get(key) or self._find(key)

    def _key(self, prompt: Prompt) -> str:
        return digest([self._identity, [[m.role, m.content] for m in prompt.messages], prompt.schema])

    def _find(self, key: str) -> ChatReply | None:
        return next((found for store in self._stores if (found := store.get(key)) is not None), None)

    def _known(self, key: str) -> ChatReply | None:
        """The reply on disk, counted. One of another run costs nothing; it goes into this run's journal, so that it is
        the same for good."""
        journal = self._stores[0]
        if (known := journal.get(key)) is not None:
            self.spending.add(known)
        elif (known := self._find(key)) is not None:
            journal.put(known)
            self.spending.cached += 1
        return known

    def _new(self, prompts: Iterable[Prompt], asking: _Stage) -> Iterator[ChatRequest]:
        """The requests that nothing on disk answers, until the budget is spent."""
        for prompt in prompts:
            self._hand_over(asking, _TAKEN_AT_ONCE)  # here, where the next calls are under way already
            key = self._key(prompt)
            asking.line.append((replace(prompt, messages=()), key))
            repeated = (short := bytes.fromhex(key[:32])) in asking.seen
            asking.seen.add(short)
            if repeated or self._known(key) is not None:
                asking.done += 1
            elif self._spent() is not None:
                return
            else:
                asking.waiting[key] = prompt
                yield ChatRequest(
                    f"{asking.name}/{key}", prompt.messages, schema=prompt.schema, **self._settings  # type: ignore[arg-type]
                )  # fmt: skip
        asking.all_asked = True

    def _keep(self, reply: ChatReply, asking: _Stage) -> None:
        """Put a good reply on disk; from any thread."""
        key = reply.key.rpartition("/")[2]
        reply = _with_usage(_writable(replace(reply, key=key)), asking.waiting[key])
        for store in self._stores:
            store.put(reply)
        asking.kept[key] = reply

    def _receive(self, reply: ChatReply, asking: _Stage) -> None:
        key = reply.key.rpartition("/")[2]
        if reply.error is None and key not in asking.kept:
            self._keep(reply, asking)
        reply = asking.kept.pop(key, reply)
        del asking.waiting[key]
        asking.asked += 1
        asking.done += 1
        if reply.error is None:
            self._failures.pop(key, None)
            self.spending.add(reply)
        else:
            self._failures[key] = _writable(replace(reply, key=key))
            asking.failed += 1
            self.spending.failed += 1
            if asking.asked >= _FIRST_REPLIES:
                self._check(asking.failed, asking.done, reply.error)
        if asking.all_asked:
            self._hand_over(asking)

    def _hand_over(self, asking: _Stage, most: int | None = None) -> None:
        """Let the caller take the replies whose turn it is, ``most`` of them, and tell how it goes."""
        before = asking.taken
        while asking.line and asking.line[0][1] not in asking.waiting and asking.taken - before != most:
            prompt, key = asking.line[0]
            reply = self._said(key)
            if reply is None:  # the budget was spent before it
                break
            asking.line.popleft()
            asking.taken += 1
            asking.of_use += asking.take(prompt, reply)
        if (asking.done, asking.taken) == asking.told:
            return
        asking.told = asking.done, asking.taken
        note = f"{asking.of_use / asking.taken:.0%} of use" if asking.taken else ""
        if self.cost:
            note += f", cost {self.cost:.2f}".removeprefix("" if note else ", ")
        asking.progress(asking.name, asking.done, asking.total, note)

    def _spent(self) -> str | None:
        used = self.spending.prompt_tokens + self.spending.completion_tokens
        if self.budget.tokens is not None and used >= self.budget.tokens:
            return f"the budget of {self.budget.tokens:,} tokens is spent ({used:,})"
        if self.budget.money is not None and self.cost >= self.budget.money:
            return f"the budget of {self.budget.money:g} is spent ({self.cost:.2f})"
        return None

    def _check(self, failed: int, asked: int, error: str | None) -> None:
        if 2 * failed > asked:
            raise EndpointError(
                f"{failed} of {asked} calls of the teacher {self._model.name} failed, the last with: {error}",
                "Mend the cause and go on with --resume: the replies that were taken in are kept",
            )


def _writable(reply: ChatReply) -> ChatReply:
    """The reply without halves of characters: an emoji that was cut at the last token, say."""
    return replace(reply, text=encodable(reply.text), error=None if reply.error is None else encodable(reply.error))


def _with_usage(reply: ChatReply, prompt: Prompt) -> ChatReply:
    """The reply with tokens by rule of thumb where the endpoint does not count them, so that budgets hold."""
    if reply.error is not None or reply.completion_tokens or not reply.text:
        return reply
    shown = sum(len(message.content) for message in prompt.messages)
    return replace(
        reply,
        prompt_tokens=reply.prompt_tokens or 1 + shown // CHARACTERS_PER_TOKEN,
        completion_tokens=1 + len(reply.text) // CHARACTERS_PER_TOKEN,
    )


def unusable(reply: ChatReply) -> list[str]:
    """Why a reply is not read at all: the call failed, or its text was cut at ``max_tokens``."""
    if reply.error is not None:
        return ["teacher_failed"]
    return ["reply_cut"] if reply.truncated else []
