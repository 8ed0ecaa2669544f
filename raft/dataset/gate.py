"""The quality gate's books: what was accepted so far, in a fixed order, and what was refused, and why.

One row of ``rejected.jsonl``::

    {"id": "teacher-3f0a...", "question": "What does the text above say?", "answer": "12 mg",
     "question_type": "factual", "document_ids": ["formulary/corvalexin.md"],
     "reasons": ["question_speaks_of_text"], "said": "<the teacher's reply>"}

Both lie on disk: in memory stand the ids of the accepted questions, and what they rest on (``Basis``).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from raft.dataset.grounding import GroundedQuestion, question_from_row
from raft.dataset.pii import pii_flags
from raft.dataset.quality import (
    answer_faults,
    force_faults,
    form_faults,
    omission_faults,
    question_faults,
    subject_faults,
)
from raft.records import Chunk, QuestionType, Split, to_row
from raft.rows import Spool

REJECTED = "rejected.jsonl"
_ACCEPTED = "accepted.spool"


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds of the quality gate (config_generate.QualityRecipe)."""

    min_question_words: int = 1
    max_question_words: int = 1000
    max_answer_words: int = 1000
    min_answer_overlap: float = 0.0
    min_question_overlap: float = 0.0
    min_quote_overlap: float = 0.0
    named_subject: bool = False
    keep_pii: bool = True

    def of_question(self, question: str) -> list[str]:
        return question_faults(question, self.min_question_words, self.max_question_words)

    def of_answer(self, item: GroundedQuestion, oracles: Mapping[str, str]) -> list[str]:
        return answer_faults(item, oracles, self.max_answer_words, self.min_answer_overlap)

    def of_pair(self, item: GroundedQuestion, chunks: Sequence[Chunk]) -> list[str]:
        """What is wrong with question and answer together; for questions of a teacher."""
        known = {chunk.id: chunk for chunk in chunks}
        return [
            *form_faults(item),
            *subject_faults(item, known, self.min_question_overlap, self.named_subject),
            *omission_faults(item, self.min_quote_overlap),
            *(force_faults(item) if self.min_quote_overlap else []),
        ]


class Basis(NamedTuple):
    """What an accepted question rests on, and the split that it came with."""

    id: str
    document_ids: tuple[str, ...]
    oracle_ids: tuple[str, ...]
    split: Split | None


class Gate:
    """Iterating gives the accepted questions, in the order in which they came; each is read from disk."""

    def __init__(self, folder: Path, rules: Rules = Rules()) -> None:
        """Writes into this folder: ``rejected.jsonl``, and the accepted questions in ``scratch``."""
        self.folder = folder
        self.rules = rules
        self.scratch = folder / _ACCEPTED
        self._accepted = Spool(self.scratch)
        self._bases: list[Basis | None] = []  # by row; None where the question was refused later
        self._rows: dict[str, int] = {}  # of accepted questions
        self._rejected = (folder / REJECTED).open("w", encoding="utf-8")
        self._by_rule: Counter[str] = Counter()
        self.refused = 0
        self.documents: set[str] = set()  # whose words may stand in what is written here

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[GroundedQuestion]:
        return (self._read(at) for at, basis in enumerate(self._bases) if basis is not None)

    @property
    def bases(self) -> list[Basis]:
        """Of the accepted questions, in their order."""
        return [basis for basis in self._bases if basis is not None]

    def item(self, question_id: str) -> GroundedQuestion:
        """The accepted question with this id. Raises KeyError for any other."""
        return self._read(self._rows[question_id])

    def _read(self, at: int) -> GroundedQuestion:
        return question_from_row(self._accepted[at])

    def refuse(
        self,
        key: str,
        question: str,
        answer: str,
        reasons: Sequence[str],
        said: str = "",
        *,
        kind: QuestionType = "factual",
        document_ids: Sequence[str] = (),
        counted: bool = True,
    ) -> None:
        """Write down a refusal. What is not ``counted`` is a part of a question (its reasoning, say): the question
        itself stays."""
        row = {
            "id": key, "question": question, "answer": answer, "question_type": kind,
            "document_ids": list(document_ids), "reasons": list(reasons),
        }  # fmt: skip
        self._rejected.write(json.dumps(row | ({"said": said} if said else {}), ensure_ascii=False) + "\n")
        self._by_rule.update(reasons)
        self.documents.update(document_ids)
        self.refused += counted

    def judge(self, item: GroundedQuestion, reasons: Sequence[str], said: str = "") -> None:
        """Accept the question when there is no reason against it; personal data in its words are flagged, or are such a
        reason."""
        personal = () if reasons else pii_flags(item.question, item.answer, *(quote.text for quote in item.quotes))
        if reasons or (personal and not self.rules.keep_pii):
            self._refuse_item(item, reasons or personal, said if reasons else "")
        else:
            self.documents.update(item.document_ids)
            self._accepted.append(to_row(replace(item, flags=(*item.flags, *personal)) if personal else item))
            self._rows[item.id] = len(self._bases)
            self._bases.append(_basis_of(item))

    def sieve(
        self,
        decide: Callable[[GroundedQuestion], GroundedQuestion | Sequence[str]],
        among: Collection[str] | None = None,
    ) -> None:
        """Go through the accepted questions once more (``among`` these ids only): each stays as ``decide`` gives it
        back, or is refused for the reasons that it gives."""
        for at in [at for name, at in self._rows.items() if among is None or name in among]:
            item = self._read(at)
            decided = decide(item)
            if not isinstance(decided, GroundedQuestion):
                del self._rows[item.id]
                self._bases[at] = None
                self._refuse_item(item, decided)
            elif decided != item:
                self._accepted.replace(at, to_row(decided))
                self._bases[at] = _basis_of(decided)

    def refuse_where(self, reasons: Mapping[str, str]) -> None:
        """Refuse those accepted questions whose id has a reason."""
        if reasons:
            self.sieve(lambda item: [reasons[item.id]], reasons)

    def by_rule(self) -> dict[str, int]:
        """How often each rule refused."""
        return dict(self._by_rule.most_common())

    def close(self) -> None:
        self._rejected.close()
        self._accepted.close()

    def _refuse_item(self, item: GroundedQuestion, reasons: Sequence[str], said: str = "") -> None:
        self.refuse(
            item.id, item.question, item.answer, reasons, said,
            kind=item.question_type, document_ids=item.document_ids,
        )  # fmt: skip


def _basis_of(item: GroundedQuestion) -> Basis:
    """With names that are shared by all questions that rest on the same."""
    documents, oracles = (tuple(map(sys.intern, names)) for names in (item.document_ids, item.oracle_ids))
    return Basis(item.id, documents, oracles, item.split)
