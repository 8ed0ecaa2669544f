"""Does a text entail an answer? A cross-encoder for natural language inference gives the probability.

    model = load_entailment("cross-encoder/nli-deberta-v3-xsmall")
    model.scores([("Adults start with 12 mg.", "What do adults start with? 12 mg")])   -> [0.98]

Any sequence classifier with a label "entailment" will do, and so will a cross-encoder with one output (an artefact of
raft train with objective "reranker", or one tuned on supported and unsupported claims). A premise longer than the
model's window is read in windows that overlap by half, and the best one counts, as a claim needs one place that bears
it out (Laban et al. 2022, arXiv 2111.09525, section 4: the maximum over the premise's parts).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raft.dataset.grounding import GroundedQuestion
from raft.errors import ModelError
from raft.models import quiet_libraries, resolve_encoder

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_LONGEST_WINDOW = 512  # tokens: what such models were trained on, whatever their configuration allows
_SPARE_TOKENS = 4  # special tokens around premise and claim
_REMEDY = 'Give a cross-encoder with a label "entailment", or with one output: hub id, local folder, or an artefact'


class Entailment(Protocol):
    """What says how likely a premise entails a claim."""

    @property
    def name(self) -> str: ...

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """P(entailment), from 0 to 1, for each (premise, claim), in order."""
        ...


class EntailmentModel:
    """A cross-encoder and the place of "entailment" among its outputs. One call at a time runs, because tokenizers
    are not safe to share."""

    def __init__(self, name: str, model: CrossEncoder, label: int | None, batch_size: int = 16) -> None:
        """``label`` is the output that stands for entailment, None for a model with one output."""
        self.name = name
        self._model = model
        self._label = label
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._window = min(_LONGEST_WINDOW, model.max_seq_length or _LONGEST_WINDOW)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """P(entailment), from 0 to 1, for each (premise, claim), in order; the best window of a long premise.

        A claim that leaves no room for a premise is cut by the tokenizer.
        """
        if not pairs:
            return []
        with self._lock:
            parts = [
                (at, part, claim) for at, (premise, claim) in enumerate(pairs) for part in self._cut(premise, claim)
            ]
            found = self._predict([(part, claim) for _, part, claim in parts])
        best = [0.0] * len(pairs)
        for (at, _, _), score in zip(parts, found, strict=True):
            best[at] = max(best[at], score)
        return best

    def _predict(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        activation = torch.nn.Sigmoid() if self._label is None else torch.nn.Softmax(dim=-1)
        found = self._model.predict(
            list(pairs), batch_size=self._batch_size, activation_fn=activation, show_progress_bar=False
        )
        return [float(row if self._label is None else row[self._label]) for row in found]

    def _cut(self, premise: str, claim: str) -> list[str]:
        tokenizer = self._model.tokenizer
        taken = len(tokenizer(claim, add_special_tokens=False).input_ids) + _SPARE_TOKENS
        offsets = tokenizer(premise, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return windows(premise, offsets, max(self._window // 4, self._window - taken))


def windows(text: str, offsets: Sequence[tuple[int, int]], most: int) -> list[str]:
    """The text in parts of at most ``most`` tokens, each but the first beginning in the middle of the one before.

    ``offsets`` are the tokens' places in the text. A text that fits is one part, whole.
    """
    if len(offsets) <= most:
        return [text]
    step = max(1, most // 2)
    starts = range(0, len(offsets) - most + step, step)
    return [text[offsets[at][0] : offsets[min(at + most, len(offsets)) - 1][1]] for at in starts]


def load_entailment(model: str, batch_size: int = 16) -> EntailmentModel:
    """The model of a hub id, a local folder, ``package:NAME`` or an artefact of raft train (objective "reranker").

    Raises ModelError when it cannot be loaded or has no output for entailment, ArtifactError for another artefact.
    """
    folder = resolve_encoder(model, "reranker")
    quiet_libraries()
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        label = entailment_label(model, config)
        loaded = CrossEncoder(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"entailment model {model} cannot be loaded from {folder} ({first})", _REMEDY) from error
    return EntailmentModel(model, loaded, label, batch_size)


def entailment_label(model: str, config: Any) -> int | None:
    """Which output of a classifier stands for entailment; None when it has one output, which then does.

    Raises ModelError for a model without a classification head (a new one would be filled with random weights,
    without a word), and for several outputs of which none, or more than one, is called entailment.
    """
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        raise ModelError(f"model {model} judges no entailment: it has no classification head", _REMEDY)
    if config.num_labels == 1:
        return None
    names = {int(at): str(name).lower() for at, name in config.id2label.items()}
    found = [at for at, name in names.items() if name.startswith("entail")]
    if len(found) != 1:
        raise ModelError(f"model {model} judges no entailment: its labels are {', '.join(names.values())}", _REMEDY)
    return found[0]


def entailment_scores(
    items: Iterable[GroundedQuestion], chunk_text: Callable[[str], str], model: Entailment
) -> dict[str, float]:
    """Question id -> how likely its oracle chunks entail its answer; the best of several oracles, or of all of them
    together. Questions without an oracle are left out."""
    names: list[str] = []
    pairs: list[tuple[str, str]] = []
    for item in items:
        texts = [chunk_text(chunk_id) for chunk_id in item.oracle_ids]
        for premise in dict.fromkeys([*texts, "\n".join(texts)] if texts else []):
            names.append(item.id)
            pairs.append((premise, f"{item.question} {item.answer}"))
    best: dict[str, float] = {}
    for name, score in zip(names, model.scores(pairs), strict=True):
        best[name] = max(best.get(name, 0.0), score)
    return best


def entailment_faults(score: float | None, least: float) -> list[str]:
    """ "answer_not_entailed" when P(entailment) stays below ``least``; None (nothing to judge) is no fault."""
    return ["answer_not_entailed"] if score is not None and score < least else []
