"""RAFT dataset -> tuned encoder or reranker: what ``raft train`` does with ``objective = "encoder"`` or ``"reranker"``.

    raft train configs/train/encoder.toml --data runs/datasets/leases --out runs/encoders/leases

dataset artefact -> questions, oracles, negatives -> batches in order -> sentence-transformers' trainer -> artefact::

    model/         a sentence-transformers folder: Encoder.load(RUN) or Reranker.load(RUN) finds it
    log.jsonl      loss, dev loss, learning rate, examples a second
    seen.json      the questions and documents the weights were tuned on, so that evaluation can leave them out
    manifest.json  base model, dataset, steps, and how well dev questions find their oracles before and after

Encoder: in-batch softmax over cosines (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748, equation 4; for passages,
Karpukhin et al. 2020, arXiv 2004.04906, equation 2). Reranker: binary cross-entropy on each (question, chunk) pair
(Nogueira and Cho 2019, arXiv 1901.04085, equation 1).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import Draft, check_free, open_artifact, writing
from raft.config_train import MAY_CHANGE_ON_RESUME, TrainRecipe
from raft.errors import InputError, ModelError
from raft.llm.local import inherited_labels
from raft.models import model_fingerprint, quiet_libraries, resolve_encoder, resolve_precision
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import search_text
from raft.retrieval.rerank import Reranker
from raft.rows import read_rows
from raft.training.distributed import LEARNED
from raft.training.plan import write_seen
from raft.training.retrieval_batches import Asked, Row, find_twins, make_batches, read_asked
from raft.training.run import Progress, peak_memory_mb
from raft.training.tokenize import read_chunks
from raft.training.trackers import check_trackers

Measured = dict[str, float]
CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What a training will run: batches in order, dev batches, dev questions, and counts for the reader."""

    batches: list[list[Row]]
    dev_batches: list[list[Row]]
    dev: list[Asked]
    texts: Mapping[str, str]
    questions: int
    left_out: int
    twins: int

    @property
    def examples(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True, slots=True)
class TuningSummary:
    """``before`` and ``after`` measure base and tuned model on the dev questions (None without a dev split)."""

    out: Path
    objective: str
    steps: int
    best_dev_loss: float | None
    questions: int
    dev_questions: int
    before: Measured | None
    after: Measured | None
    seconds: float
    examples_per_second: float
    peak_memory_mb: int


def tune(
    recipe: TrainRecipe,
    dataset: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> TuningSummary:
    """Tune ``recipe.model`` to find the oracles of the dataset's questions and write the artefact ``out``.

    Raises ArtifactError when the dataset is missing or damaged, ``out`` is taken or partial work differs,
    InputError when no question has an oracle, ModelError when the model cannot be loaded or trained.
    """
    quiet_libraries()
    check_free(out, overwrite)
    check_trackers(recipe.watch.trackers)
    data = open_artifact(dataset, "dataset")
    base = resolve_encoder(recipe.model, "reranker" if recipe.objective == "reranker" else "encoder")
    inputs = {"dataset": data.fingerprint, "model": model_fingerprint(base)}
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    with writing(
        out, recipe.objective, settings, inputs, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE_ON_RESUME,
        worth_keeping=LEARNED,
    ) as draft:  # fmt: skip
        plan = make_tuning_plan(recipe, dataset)
        write_seen(dataset, draft.folder, recipe.model)
        summary = _run(recipe, plan, base, draft, out, on_step or (lambda *_: None))
        draft.facts |= {
            "objective": recipe.objective, "base_model": recipe.model, "base_fingerprint": inputs["model"],
            "dataset_fingerprint": inputs["dataset"], "index_fingerprint": data.facts.get("index_fingerprint"),
            "labels": sorted({*data.facts.get("labels", ()), *inherited_labels(recipe.model)}),
            "examples": plan.examples, "left_out": plan.left_out,
        }  # fmt: skip
        draft.facts |= {key: value for key, value in asdict(summary).items() if key not in ("out", "objective")}
    return summary


def make_tuning_plan(recipe: TrainRecipe, dataset: Path) -> TuningPlan:
    """Read the dataset and lay the training out. Raises InputError when no train question has an oracle, or a chunk
    is missing."""
    texts = {name: search_text(chunk) for name, chunk in read_chunks(dataset).items()}
    train, left_out = read_asked(dataset, "train")
    dev, _ = read_asked(dataset, "dev")
    if not train:
        raise InputError(
            f"{dataset} holds no train question with an oracle ({left_out} without)", "Check: raft show DATASET"
        )
    _check_chunks([*train, *dev], texts)
    twins = find_twins([oracle for item in (*train, *dev) for oracle in item.oracles], texts)
    settings = recipe.retrieval
    shape = {"negatives": settings.negatives, "batch_size": settings.batch_size}
    pool = sorted({chunk for item in train for chunk in (*item.oracles, *item.negatives)})
    batches = make_batches(train, pool, twins, epochs=recipe.optim.epochs, seed=recipe.seed, **shape)
    dev_pool = sorted({*pool, *(chunk for item in dev for chunk in (*item.oracles, *item.negatives))})
    dev_batches = make_batches(dev, dev_pool, twins, epochs=1, seed=recipe.seed, **shape)
    doubles = sum(len(same) > 1 for same in twins.values())
    return TuningPlan(batches[: recipe.optim.max_steps], dev_batches, dev, texts, len(train), left_out, doubles)


def _check_chunks(asked: Sequence[Asked], texts: Mapping[str, Any]) -> None:
    for item in asked:
        for chunk in (*item.oracles, *item.negatives):
            if chunk not in texts:
                raise InputError(f"question {item.id} names chunk {chunk!r}, which chunks.jsonl lacks")


def _run(
    recipe: TrainRecipe, plan: TuningPlan, base: Path, draft: Draft, out: Path, on_step: Progress
) -> TuningSummary:
    import torch
    from transformers import set_seed

    from raft.training.retrieval_trainer import TuningLog, make_tuning_trainer
    from raft.training.trainer import last_checkpoint
    from raft.training.watch import Guard, watch

    began = time.monotonic()
    set_seed(recipe.seed)  # a reranker's new head is drawn here
    model = load_base(base, recipe)
    window = model.max_seq_length
    _shorten(model, recipe)
    prompts = _prompts(model, recipe)
    checkpoints = draft.folder / "checkpoints"
    path = draft.folder / "log.jsonl"
    guard = Guard(recipe, lambda step: [f'"{row.question}"' for row in plan.batches[step - 1]], on_step, path)
    log = TuningLog(path, [len(batch) for batch in plan.batches], guard)
    trainer = make_tuning_trainer(
        model, plan.batches, plan.dev_batches, plan.texts, log, objective=recipe.objective, folder=checkpoints,
        optim=recipe.optim.model_dump(), watch=recipe.watch.model_dump(), seed=recipe.seed,
        retrieval=recipe.retrieval.model_dump() | prompts,
        bfloat16=resolve_precision(recipe.precision) == torch.bfloat16,
    )  # fmt: skip
    watch(trainer, recipe, model, base, draft.folder)
    checkpoint = last_checkpoint(checkpoints)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        raise _explain(error) from error
    _mix(model, base, recipe)
    model.max_seq_length = window  # what is tuned on short texts still reads long ones
    _save(model, recipe, prompts, draft.folder / "model")
    draft.scratch.append(checkpoints)
    rates = [row["examples_per_second"] for row in read_rows(log.path) if "examples_per_second" in row]
    before, after = _before_and_after(recipe, plan, base, model, draft.folder / "model")
    return TuningSummary(
        out, recipe.objective, trainer.state.global_step, trainer.state.best_metric, plan.questions, len(plan.dev),
        before, after, round(time.monotonic() - began, 1), rates[-1] if rates else 0.0, peak_memory_mb(),
    )  # fmt: skip


def load_base(folder: Path, recipe: TrainRecipe) -> Any:
    """The model to tune. An encoder's transformer becomes a reranker by a new head of one output."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    how: dict[str, Any] = {"local_files_only": True, "model_kwargs": {"dtype": torch.float32, "use_safetensors": True}}
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)  # it announces every conversion
    try:
        if recipe.objective == "encoder":
            model: Any = SentenceTransformer(str(folder), **how)
        else:
            model = CrossEncoder(str(folder), num_labels=1, **how)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"model {recipe.model} cannot be loaded from {folder} ({first})") from error
    return model


def _shorten(model: Any, recipe: TrainRecipe) -> None:
    """Let the training read no more than ``retrieval.max_tokens`` of a text."""
    wanted = recipe.retrieval.max_tokens
    if wanted is None:
        return
    if wanted > model.max_seq_length:
        raise ModelError(
            f"retrieval.max_tokens is {wanted}; {recipe.model} reads at most {model.max_seq_length} tokens",
            "Lower it, or leave it out",
        )
    model.max_seq_length = wanted


def _save(model: Any, recipe: TrainRecipe, prompts: Mapping[str, str], folder: Path) -> None:
    if recipe.objective == "encoder":
        model.prompts |= {"query": prompts["query_prompt"], "document": prompts["document_prompt"]}
    model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def _prompts(model: Any, recipe: TrainRecipe) -> dict[str, str]:
    """The words before queries and chunks: the recipe's, or those that the base's own files name."""
    own = model.prompts or {}
    query, document = recipe.retrieval.query_prompt, recipe.retrieval.document_prompt
    passage = own.get("document") or own.get("passage") or own.get("corpus") or ""
    return {
        "query_prompt": own.get("query") or "" if query is None else query,
        "document_prompt": passage if document is None else document,
    }


def _explain(error: RuntimeError) -> Exception:
    if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
        return error
    return ModelError(
        "out of memory", "Lower retrieval.batch_size, retrieval.negatives or retrieval.max_tokens; an encoder also "
        "takes retrieval.texts_at_once"
    )  # fmt: skip


def _mix(model: Any, base: Path, recipe: TrainRecipe) -> None:
    """Weights between the base's and the tuned ones: theta = (1 - a) base + a tuned (WiSE-FT, Wortsman et al. 2022,
    arXiv 2109.01903, equation 1)."""
    share = recipe.retrieval.tuned_share
    if share == 1.0:
        return
    before = load_base(base, recipe).state_dict()
    tuned = model.state_dict()
    mixed = {
        name: before[name].to(weight).lerp(weight, share) if weight.is_floating_point() else weight
        for name, weight in tuned.items()
    }
    model.load_state_dict(mixed)


def _before_and_after(
    recipe: TrainRecipe, plan: TuningPlan, base: Path, model: Any, saved: Path
) -> tuple[Measured | None, Measured | None]:
    """Base and tuned model on the dev questions; encoders as they will be loaded from their files."""
    if not plan.dev:
        return None, None
    if recipe.objective == "encoder":
        prompts = recipe.retrieval.query_prompt, recipe.retrieval.document_prompt
        before = Encoder.load(str(base), *prompts, backend="torch")
        return measure_encoder(before, plan), measure_encoder(Encoder.load(str(saved), backend="torch"), plan)
    from transformers import set_seed

    set_seed(recipe.seed)  # the head that the training began with
    untuned, tuned = Reranker(recipe.model, load_base(base, recipe).eval()), Reranker(recipe.model, model.eval())
    return measure_reranker(untuned, plan), measure_reranker(tuned, plan)


def measure_encoder(encoder: Encoder, plan: TuningPlan) -> Measured:
    """How well dev questions find their oracles among all chunks of the dataset."""
    names = list(plan.texts)
    documents = encoder.encode_documents([plan.texts[name] for name in names])  # [chunks, dimension]
    ranked = []
    for item in plan.dev:
        cosines = documents @ encoder.encode_queries([item.question])[0]  # [chunks]
        best = (-cosines).argsort(kind="stable")[: max(CUTOFFS)]
        ranked.append([names[position] for position in best])
    return _found(plan.dev, ranked)


def measure_reranker(reranker: Reranker, plan: TuningPlan) -> Measured:
    """How well dev questions tell their oracles from the other chunks of their own contexts."""
    ranked = []
    for item in plan.dev:
        names = sorted((*item.oracles, *item.negatives))
        scores = reranker.scores(item.question, [plan.texts[name] for name in names])
        ranked.append([name for _, name in sorted(zip(scores, names, strict=True), key=lambda pair: -pair[0])])
    return _found(plan.dev, ranked)


def _found(asked: Sequence[Asked], ranked: Sequence[Sequence[str]]) -> Measured:
    """recall@k, the share of a question's oracles among its first k chunks, and MRR@10, one over the rank of the
    first oracle (Voorhees 1999, TREC-8), both averaged over the questions."""
    measured = {}
    for k in CUTOFFS:
        shares = [
            len(set(item.oracles) & set(names[:k])) / len(item.oracles)
            for item, names in zip(asked, ranked, strict=True)
        ]
        measured[f"recall@{k}"] = round(sum(shares) / len(shares), 4)
    ranks = [
        next((1 / rank for rank, name in enumerate(names[:10], 1) if name in item.oracles), 0.0)
        for item, names in zip(asked, ranked, strict=True)
    ]
    return measured | {"mrr@10": round(sum(ranks) / len(ranks), 4)}
