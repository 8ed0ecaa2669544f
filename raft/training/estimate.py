"""What a training will take on this machine, before it begins: ``raft train --dry-run``.

parameters   counted on a student without content
memory       one step over the largest sequence, on tensors that have a shape and no content (torch's FakeTensorMode):
             each counts for as long as it lives, so that whatever the method keeps or computes twice is in the sum.
             It is run with a few layers of the model; the others take as much
time         operations / (rate of matrix products, measured here * EFFICIENCY)

Operations are those of the matrix products (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022,
arXiv 2203.15556, appendix F): forward, 2 for each weight and token, and 4 * width for each query and key that it sees;
the head at answers alone. Backward, the same again for the gradients of what stands below, and once more for the
weights that move: 3 times the forward where all move, 2 times where few do. Attention computes its scores again on the
way back, 2.5 times its forward (Dao 2023, arXiv 2307.08691, section 4.1).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from raft.config_train import TrainRecipe
from raft.models import quiet_libraries, resolve_precision
from raft.training.attention import before, forward, use_packed_attention
from raft.training.memory import available_memory, held_memory, memory_knobs
from raft.training.methods import apply_method, count_parameters, unfrozen_layers
from raft.training.packing import Packed, pack, to_batch
from raft.training.plan import Plan
from raft.training.preference_rows import PACKED, PreferencePlan
from raft.training.tokenize import Tokenized

EFFICIENCY = 0.5  # of the rate of matrix products, reached by whole steps; how it was measured: docs/training.md
_MEASURED_SECONDS, _LARGEST_MATRIX = 0.4, 4096
_ATTENTION_BACKWARD = 2.5
_KEPT_BY_HEAP = 1.25  # measured on LoRA and full training, docs/training.md
_FOUR_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # nf4: a scale of 8 bits for 64 weights, one of 32 for 256 scales


@dataclass(frozen=True, slots=True)
class Work:
    """The sequences of a training: ``trained`` ones in order, and those ``read`` without gradients, each as often as
    it is read. ``accumulates``: several make one optimizer step."""

    trained: Sequence[Packed]
    read: Sequence[Packed]
    steps: int
    accumulates: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the moment that takes most. ``program``: what this process holds before any weights (0 on a GPU)."""

    program: int
    weights: int
    optimizer: int  # gradients, and two moments for each weight that moves
    activations: int

    @property
    def total(self) -> int:
        return self.program + self.weights + self.optimizer + self.activations


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training takes; None: not known for its objective, or for this model. ``available`` bytes are there
    beside what this process holds; where that does not do, ``instead`` has the total with each setting that helps
    (None: depends on the data)."""

    trainable_parameters: int
    parameters: int
    seconds: float | None = None
    memory: Memory | None = None
    available: int = 0
    instead: dict[str, int | None] = field(default_factory=dict)

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.memory.total - self.memory.program <= self.available


def estimate(recipe: TrainRecipe, base: Path, work: Work | None) -> Estimate:
    """What training the model in the folder ``base`` takes (its weights need not be there); with no ``work``, its
    parameters alone. Raises ModelError where the method does not fit the model."""
    model = _outline(recipe, base)
    counted = count_parameters(_ranker(model) if recipe.objective == "reward" else model)
    if work is None:
        return Estimate(*counted)
    seconds = _seconds(_size_of(model, recipe, work.steps), recipe, work)
    found = Estimate(*counted, seconds, _peak(recipe, base, work), available_memory())
    if found.memory is None or found.fits:
        return found
    return replace(found, instead=_instead(recipe, base, work, found.memory.total))


def _instead(recipe: TrainRecipe, base: Path, work: Work, total: int) -> dict[str, int | None]:
    """The peak with each setting by which it is lower than ``total``."""
    found: dict[str, int | None] = {}
    for words, changes in memory_knobs(recipe).items():
        memory = _peak(recipe.model_copy(update=changes), base, work) if changes else None
        if memory is None or memory.total < total:
            found[words] = memory.total if memory else None
    return found


def packed_work(recipe: TrainRecipe, plan: Plan) -> Work:
    """The sequences of the objectives sft and pretrain."""
    times = plan.steps // recipe.watch.every_steps
    return Work(plan.schedule, plan.dev * times, plan.steps, plan.per_step > 1)


def preference_work(recipe: TrainRecipe, plan: PreferencePlan) -> Work | None:
    """The sequences of dpo (each also read once by the reference) and orpo. None for objectives that are not packed,
    or read what they generate."""
    if recipe.objective not in PACKED:
        return None
    numbers = sorted({*plan.schedule, *plan.dev})
    pairs = {number: plan.pairs[number] for number in numbers}
    packed = {
        number: pack([Tokenized(pair.id, pair.prompt, answer) for answer in (pair.chosen, pair.rejected)])
        for number, pair in pairs.items()
    }
    read = [packed[number] for number in plan.dev] * (plan.steps // recipe.watch.every_steps)
    if recipe.objective == "dpo":
        read += packed.values()
    return Work([packed[n] for n in plan.schedule], read, plan.steps, recipe.preference.batch_size > 1)


# --- the student without content -------------------------------------------------------------------------------------


class _FourBit(torch.nn.Linear):
    """Stands for bitsandbytes' layer: it computes in the precision of its weights, whatever comes in."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(inputs.dtype)


def _outline(recipe: TrainRecipe, base: Path, layers: int | None = None) -> Any:
    """The student of student.load_student, of tensors without content; with ``layers``, no more of its lowest layers
    than that."""
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_libraries()
    config = AutoConfig.from_pretrained(base)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        inner = AutoModelForCausalLM.from_config(
            config, dtype=resolve_precision(recipe.precision), attn_implementation="sdpa"
        )
    use_packed_attention(inner)
    if recipe.method == "qlora":
        _hold_in_four_bits(inner)
    model = apply_method(inner, recipe.model_copy(update={"method": "lora"}) if recipe.method == "qlora" else recipe)
    if recipe.gradient_checkpointing:  # once more: the state of a random generator has content
        inner.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model.train()


def _move(model: Any, device: str) -> None:
    """Give the model's tensors a device, which decides about the kernels that are counted."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in moved:
                    moved[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    if held is module._parameters:
                        moved[id(tensor)] = torch.nn.Parameter(moved[id(tensor)], requires_grad=tensor.requires_grad)
                held[name] = None if tensor is None else moved[id(tensor)]


def _hold_in_four_bits(model: Any) -> None:
    """What loading in 4 bits makes of a model: matrices but the head's in 4 bits, all else in float32 (PEFT's
    prepare_model_for_kbit_training)."""
    head = model.get_output_embeddings()
    held = {part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head}
    for part in held:
        part.__class__ = _FourBit
    inside = {id(part.weight) for part in held}
    for weight in model.parameters():
        if id(weight) not in inside:
            weight.data = weight.data.float()


def _ranker(model: Any) -> Any:
    from raft.training.reward_model import with_reward_head

    return with_reward_head(model, 0)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# --- memory ----------------------------------------------------------------------------------------------------------


class _Living(TorchDispatchMode):
    """Adds up the tensors made while it is active, each until it is freed, ``known`` ones left out. ``before`` and
    ``peak``: the most bytes at one time, before and since the mark."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.before = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, made)
        return made

    def mark_behind(self, tensor: torch.Tensor) -> None:
        """Set the mark when the tensor gets its gradient."""
        tensor.register_hook(self._mark)

    def _mark(self, _: torch.Tensor) -> None:
        self.before, self.peak = self.peak, self.now

    def _add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, size)
        return tensor

    def _drop(self, size: int) -> None:
        self.now -= size


def _peak(recipe: TrainRecipe, base: Path, work: Work) -> Memory | None:
    """The memory of the step that takes most. None for a model that asks for what its tensors contain."""
    model = _outline(recipe, base)
    gradients = _bytes([weight for weight in model.parameters() if weight.requires_grad])
    layers = model.config.get_text_config().num_hidden_layers
    fewer = _fewer_layers(recipe, layers)
    try:
        peaks = [_peaks_of_step(recipe, base, work, count) for count in fewer]
    except RuntimeError:
        return None
    more = (layers - fewer[-1]) / max(1, fewer[-1] - fewer[0])
    step = max(round(last + (last - first) * more) for first, last in zip(peaks[0], peaks[-1], strict=True))
    scratch = gradients if _device() == "cuda" else 0  # AdamW there computes on all weights at once
    program = 0 if _device() == "cuda" else held_memory()
    activations = round(_kept(recipe) * max(0, max(step, gradients + scratch) - gradients))
    return Memory(program, sum(_bytes_of_weights(model)), 3 * gradients, activations)


def _kept(recipe: TrainRecipe) -> float:
    """How much of the activations' memory is held: on a CPU also some that was freed (memory.hand_back_memory)."""
    return 1.0 if _device() == "cuda" or recipe.gradient_checkpointing else _KEPT_BY_HEAP


def _fewer_layers(recipe: TrainRecipe, layers: int) -> tuple[int, ...]:
    """With how many layers to run a step, so that what one more adds can be seen: of frozen ones, one that is."""
    first = recipe.layers.top + 1 if recipe.method == "freeze" else 2
    return (first, first + 2) if first + 2 < layers else (layers,)


def _peaks_of_step(recipe: TrainRecipe, base: Path, work: Work, layers: int) -> tuple[int, int]:
    """Most bytes of gradients and activations at one time, in a model of so many layers, until the gradients reach the
    uppermost layer, and from there on: either grows evenly with the layers, their maximum does not."""
    model = _outline(recipe, base, layers)
    largest = {id(p): p for p in (max(work.trained, key=len), max(work.trained, key=lambda p: len(p.labels)))}
    with FakeTensorMode(allow_non_fake_inputs=True):
        _move(model, _device())
        above, below = zip(*(_run(model, each, recipe, work.accumulates) for each in largest.values()), strict=True)
    return max(above), max(below)


def _run(model: Any, packed: Packed, recipe: TrainRecipe, accumulates: bool) -> tuple[int, int]:
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in moving:
        weight.grad = torch.zeros_like(weight) if accumulates else None
    there = [weight.grad for weight in moving if weight.grad is not None]
    batch = {
        key: value.to(_device()) if isinstance(value, torch.Tensor) else value
        for key, value in to_batch(packed).items()
    }
    living = _Living([*model.parameters(), *there])
    above = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: living.mark_behind(given[0]))
    with living:
        _loss(forward(model, batch).logits[0].float(), batch["labels"][0], recipe.objective in PACKED).backward()
    above.remove()
    return _bytes(there) + living.before, _bytes(there) + living.peak


def _loss(logits: torch.Tensor, labels: torch.Tensor, scored: bool) -> torch.Tensor:
    """As the trainers compute it; ``scored`` as trl_trainers does, entropies besides."""
    if not scored:
        return cross_entropy(logits, labels, reduction="sum")
    log_probs = logits.log_softmax(-1)
    with torch.no_grad():
        (log_probs.exp() * log_probs).sum(-1)
    return -log_probs.gather(-1, labels[:, None]).sum()


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_of_weights(model: Any) -> Iterator[int]:
    four_bit = {id(part.weight) for part in model.modules() if isinstance(part, _FourBit)}
    for weight in model.parameters():
        yield round(weight.numel() * _FOUR_BITS / 8) if id(weight) in four_bit else _bytes([weight])


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Size:
    """What the operations of a training follow from. ``moving`` of the ``layers``' weights get gradients, ``depth`` is
    the share of the layers that gradients pass through."""

    layers: int  # weights of their matrices, adapters included
    moving: float
    head: int
    moving_head: int
    attention: int  # layers * heads * width of a head
    depth: float
    twice: bool  # activations are computed again
    soft: int  # vectors before every sequence
    largest: tuple[int, int]  # matrix


def _size_of(model: Any, recipe: TrainRecipe, steps: int) -> _Size:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    config = inner.config.get_text_config()
    head, embedded = inner.get_output_embeddings().weight, inner.get_input_embeddings().weight
    matrices = [w for w in inner.parameters() if w.ndim >= 2 and w is not head and w is not embedded]
    depth = _depth(recipe, config.num_hidden_layers, steps)
    moving = sum(weight.numel() for weight in matrices if weight.requires_grad)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    largest = max(matrices, key=torch.Tensor.numel).shape
    soft = getattr(getattr(model, "peft_config", {}).get("default"), "num_virtual_tokens", None) or 0
    return _Size(
        sum(weight.numel() for weight in matrices), moving * (depth if recipe.method == "unfreeze" else 1),
        head.numel(), head.numel() if head.requires_grad else 0,
        config.num_hidden_layers * config.num_attention_heads * width, depth, recipe.gradient_checkpointing, soft,
        (largest[-2], largest[-1]),
    )  # fmt: skip


def _depth(recipe: TrainRecipe, layers: int, steps: int) -> float:
    if recipe.method == "freeze":
        return recipe.layers.top / layers
    if recipe.method == "unfreeze":
        return sum(unfrozen_layers(recipe.layers, layers, step) for step in range(steps)) / (layers * steps)
    return 1.0


def _operations(size: _Size, packed: Packed, trained: bool) -> float:
    """Of one sequence: forward, and where it is ``trained`` backward."""
    segments = packed.segments
    tokens, answers = len(packed) + size.soft, len(packed.labels)
    seen = [sum(segments[other] for other in before(number, packed.parents)) for number in range(len(segments))]
    pairs = sum(own * (size.soft + shared + own / 2) for own, shared in zip(segments, seen, strict=True))
    matrices, attention, head = 2 * tokens * size.layers, 4 * pairs * size.attention, 2 * answers * size.head
    if not trained:
        return matrices + attention + head
    back = size.depth * (matrices + _ATTENTION_BACKWARD * attention) + head
    weights = 2 * tokens * size.moving + 2 * answers * size.moving_head
    return (1 + size.twice) * (matrices + attention) + head + back + weights


def _seconds(size: _Size, recipe: TrainRecipe, work: Work) -> float:
    total = sum(_operations(size, packed, True) for packed in work.trained)
    total += sum(_operations(size, packed, False) for packed in work.read)
    tokens = sum(map(len, work.trained)) // len(work.trained)
    return total / (EFFICIENCY * _matrix_rate(tokens, size.largest, resolve_precision(recipe.precision)))


def _matrix_rate(tokens: int, shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Operations a second of products of [tokens, n] and [n, m], for a matrix [m, n] of the model, or a part of it."""
    rows, columns = (min(each, _LARGEST_MATRIX) for each in shape)
    inputs = torch.rand(min(tokens, _LARGEST_MATRIX), columns, device=_device()).to(dtype)
    matrix = torch.rand(rows, columns, device=_device()).to(dtype)
    count, began, spent = 0, 0.0, 0.0
    while spent < _MEASURED_SECONDS:
        linear(inputs, matrix)
        if _device() == "cuda":
            torch.cuda.synchronize()
        if count == 0:  # the first one also wakes up the machine
            began = time.perf_counter()
        count += 1
        spent = time.perf_counter() - began
    return 2 * inputs.numel() * rows * (count - 1) / spent
