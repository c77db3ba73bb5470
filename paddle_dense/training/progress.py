"""What a training run shows: a bar with the time that is left, a line for each epoch, curves for VisualDL."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import isnan
from typing import Any, Callable, cast

import paddle
from paddle import distributed

from paddle_dense.errors import WeightsError
from paddle_dense.process import Stopped
from paddle_dense.training.accuracy import Accuracy
from paddle_dense.training.condensation import density, learned_connections
from paddle_dense.training.history import History


class Progress(paddle.callbacks.Callback):
    """A progress bar on stderr, and after each epoch the accuracy on the test images and a line on stdout.

    Args:
        steps_per_epoch: batches in an epoch.
        total_steps: batches in the whole training.
        start_step: batches done before this `fit`.
        history: is given what the batches of an epoch add up to.
        end_epoch: measures the accuracy and adds a row to the history; called on all ranks.

    Raises:
        WeightsError: in training, the loss is NaN.
    """

    model: paddle.Model

    def __init__(
        self,
        steps_per_epoch: int,
        total_steps: int,
        start_step: int,
        history: History,
        end_epoch: Callable[[], Accuracy],
    ) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.step = start_step
        self.history = history
        self.end_epoch = end_epoch
        self.accuracy: Accuracy | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        from tqdm import tqdm

        # disable=None: a bar for a terminal, nothing for a file or a pipe.
        quiet = True if distributed.get_rank() else None
        self._bar = tqdm(total=self.total_steps, initial=self.step, unit="step", file=sys.stderr, disable=quiet)
        for metric in self.model._metrics:  # a run that is continued within an epoch
            metric.total, metric.count = [self.history.sums["correct"]], [self.history.sums["images"]]
        self._learns = bool(learned_connections(self.model.network))

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        self.step += 1
        if isinstance(
            logs, dict
        ):  # where gradients are added up, each batch has its share of the loss; for the later callbacks as well
            logs["loss"] = [float(logs["loss"][0]) * getattr(self.model, "_accumulate", 1)]
        self._add(logs or {})
        self._bar.update()
        if not self._bar.disable:
            self._bar.set_description(f"epoch {-(-self.step // self.steps_per_epoch)}", refresh=False)
            self._bar.set_postfix(self._figures(logs or {}), refresh=False)
        if self.step % self.steps_per_epoch == 0:
            self._end_epoch(logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._bar.close()

    def _add(self, logs: Mapping[str, Any]) -> None:
        sums, metric = self.history.sums, cast("paddle.metric.Accuracy", self.model._metrics[0])
        if isnan(logs["loss"][0]):
            self._bar.close()
            rate = cast("Any", self.model._optimizer).get_lr()
            raise WeightsError(
                f"the loss is no number any more at step {self.step}, with a learning rate of {rate:.2g}: start again "
                f"with a smaller --learning-rate, or with --clip-norm 1"
            )
        sums["loss"] += logs["loss"][0]
        sums["batches"] += 1
        sums["correct"], sums["images"] = float(metric.total[0]), float(metric.count[0])

    def _figures(self, logs: Mapping[str, Any]) -> dict[str, str]:
        figures = {"loss": f"{logs['loss'][0]:.3f}", "accuracy": f"{logs['acc']:.2%}"}
        return {**figures, "density": f"{density(self.model.network):.1%}"} if self._learns else figures

    def _end_epoch(self, logs: Mapping[str, Any]) -> None:
        figures = self._figures(logs)
        try:
            self.accuracy = self.end_epoch()
        except Stopped:  # the callbacks after this one save the step and end the training
            self.accuracy = None
            return
        for metric in self.model._metrics:
            metric.reset()
        if distributed.get_rank() == 0:
            epoch, epochs = self.step // self.steps_per_epoch, self.total_steps // self.steps_per_epoch
            said = ", ".join(f"{name} {value}" for name, value in figures.items())
            self._bar.write(f"epoch {epoch}/{epochs}: {said}, test accuracy {self.accuracy.top1:.2%}", file=sys.stdout)


class Curves(paddle.callbacks.VisualDL):
    """Paddle's VisualDL callback, which continues a curve where an earlier run left it and adds density and accuracy.

    Args:
        log_dir: the folder that ``visualdl --logdir`` is given.
        start_step: batches done before this `fit`.
        progress: where the accuracy comes from.
    """

    model: paddle.Model
    train_step: int

    def __init__(self, log_dir: str, start_step: int, progress: Progress) -> None:
        super().__init__(log_dir)
        self.start_step = start_step
        self.progress = progress

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self.train_step = self.start_step

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        super().on_train_batch_end(step, logs)
        accuracy = self.progress.accuracy
        if accuracy is None or not self._is_write() or self.progress.step % self.progress.steps_per_epoch:
            return
        add = self.writer.add_scalar
        add(tag="test/accuracy", step=self.train_step, value=accuracy.top1)
        add(tag="test/loss", step=self.train_step, value=accuracy.loss)
        for name, layer in learned_connections(self.model.network).items():
            add(tag=f"density/{name}", step=self.train_step, value=layer.density)
