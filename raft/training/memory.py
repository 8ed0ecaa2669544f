"""How much memory there is, and what becomes of a training that ran out of it.

An optimizer step never changes. What changes is how much of it is held at once: a packed sequence whose activations
are too many runs as several pieces (packing.split_packed), one after the other, whose gradients add up to its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from raft.config_train import TrainRecipe
from raft.errors import ModelError
from raft.models import resolve_precision
from raft.training.distributed import main_first, processes
from raft.training.student import WHOLE

if TYPE_CHECKING:
    from raft.training.trainer import PackedTrainer

_SIGNS = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
_M_MMAP_THRESHOLD, _HANDED_BACK = -3, 2**20  # glibc's mallopt; bytes
_LIMITS = (  # of the container that this process may run in: the limit, and what is used of it
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory could not be had, on a GPU or from the system."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(s in str(error).lower() for s in _SIGNS)


def free_memory() -> None:
    """Give back what nothing needs any more; models and trainers refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hand_back_memory() -> None:
    """Have glibc hand freed tensors back to the system at once. By default it keeps those of less than 32 MB in a heap
    that falls to pieces, and holds up to twice what is needed; getting them anew costs about a quarter of the time."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _HANDED_BACK)


def available_memory() -> int:
    """Bytes that this process can still take where it trains: on the GPU, or of the machine and its container."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    found = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such container, or one without a limit ("max")
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found))


def held_memory() -> int:
    """Bytes that this process holds now, beside what it keeps on a GPU."""
    return int(psutil.Process().memory_info().rss)


def memory_knobs(recipe: TrainRecipe) -> dict[str, dict[str, Any]]:
    """What can be set so that a training takes less memory, as it is written in a recipe, and what that changes in it
    (nothing where it depends on the data)."""
    found: dict[str, dict[str, Any]] = {}
    if not recipe.gradient_checkpointing and recipe.method != "prefix_tuning":
        found["gradient_checkpointing = true"] = {"gradient_checkpointing": True}
    if recipe.method in WHOLE:
        found['method = "lora"'] = {"method": "lora"}
    if recipe.method in (*WHOLE, "lora", "rslora", "dora"):
        found['method = "qlora"'] = {"method": "qlora"}
    if resolve_precision(recipe.precision) != torch.bfloat16:
        found['precision = "bfloat16"'] = {"precision": "bfloat16"}
    found[f"max_tokens below {recipe.max_tokens}"] = {}
    if recipe.objective in ("kto", "reward"):
        found[f"preference.pairs_at_once below {recipe.preference.pairs_at_once}"] = {}
    if recipe.objective in ("grpo", "rloo"):
        found[f"preference.generations below {recipe.preference.generations}"] = {}
        found[f"preference.max_new_tokens below {recipe.preference.max_new_tokens}"] = {}
    return found


def out_of_memory(recipe: TrainRecipe, tokens: int | None = None) -> ModelError:
    """The error of a training that cannot go on in the memory there is; ``tokens`` is the length of the sequence that
    it held."""
    read = f"with {tokens} tokens of one sequence" if tokens else f"with sequences of up to {recipe.max_tokens} tokens"
    return ModelError(f"out of memory {read}", f"Set one of: {', '.join(memory_knobs(recipe))}")


def train_within_memory(
    make_trainer: Callable[[int | None], PackedTrainer], checkpoints: Path, recipe: TrainRecipe
) -> tuple[PackedTrainer, dict[str, Any]]:
    """Train with ``make_trainer(None)``, from the last of the checkpoints if there is one. When memory runs out and
    the recipe allows it, go on from there with ``make_trainer(piece_tokens)``, half of what was too much.

    Returns the trainer that came through, and facts for the manifest. Raises ModelError when nothing smaller is left.
    """
    from raft.training.trainer import last_checkpoint

    if recipe.gradient_checkpointing:  # memory is wanted more than time
        hand_back_memory()
    piece_tokens, retries = None, 0
    while True:
        trainer = None
        try:
            trainer = make_trainer(piece_tokens)
            with main_first():  # it deletes what was cut short
                checkpoint = last_checkpoint(checkpoints)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer, {"out_of_memory_retries": retries, "piece_tokens": piece_tokens}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            held = () if trainer is None else trainer.held
            smaller = _smaller(held, recipe, piece_tokens)
            if smaller is None:
                raise out_of_memory(recipe, sum(held)) from error
        # Out here the error is gone, and with it the frames that hold the activations.
        del trainer
        hand_back_memory()
        free_memory()
        piece_tokens, retries = smaller, retries + 1
        again = f"goes on from {checkpoint.name}" if (checkpoint := last_checkpoint(checkpoints)) else "begins again"
        print(
            f"raft: out of memory with {sum(held)} tokens at once; training {again} with pieces of at most {smaller}",
            file=sys.stderr,
        )


def _smaller(held: tuple[int, ...], recipe: TrainRecipe, piece_tokens: int | None) -> int | None:
    """Tokens of the pieces to try next, where a sequence of the segments ``held`` was too much. None where that would
    not help: no sequence was held (weights, the optimizer or a checkpoint took the memory), it is a single example, or
    other processes wait for this one."""
    several = len(held) > 2  # prefix, and a segment a branch
    if not (recipe.retry_out_of_memory and several and processes() == 1):
        return None
    half = sum(held) // 2
    return half if piece_tokens is None or half < piece_tokens else None
