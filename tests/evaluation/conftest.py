"""A real index over the invented world, built once, and its question file."""

from __future__ import annotations

import pytest

from raft.config import EvaluateRecipe
from tests.evaluation import world


@pytest.fixture(scope="session")
def world_recipe(tmp_path_factory: pytest.TempPathFactory) -> EvaluateRecipe:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("world")
    build_index(world.write_documents(folder / "documents"), folder / "index")
    questions = world.write_questions(folder / "questions.jsonl", world.questions())
    return EvaluateRecipe(
        search="bm25",
        index=folder / "index", questions=questions, top_k=2, shots=2, resamples=200,
        systems=("closed_book", "few_shot", "rag", "rag_short", "few_shot_rag", "rag_oracle", "raft", "raft_oracle"),
    )  # fmt: skip
