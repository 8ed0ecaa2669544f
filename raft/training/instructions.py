"""General instructions as training data: JSON lines in the forms that chat fine-tuning knows::

    {"messages": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "7"}, ...]}
    {"instruction": "Translate into French.", "input": "Good day", "output": "Bonjour"}              (Alpaca)
    {"prompt": "Name a prime.", "completion": "7"}

Every turn of the assistant is an example of its own: all turns before it are its prompt, in the model's chat template
as inference would render them, and the loss counts on the turn alone. ``"weight": 0`` on a turn of ``messages`` leaves
it out of the loss (OpenAI's name for that). The examples of one conversation share their beginning, as the questions of
a context group share their documents (packing.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from raft.artifacts import digest
from raft.errors import InputError
from raft.models import prompt_ids, target_ids
from raft.prompts import Message
from raft.rows import read_rows
from raft.training.packing import Packed
from raft.training.tokenize import Tokenized

T = TypeVar("T")
_FORMS = "A row is messages [{role, content}, ...], or instruction, input and output, or prompt and completion"
_MOST_SHOWN = 10  # bad rows named in one message
_AFTER = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}


@dataclass(frozen=True, slots=True)
class Instruction:
    """A conversation, the assistant's turn last. The loss counts on the turns that ``learned`` numbers, from 0; ``id``
    follows from the words alone."""

    id: str
    turns: tuple[Message, ...]
    learned: tuple[int, ...]


def is_rows_file(data: Path) -> bool:
    """Whether training data is a file of JSON lines, and not an artefact; so is one that is not there, by its name."""
    return data.is_file() or (not data.exists() and ".jsonl" in data.suffixes)


def read_instructions(path: Path) -> list[Instruction]:
    """Every row of the file. Raises InputError that names each bad row by its number, or when there is none at all."""
    return parse_rows(path, _instruction, _FORMS)


def parse_rows(path: Path, parse: Callable[[Mapping[str, Any]], T], expected: str) -> list[T]:
    """``parse(row)`` of every row of a JSON lines file. Raises InputError, in one line, for all the rows of which it
    raised ValueError, or when there is no row; ``expected`` says what a row is."""
    found, bad = [], []
    for number, row in enumerate(read_rows(path), 1):
        try:
            found.append(parse(row))
        except ValueError as error:
            bad.append(f"row {number}: {error}")
    if bad:
        more = f"; and {len(bad) - _MOST_SHOWN} more" if len(bad) > _MOST_SHOWN else ""
        plural = "s" if len(bad) > 1 else ""
        raise InputError(f"{path} has {len(bad)} bad row{plural}: {'; '.join(bad[:_MOST_SHOWN])}{more}", expected)
    if not found:
        raise InputError(f"{path} holds no row", expected)
    return found


def tokenize_instruction(tokenizer: Any, row: Instruction) -> list[Tokenized]:
    """One example for each turn that counts."""
    return [
        Tokenized(
            f"{row.id}/{turn}",
            prompt_ids(tokenizer, row.turns[:turn]),
            target_ids(tokenizer, row.turns[turn].content),
        )
        for turn in row.learned
    ]


def mix_in(main: Sequence[Packed], pool: Sequence[Sequence[Packed]], share: float, seed: int) -> list[Packed]:
    """The main sequences in their order, and conversations of the pool spread evenly among them, so many that ``share``
    of the tokens that the loss counts are theirs (the last one may go beyond). Each is drawn once before any is drawn
    again, in another order every time: no two epochs see the same ones while there are others."""
    wanted = share / (1 - share) * sum(len(sequence.labels) for sequence in main)
    mixed: list[Packed] = []
    for conversation in _in_turn(pool, seed):
        mixed += conversation
        wanted -= sum(len(sequence.labels) for sequence in conversation)
        if wanted <= 0:
            break
    places = [((number + 0.5) / len(part), which, number) for which, part in enumerate((main, mixed))
              for number in range(len(part))]  # fmt: skip
    return [(main, mixed)[which][number] for _, which, number in sorted(places)]


def _in_turn(pool: Sequence[Sequence[Packed]], seed: int) -> Iterator[Sequence[Packed]]:
    for through in count():
        order = list(range(len(pool)))
        random.Random(f"{seed}:replay:{through}").shuffle(order)
        yield from (pool[number] for number in order)


# --- rows ------------------------------------------------------------------------------------------------------------


def _instruction(row: Mapping[str, Any]) -> Instruction:
    if unread := [name for name in ("tools", "functions", "history") if row.get(name)]:
        raise ValueError(f"it has {', '.join(unread)}, which cannot be learned from here")
    if "messages" in row:
        turns, learned = _conversation(row["messages"])
    elif "instruction" in row:
        more = f"\n\n{words_of(row, 'input')}" if row.get("input") else ""
        turns = [Message("system", words_of(row, "system"))] if row.get("system") else []
        turns.append(Message("user", words_of(row, "instruction") + more))
        learned = [len(turns)]
        turns.append(Message("assistant", words_of(row, "output")))
    elif "prompt" in row:
        turns = [Message("user", words_of(row, "prompt")), Message("assistant", words_of(row, "completion"))]
        learned = [1]
    else:
        has = ", ".join(sorted(map(repr, row))) or "nothing"
        raise ValueError(f"it has neither messages nor instruction nor prompt ({has:.120})")
    name = digest([[turn.role, turn.content] for turn in turns])[:16]
    return Instruction(name, tuple(turns), tuple(learned))


def words_of(row: Mapping[str, Any], name: str) -> str:
    """The text of a field, without the space around it. Raises ValueError where there is none."""
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r:.60}, expected some text")
    return text.strip()


def _conversation(given: Any) -> tuple[list[Message], list[int]]:
    """The turns, and the numbers of those that count."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"messages is {given!r:.60}, expected a list of turns")
    turns: list[Message] = []
    learned: list[int] = []
    for number, turn in enumerate(given):
        try:
            turns.append(_turn(turn, turns[-1].role if turns else None))
        except ValueError as error:
            raise ValueError(f"turn {number + 1}: {error}") from None
        if turns[-1].role == "assistant" and turn.get("weight", 1):
            learned.append(number)
    if turns[-1].role != "assistant":
        raise ValueError(f"its last turn is the {turns[-1].role}'s, expected the assistant's")
    if not learned:
        raise ValueError("every turn of the assistant has weight 0")
    return turns, learned


def _turn(given: Any, before: str | None) -> Message:
    if not isinstance(given, dict):
        raise ValueError(f"{given!r:.60} is no role and content")
    if given.get("tool_calls") or given.get("function_call"):
        raise ValueError("it calls a tool, which cannot be learned from here")
    role = given.get("role")
    if role not in _AFTER[before]:
        raise ValueError(f"role is {role!r:.40}, expected {' or '.join(_AFTER[before])}")
    if given.get("weight", 1) not in (0, 1):
        raise ValueError(f"weight is {given['weight']!r:.40}, expected 0 or 1")
    return Message(role, words_of(given, "content"))
