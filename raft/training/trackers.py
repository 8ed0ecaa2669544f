"""Who else is told the figures of a training: TensorBoard, Trackio, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.errors import ModelError

TENSORBOARD = "tensorboard"
_INSTALL = {TENSORBOARD: "'raft-tune[tensorboard]'", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}


def check_trackers(trackers: Sequence[str]) -> None:
    """Raises ModelError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ModelError(
                f"watch.trackers names {name}, which is not installed",
                f"Run: pip install {_INSTALL[name]}, or leave it out",
            )


def make_tracker(name: str, folder: Path) -> Any:
    """transformers' own callback for the tracker; TensorBoard's files go into ``folder``."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    kind: Any = get_reporting_integration_callbacks([name])[0]
    if name != TENSORBOARD:
        return kind()

    class TensorBoard(kind):  # type: ignore[misc]
        """Its writer hides what an interrupted run has written behind the checkpoint that this one goes on from."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.tb_writer = self._SummaryWriter(log_dir=str(folder), purge_step=state.global_step + 1)
            super().on_train_begin(args, state, control, **kwargs)

    return TensorBoard()
