"""An export against its source: loaded again by what will load it, it must answer and score as the tuned model does.

    merged, adapter   the same greedy answers from transformers and PEFT as from raft
    gguf              the same prompts and tokens from llama.cpp, and a perplexity within a bound of the source's

The prompts are those of training (prompts.build_messages) over invented documents, which no model was tuned on.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.errors import CheckFailed
from raft.llm.local import Weights
from raft.models import Precision, common_prefix_length, load_language_model, load_tokenizer, prompt_ids, target_ids
from raft.prompts import Message, build_messages, render_target
from raft.records import Chunk, Quote
from raft.training.gguf_file import pre_tokenizer_name
from raft.training.llama_engine import Questions, Replies, ask_llama, is_installed

ANSWER_TOKENS = 48
# How far the perplexity of a GGUF file may be from its source's, as a factor either way. Measured in llama.cpp with
# SmolLM2-135M as it is: f16 0.9997, q8_0 1.009, q4_0 1.19.
MOST_RATIO = {"f16": 1.005, "q8_0": 1.03, "q4_0": 1.4}
_TIE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}  # logits this near may change places by rounding alone

_TITLES = ("Harrow Quay, tide gate", "Stores of the Lindmoor mission", "Röthen valley railway")
_TEXTS = (
    "The tide gate of Harrow Quay is closed 90 minutes before high water on spring tides, and 40 minutes before it on "
    "neap tides. Masters who must pass later call the warden on channel 11; she may open it once more if the swell "
    "stays below 0.6 m.",
    "Lamp oil is issued on Mondays: 2.5 litres for each ward, 4 litres for the theatre. What is left on Sunday goes "
    "back to the store and is written in the blue ledger. Quinine isn't issued without the matron's signature.",
    "Between Röthen and Alt-Brück the line climbs 312 m in 9 km; trains of more than six coaches take a second engine "
    "at the rear (\u201cpusher\u201d), which is uncoupled at km 14 without stopping. In frost below \u221212 \u00b0C "
    "the rack is greased before the first run.",
)
_ASKED = (  # question, answer, which text holds it, its quote; in ASCII: llama.cpp gives no score to half a character
    ("How long before high water is the tide gate closed on spring tides?", "90 minutes", 0,
     "The tide gate of Harrow Quay is closed 90 minutes before high water on spring tides"),
    ("How much lamp oil does the theatre get?", "4 litres", 1,
     "Lamp oil is issued on Mondays: 2.5 litres for each ward, 4 litres for the theatre."),
    ("Which trains take a second engine at the rear?", "those of more than six coaches", 2,
     "trains of more than six coaches take a second engine at the rear"),
)  # fmt: skip
_HELD = (
    "The harbour office keeps three books. In the first stands every ship that came in, with her draught, her master "
    "and the hour; in the second what she landed and what was paid for it; the third is for complaints, and most of "
    "its pages are empty. Whoever wants to read them asks at the counter before noon, signs his name, and is given a "
    "chair by the window. Copies cost two pence a page. The books of past years lie in the cellar, where the flood of "
    "1953 reached the second shelf: what stood below it was dried on ropes in the net loft, and can be read for the "
    "most part, but nobody may take it out of its wrapping without gloves."
)
# Digits, runs of spaces, contractions, scripts and signs: where two ways of cutting text into words would differ.
_ODD = (
    "It's 1,250.75 mg \u2014  twice\tdaily\u2026\n\n\n   Don't; WE'LL see: x\u00b2+y\u00b3 \u2248 3.14159? na\u00efve "
    "\u00c6r\u00f8 \u6771\u4eac\u306f\u6674\u308c\u3002 \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! "
    '\U0001f642 \u0645\u0631\u062d\u0628\u0627\r\nif(a>=10):\n    return {"b_2": 1000}\n\n'
    "Wards:\n- one;\n- two.\n    # end  \n"
)


@dataclass(frozen=True, slots=True)
class Check:
    """How an export stood up: ``engine`` loaded it, ``same_answers`` of ``prompts`` greedy answers were the source's to
    the last token. Perplexities are of the invented texts; ``most_ratio`` is how far apart they may be."""

    engine: str
    prompts: int
    same_answers: int
    perplexity: float | None = None
    source_perplexity: float | None = None
    most_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source makes of the prompts: token ids, greedy answers (without the end of the turn) and, where asked
    for, the log-probabilities of the pairs' targets."""

    prompts: list[list[int]]
    answers: list[list[int]]
    ends: frozenset[int]
    pairs: list[tuple[list[int], list[int]]]
    logprobs: list[float]


def expect(model: Any, tokenizer: Any, scored: bool = False) -> Expected:
    """What an export of this model must do; ``scored`` computes log-probabilities too."""
    from raft.llm.decode import Row, decode

    prompts = [prompt_ids(tokenizer, messages) for messages in _messages()]
    ends = _end_ids(model, tokenizer)
    rows = [Row(i, prompt, ANSWER_TOKENS) for i, prompt in enumerate(prompts)]
    answers: list[list[int]] = [[] for _ in rows]
    for step in decode(model, rows, ends):
        for row, token in step:
            answers[row.index].append(token)
    pairs = _pairs(tokenizer, prompts)
    return Expected(prompts, answers, ends, pairs, _logprobs(model, pairs) if scored else [])


def check_merged(folder: Path, expected: Expected, device: Any) -> Check:
    """The check of a folder that plain transformers loads. Raises CheckFailed."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    if [prompt_ids(tokenizer, messages) for messages in _messages()] != expected.prompts:
        raise CheckFailed("the exported tokenizer or chat template reads the prompts otherwise than its source")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).to(device).eval()
    return Check(_version("transformers"), len(expected.prompts), _count_same(model, tokenizer, expected))


def check_adapter(folder: Path, expected: Expected, weights: Weights, precision: Precision) -> Check:
    """The check of an adapter that plain PEFT puts on its base. Raises CheckFailed."""
    from peft import PeftModel

    base = load_language_model(weights.folder, precision, four_bit=weights.method == "qlora")
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    same = _count_same(model, load_tokenizer(weights.folder), expected)
    return Check(_version("peft"), len(expected.prompts), same)


def check_gguf(file: Path, expected: Expected, tokenizer: Any, quantization: str) -> Check:
    """The check of a GGUF file by llama.cpp, or by transformers where the extra gguf is not installed. Answers are
    counted, not demanded: what quantization changes is bounded by the perplexity. Raises CheckFailed."""
    rows = [_accepted(tokenizer, messages) for messages in _messages()]
    rendered = [_render(tokenizer, row) for row in rows]
    questions = Questions(rows, [*rendered, _ODD], expected.prompts, ANSWER_TOKENS, expected.pairs)
    in_llama = is_installed()
    replies = ask_llama(file, questions) if in_llama else _ask_transformers(file, questions, expected.ends)
    if replies.rendered != rendered:
        raise CheckFailed(f"the chat template in {file.name} writes other prompts than its source's")
    if in_llama or pre_tokenizer_name(tokenizer) == "gpt-2":  # transformers cuts the text of any GGUF file that way
        _check_tokens(file, questions.texts, replies, tokenizer)
    ours, source = _perplexity(replies.logprobs), _perplexity(expected.logprobs)
    most = MOST_RATIO[quantization]
    if not 1 / most <= ours / source <= most:
        raise CheckFailed(
            f"{file.name} has a perplexity of {ours:.4g}, {ours / source:.4f} times its source's {source:.4g}; "
            f"{quantization} may differ by a factor of {most} at most",
            "Export with --quantization f16" if quantization != "f16" else "Export with --form merged instead",
        )
    same = sum(_cut(a, expected.ends) == b for a, b in zip(replies.answers, expected.answers, strict=True))
    engine = _version("xllamacpp") if in_llama else _version("transformers")
    return Check(engine, len(rows), same, round(ours, 4), round(source, 4), most)


# --- prompts -----------------------------------------------------------------------------------------------------


def _messages() -> list[list[Message]]:
    chunks = [
        Chunk(f"d{n}#0", f"d{n}", text, 0, len(text), title)
        for n, (title, text) in enumerate(zip(_TITLES, _TEXTS, strict=True))
    ]
    return [build_messages(question, chunks) for question, *_ in _ASKED]


def _pairs(tokenizer: Any, prompts: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Prompts and the targets whose tokens are scored: answers in the form of training, and plain text."""
    targets = [render_target(answer, "", [Quote(quote, n + 1)]) for _, answer, n, quote in _ASKED]
    pairs = [(prompt, target_ids(tokenizer, t)[:-1]) for prompt, t in zip(prompts, targets, strict=True)]
    held = list(tokenizer(_HELD, add_special_tokens=False).input_ids)
    return [*pairs, (held[:8], held[8:])]


def _accepted(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages as the chat template takes them: without the system's where it refuses one."""
    from jinja2 import TemplateError

    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        _render(tokenizer, rows)
    except TemplateError:
        return [row for row in rows if row["role"] != "system"]
    return rows


def _render(tokenizer: Any, rows: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True))


def _check_tokens(file: Path, texts: Sequence[str], replies: Replies, tokenizer: Any) -> None:
    for text, found in zip(texts, replies.tokens, strict=True):
        wanted = list(tokenizer(text, add_special_tokens=False).input_ids)
        if found != wanted:
            at = common_prefix_length([found, wanted])
            raise CheckFailed(
                f"{file.name} cuts text into other tokens than its source: {tokenizer.decode(wanted[at : at + 4])!r} "
                f"becomes {found[at : at + 4]}, not {wanted[at : at + 4]}",
                "Export with --form merged instead",
            )


# --- answers and scores ------------------------------------------------------------------------------------------


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})


def _cut(answer: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The answer without the end of its turn."""
    return list(answer[: next((i for i, token in enumerate(answer) if token in ends), len(answer))])


def _count_same(model: Any, tokenizer: Any, expected: Expected) -> int:
    """How many greedy answers are the source's. Raises CheckFailed for one that differs by more than rounding."""
    same = 0
    for prompt, wanted, asked in zip(expected.prompts, expected.answers, _ASKED, strict=True):
        answer = _greedy(model, prompt, expected.ends)
        if answer != wanted and not _is_tie(model, prompt, answer, wanted, expected.ends):
            raise CheckFailed(
                f"the export does not answer {asked[0]!r} as its source does: "
                f"{tokenizer.decode(answer)[:80]!r}, not {tokenizer.decode(wanted)[:80]!r}"
            )
        same += answer == wanted
    return same


def _greedy(model: Any, prompt: Sequence[int], ends: frozenset[int]) -> list[int]:
    import torch
    from transformers import GenerationConfig

    ids = torch.tensor([prompt], device=model.device)
    settings = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=ANSWER_TOKENS, eos_token_id=sorted(ends),
        pad_token_id=min(ends),
    )  # fmt: skip
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return _cut(out[0, len(prompt) :].tolist(), ends)


def _is_tie(model: Any, prompt: Sequence[int], one: list[int], other: list[int], ends: frozenset[int]) -> bool:
    """Whether the first tokens in which two answers differ are as likely as each other, up to rounding."""
    import torch

    at = common_prefix_length([one, other])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *one[:at]]], device=model.device)).logits[0, -1].float()
    chosen = [
        logits[answer[at]] if at < len(answer) else torch.stack([logits[end] for end in ends]).max()
        for answer in (one, other)
    ]
    return abs(float(chosen[0] - chosen[1])) <= _TIE[str(model.dtype).removeprefix("torch.")]


def _logprobs(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """Natural logarithm of the probability of each target's tokens, one pair after the other."""
    import torch

    found: list[float] = []
    for prompt, target in pairs:
        ids = torch.tensor([[*prompt, *target]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(target) + 1).logits[0, :-1].float()
        found += torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
    return found


def _ask_transformers(file: Path, questions: Questions, ends: frozenset[int]) -> Replies:
    """What transformers makes of a GGUF file, whose weights it computes with in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    return Replies(
        [_render(tokenizer, [dict(row) for row in rows]) for rows in questions.rows],
        [list(tokenizer(text, add_special_tokens=False).input_ids) for text in questions.texts],
        [_greedy(model, prompt, ends) for prompt in questions.prompts],
        _logprobs(model, questions.pairs),
    )


def _perplexity(logprobs: Sequence[float]) -> float:
    return math.exp(-_mean(logprobs))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
