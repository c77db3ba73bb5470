"""What a run has come to: a row of figures for each epoch, and the weights of the best one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import distributed, nn

from paddle_dense.errors import WeightsError
from paddle_dense.files.atomic import atomic_write
from paddle_dense.training.accuracy import Accuracy
from paddle_dense.training.condensation import learned_connections

COLUMNS = ("epoch", "step", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "density")
LOG = "log.csv"
_MOST_EPOCHS = 1_000_000


class History:
    """Figures of each epoch, and the weights of the one with the best accuracy on the test images.

    Of equal accuracies that with the smaller loss is the better one. While connections are still to be dropped no epoch
    is the best, since its weights could not be condensed.

    Args:
        folder: where ``log.csv`` goes, with a row for each epoch.
        networks: those in training, by the names of their files.
        steps_per_epoch: batches in an epoch.

    Attributes:
        rows: the figures of each epoch, see `COLUMNS`.
        sums: of this epoch so far: losses and number of the batches, right answers and images.
        best: the row of the best epoch.
        weights: the tensors of that epoch, for each network.
    """

    def __init__(self, folder: Path, networks: Mapping[str, nn.Layer], steps_per_epoch: int) -> None:
        self.folder, self.networks, self.steps_per_epoch = folder, dict(networks), steps_per_epoch
        self.rows: list[dict[str, float]] = []
        self.sums = {"loss": 0.0, "batches": 0.0, "correct": 0.0, "images": 0.0}
        self.best: dict[str, float] | None = None
        self.weights: dict[str, dict[str, np.ndarray]] = {}

    def add(self, learning_rate: float, accuracy: Accuracy, density: float) -> None:
        """End an epoch with these figures; its weights are kept if it is the best so far."""
        epoch, sums = len(self.rows) + 1, self.sums
        losses = sums["loss"] / max(sums["batches"], 1), sums["correct"] / max(sums["images"], 1)
        values = (epoch, epoch * self.steps_per_epoch, learning_rate, *losses, accuracy.loss, accuracy.top1, density)
        self.rows.append(dict(zip(COLUMNS, map(_plain, values))))
        self.sums = dict.fromkeys(sums, 0.0)
        if self._is_condensed() and (self.best is None or _rank(self.rows[-1]) > _rank(self.best)):
            self.best = self.rows[-1]
            self.weights = {
                name: {key: np.array(tensor.numpy()) for key, tensor in network.state_dict().items()}
                for name, network in self.networks.items()
            }
        if distributed.get_rank() == 0:
            self._write()

    def is_over(self, patience: int | None) -> bool:
        """Whether the last so many epochs were none better than the best."""
        return bool(patience and self.best and len(self.rows) - self.best["epoch"] >= patience)

    def _write(self) -> None:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        with atomic_write(self.folder / LOG) as file:
            file.write(text.getvalue().encode())

    def as_json(self) -> dict[str, Any]:
        """All but the weights, as a checkpoint's header takes it."""
        rows = [[row[name] for name in COLUMNS] for row in self.rows]
        return {"rows": rows, "sums": list(self.sums.values()), "best": self.rows.index(self.best) if self.best else -1}

    def restore(self, told: Mapping[str, Any], weights: Mapping[str, dict[str, np.ndarray]], epochs: int) -> None:
        """Put it back to where it was.

        Args:
            told: what `as_json` gave.
            weights: of the best epoch, checked against the networks.
            epochs: how many are done; the last may lack its row where a signal came while it was evaluated.

        Raises:
            WeightsError: these are no figures of so many epochs.
        """
        rows, sums, best = told.get("rows"), told.get("sums"), told.get("best")
        if not (
            isinstance(rows, list)
            and max(epochs - 1, 0) <= len(rows) <= min(epochs, _MOST_EPOCHS)
            and all(_are_numbers(row, len(COLUMNS)) for row in rows)
            and _are_numbers(sums, len(self.sums))
            and type(best) is int
            and -1 <= best < len(rows)
            and bool(weights) == (best >= 0)
        ):
            raise WeightsError(f"holds no figures of {epochs} epochs and their best weights")
        self.rows = [dict(zip(COLUMNS, row)) for row in rows]
        self.sums = dict(zip(self.sums, sums or ()))
        self.best = self.rows[best] if best >= 0 else None
        self.weights = dict(weights)

    def _is_condensed(self) -> bool:
        layers = [layer for network in self.networks.values() for layer in learned_connections(network).values()]
        return all(layer.stage == layer.condense_factor - 1 for layer in layers)


class EarlyStopping(paddle.callbacks.Callback):
    """Ends training after the batch with which a history is over; in the list of callbacks after what adds its rows.

    Args:
        history: of this run.
        patience: epochs without a better one.
    """

    model: paddle.Model

    def __init__(self, history: History, patience: int) -> None:
        super().__init__()
        self.history, self.patience = history, patience

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.history.is_over(self.patience):
            self.model.num_iters = 1  # Paddle ends `fit` when this count runs out, after the callbacks of the batch


def _rank(row: Mapping[str, float]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _plain(value: float) -> float:
    """A number of Python, which JSON and CSV write and read without a change."""
    return int(value) if isinstance(value, int) else float(value)


def _are_numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(value) in (int, float) for value in values)
