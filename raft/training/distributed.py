"""One training in several processes, each started with the same words by torchrun or accelerate launch.

What the processes do with the weights (copies, FSDP, DeepSpeed) is accelerate's. Here stands what makes their training
the one that a single process would run: the same sequences in every optimizer step, divided by the same number of
tokens, and one process that writes::

    one process    step: a b c d    (La + Lb + Lc + Ld) / (Na + Nb + Nc + Nd)
    two            step: a . c .    (La + Lc) / mean count      averaged: the same loss, the same gradients
                         . b . d    (Lb + Ld) / mean count

torch and accelerate are imported only where there is more than one process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.artifacts import Draft, writing
from raft.config_train import TrainRecipe
from raft.config_train_parts import ParallelRecipe
from raft.config_train_rules import SOFT
from raft.errors import ModelError, RecipeError, UsageError
from raft.places import partial_folder, place_of

if TYPE_CHECKING:
    from raft.training.packing import Packed

SHARED = ("sft", "pretrain")  # objectives that several processes can train
LEARNED = ("checkpoints/checkpoint-*", "log.jsonl")  # in unfinished work: without them there is nothing to go on with
_ALONE = "Start raft train by itself, without torchrun or accelerate launch"


def processes() -> int:
    """How many processes train together: what the launcher says, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def check_processes(recipe: TrainRecipe) -> None:
    """Raise UsageError or RecipeError where the recipe cannot be trained by as many processes as there are, ModelError
    where DeepSpeed is asked for and not installed."""
    kind, count = recipe.parallel.kind, processes()
    if kind == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise ModelError(
            "parallel.kind is deepspeed, which is not installed", "Run: pip install 'raft-tune[deepspeed]'"
        )
    if count == 1 and kind != "ddp":
        raise UsageError(
            f"parallel.kind = {kind} divides a model among processes, and this is a single one",
            "Start it with: torchrun --nproc-per-node N -m raft train ..., or set parallel.kind = ddp",
        )
    if count == 1:
        return
    if recipe.objective not in SHARED:
        raise UsageError(f"objective {recipe.objective} trains in one process, and these are {count}", _ALONE)
    if recipe.method in SOFT:
        raise UsageError(f"method {recipe.method} trains in one process, and these are {count}", _ALONE)
    if kind != "ddp" and not has_accelerator():
        raise UsageError(
            f"parallel.kind = {kind} needs a GPU for each process: accelerate divides no model among CPUs",
            "Set parallel.kind = ddp",
        )
    share_of_step(recipe.optim.groups_per_step)


def join(recipe: TrainRecipe) -> None:
    """Become one of those that train together; returns once all of them are there. Raises as ``check_processes``."""
    check_processes(recipe)
    if processes() == 1:
        return
    import torch
    from accelerate import PartialState

    # Offloaded weights and gathered ones lie in the main memory, where NCCL cannot work.
    mixed = {"backend": "cuda:nccl,cpu:gloo"} if recipe.parallel.kind == "fsdp" and torch.cuda.is_available() else {}
    found = PartialState(cpu=not has_accelerator(), **mixed).num_processes
    if found != processes():
        raise UsageError(
            f"the launcher has started {processes()} processes, and accelerate sees {found}",
            "Check the variables ACCELERATE_* of the environment",
        )
    meet()


def has_accelerator() -> bool:
    """Whether processes have something better than a CPU to train on: a GPU, or what accelerate is told to take."""
    import torch

    return torch.cuda.is_available() or "ACCELERATE_TORCH_DEVICE" in os.environ


def device_here() -> str | None:
    """The GPU that this process, once it has joined the others, trains on; None on CPUs."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else None


# --- in step ---------------------------------------------------------------------------------------------------------


def meet() -> None:
    """Wait until all processes are here. Raises ModelError when one of them has ended."""
    if processes() == 1:
        return
    from accelerate import PartialState

    with hear_others():
        PartialState().wait_for_everyone()


@contextlib.contextmanager
def hear_others() -> Iterator[None]:
    """Raises ModelError in place of the error by which a process finds that another one has ended."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if processes() == 1 or not any(sign in said for sign in _ENDED):
            raise
        raise ModelError("another process of this training has ended", "Its own message says why") from error


_ENDED = ("closed by peer", "reset by peer", "remote process exited", "broken pipe")  # gloo, gloo, NCCL, gloo


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process does what stands in the block, then the others: they find what it has made on disk."""
    if not is_main():
        meet()
    yield
    if is_main():
        meet()


@contextlib.contextmanager
def one_writer(
    out: Path, kind: str, recipe: Mapping[str, Any], inputs: Mapping[str, str], *, overwrite: bool, resume: bool,
    may_change: Collection[str] = (),
) -> Iterator[Draft]:  # fmt: skip
    """The artefact being written, as ``artifacts.writing`` gives it; the main process alone prepares and finishes it.
    The others see the same folder, for what each keeps in a checkpoint, and leave once the artefact has its name."""
    if is_main():
        with writing(
            out, kind, recipe, inputs, overwrite=overwrite, resume=resume, may_change=may_change,
            worth_keeping=LEARNED,
        ) as draft:  # fmt: skip
            meet()  # the folder is there
            yield draft
            meet()  # nobody needs it under this name any more
    else:
        meet()
        yield Draft(partial_folder(place_of(out)), dict(inputs))
        meet()
    meet()


def share_of_step(groups_per_step: int) -> int:
    """Sequences of an optimizer step that each process computes. Raises RecipeError where they cannot be shared
    evenly: some processes would idle in every step."""
    count = processes()
    if groups_per_step % count:
        fitting = max(1, round(groups_per_step / count)) * count
        raise RecipeError(
            f"optim.groups_per_step is {groups_per_step}, which {count} processes cannot share evenly",
            f"Set it to a multiple of {count}, e.g. {fitting}",
        )
    return groups_per_step // count


def even_out(schedule: Sequence[Packed]) -> Sequence[Packed]:
    """The schedule with as many empty sequences behind it as make it divisible by the processes. Accelerate would
    repeat the first ones, which would count twice."""
    missing = -len(schedule) % processes()
    return [*schedule, *[_empty()] * missing] if missing else schedule


def _empty() -> Packed:
    """One token, nothing to be learned from it."""
    from raft.training.packing import Packed

    return Packed([0], [0], [1], [0], [-100])


def mean_count(accelerator: Any, count: Any) -> Any:
    """Tokens with a loss in this step, on average over the processes: gradients are averaged, so that sums divided by
    this are what one process would get."""
    if processes() == 1 or count is None:
        return count
    return accelerator.reduce(count.float(), "mean")


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if processes() == 1:
        return number
    import torch.distributed

    numbers = [number] * processes()
    torch.distributed.all_gather_object(numbers, number)
    return max(numbers)


# --- settings and weights --------------------------------------------------------------------------------------------


def parallel_arguments(recipe: TrainRecipe) -> dict[str, Any]:
    """What transformers.TrainingArguments is to know of the processes; what it does not say comes from accelerate's
    environment (``accelerate launch``)."""
    chosen = recipe.parallel
    if chosen.kind == "fsdp":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2, "reshard_after_forward": chosen.shard_weights, "cpu_offload": chosen.cpu_offload,
            },
        }  # fmt: skip
    if chosen.kind == "deepspeed":
        from raft.models import resolve_precision

        bfloat16 = str(resolve_precision(recipe.precision)) == "torch.bfloat16"
        return {"deepspeed": _deepspeed(chosen), "bf16": bfloat16}
    # Every weight that trains is used in every step, but for those that are still to be unfrozen.
    return {"ddp_find_unused_parameters": recipe.method == "unfreeze"}


def _deepspeed(chosen: ParallelRecipe) -> dict[str, Any] | str:
    """DeepSpeed's configuration; "auto" is filled in by transformers from the other arguments."""
    if chosen.deepspeed_config is not None:
        return str(chosen.deepspeed_config)
    zero: dict[str, Any] = {
        "stage": 3 if chosen.shard_weights else 2, "stage3_gather_16bit_weights_on_model_save": True,
    }  # fmt: skip
    if chosen.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        zero |= {"offload_param": {"device": "cpu"}} if chosen.shard_weights else {}
    return {
        "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"}, "gradient_clipping": "auto", "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    }  # fmt: skip


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """The trained model's state, gathered from all processes where it is divided among them (all of them must call;
    the main one gets it); None where each has the whole model."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return state
