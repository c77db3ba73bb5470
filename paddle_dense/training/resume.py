"""Training that survives power cuts: the whole state in one file, written in one step, the last two kept.

A file ``checkpoint-00001234.safetensors`` holds the tensors under ``network.``, ``average.`` and ``optimizer.``, and
those of the best epoch under ``best.``; the step, the schedule, the loss scaling, the figures of each epoch and the
settings of the run stand as text in its header. Random numbers need no place in it: data order and augmentation are
functions of the seed and the step, and `StepSeeds` makes dropout one too.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import paddle
from paddle import distributed, nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler, PiecewiseDecay

from paddle_dense.checkpoints import description, load_model, set_description
from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.atomic import make_folder
from paddle_dense.files.compact import compacted
from paddle_dense.files.sidecar import network_in
from paddle_dense.files.weights import open_file, parse_json, read_file, read_metadata, read_weights, write_weights
from paddle_dense.layers.budget import Budget
from paddle_dense.models.fitting import check_state, set_state
from paddle_dense.models.recognise import Architecture
from paddle_dense.training.ema import ModelEMA
from paddle_dense.training.history import History
from paddle_dense.training.schedule import WarmupCosine, WarmupDecay

OLDER = "remove it, and the run continues from the checkpoint before"
_KEEP = 2
_LARGE = 2.0**127  # what float32 holds
_MAX_HEADER = 1 << 24  # bytes of a checkpoint's header that is looked into
_DIGITS = 18  # of a number of steps
_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: its file.
        step: batches done.
        settings: what the run was started with.
        network: name and arguments of the network, its preprocessing and class names.
        schedule, scaler: states of the learning rate and of the loss scaling.
        history: the figures of each epoch.
        tensors: everything else.
    """

    path: Path
    step: int
    settings: dict[str, Any]
    network: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    tensors: dict[str, np.ndarray]
    history: dict[str, Any] = field(default_factory=dict)

    def build_network(self) -> nn.Layer:
        """The network as it was at this step.

        Raises:
            WeightsError: the checkpoint names no network of this package, or its tensors do not fit it.
        """
        state, known = self._part("network"), network_in(self.network)
        with naming(self.path):
            if known is None:
                raise WeightsError("does not say which network it holds: take another checkpoint")
            architecture = Architecture(known[0], nn.Layer, known[1], budget=Budget.of(state))
            try:
                outline = architecture.outline()
            except ValueError as error:
                raise WeightsError(f"holds no network of this package ({error}): take another checkpoint") from None
            state = check_state(state, outline)
            network = architecture.build()
            set_state(network, state)
            try:
                set_description(network, self.network)
            except ValueError as error:
                raise WeightsError(f"describes no network of this package ({error}): take another checkpoint") from None
        return network

    def restore(
        self,
        model: paddle.Model,
        average: ModelEMA | None = None,
        history: History | None = None,
        other_length: bool = False,
    ) -> None:
        """Put a prepared model, its optimizer, its average and its history back to where they were.

        Args:
            other_length: the run becomes longer, so that its learning rate is another one at this step.

        Raises:
            WeightsError: the checkpoint is of another network, was made without an average or by another optimizer, or
                holds what no run leaves: a learning rate of another step, no momentum of a parameter, NaN, ...
        """
        optimizer: Any = model._optimizer
        rate = optimizer._learning_rate
        with naming(self.path):
            state = check_state(self._part("network"), model.network)
            if isinstance(rate, LRScheduler):
                if other_length:
                    rate.step(self.step)
                else:
                    _set_schedule(rate, self.schedule, self.step)
            if history is not None:
                self._restore_history(history)
            _set_optimizer(optimizer, model.network, self._part("optimizer"), self.step)
            set_state(model.network, state)
            if average is not None:
                set_state(average.network, check_state(self._part("average"), average.network))
            if self.scaler:
                _set_scaler(model, self.scaler)

    def _restore_history(self, history: History) -> None:
        if not self.history:
            raise WeightsError(
                "has no figures of its epochs, as those of 0.1.0: continue with the version that wrote it"
            )
        names = {name.partition(".")[0] for name in self._part("best")}
        if not names <= history.networks.keys():
            raise WeightsError(f"holds best weights of {shown(', '.join(sorted(names)))}, which the run lacks: {OLDER}")
        best = {name: check_state(self._part(f"best.{name}"), history.networks[name]) for name in names}
        try:
            history.restore(self.history, best, self.step // history.steps_per_epoch)
        except WeightsError as error:
            raise WeightsError(f"{error}: {OLDER}") from None

    def _part(self, name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}."
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def newest(folder: Path) -> Saved | None:
    """The newest checkpoint of a run that can be read, or None if there is none at all.

    Raises:
        WeightsError: there are some, and not one can be read.
    """
    fault = None
    for path in saved_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except WeightsError as error:  # a disk's fault: writing is all or nothing, and there is an older one
            fault = fault or error
    if fault:
        raise fault
    return None


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        WeightsError: it cannot be read or is no checkpoint of a training run.
    """
    with naming(path):
        content = read_file(path)
    tensors, texts = read_weights(path, content), read_metadata(path, content)
    try:
        settings, network, schedule, scaler = (
            dict(parse_json(texts[key])) for key in ("settings", "network", "schedule", "scaler")
        )
        step = int(texts["step"][:_DIGITS])
        if step < 0:
            raise ValueError("a negative step")
        history = dict(parse_json(texts.get("history", "{}")))
        return Saved(Path(path), step, settings, network, schedule, scaler, tensors, history)
    except (KeyError, ValueError, TypeError):
        raise WeightsError(
            f"{path} is no checkpoint of a training run: give one that python -m paddle_dense.training wrote"
        ) from None


def load_network(path: Path) -> nn.Layer:
    """The network in a training checkpoint or in any weight file.

    Raises:
        WeightsError: the file cannot be read or holds no network of this package.
    """
    return read_checkpoint(path).build_network() if _NAME.fullmatch(Path(path).name) else load_model(path)


class Checkpoints(paddle.callbacks.Callback):
    """Saves the whole state of a training run: every so often, when asked to stop, and at the end.

    Only rank 0 writes. Call `request_stop`, from a signal handler for example, and training ends after the current
    batch, on all devices alike.

    Args:
        folder: where the checkpoints go.
        settings: what a continued run needs to know; anything that JSON takes.
        start_step: steps done before this `fit`.
        every_steps: save after so many steps.
        every_seconds: and also when so much time has gone by since the last save.
        average: the EMA weights, if there are any.
        history: the figures of each epoch, with the best weights.
        multiple: save and stop after a multiple of so many steps alone, which an update takes.

    Attributes:
        step: batches done.
        stopped: training ended because it was asked to.
    """

    model: paddle.Model

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        start_step: int = 0,
        every_steps: int | None = None,
        every_seconds: float = 600.0,
        average: ModelEMA | None = None,
        history: History | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.settings = dict(settings)
        self.step = start_step
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.average = average
        self.history = history
        self.multiple = multiple
        self.stopped = False
        self._stop_requested = False
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def request_stop(self) -> None:
        """End training after the current batch."""
        self._stop_requested = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if distributed.get_rank() == 0:
            make_folder(self.folder)
        # At the start as well: a run that is killed in its first minutes can be continued like any other.
        self.save()

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        self.step += 1
        if self.step % self.multiple:
            return  # the gradients so far are in no checkpoint
        due = self.every_steps is not None and self.step % self.every_steps == 0
        if due or time.monotonic() - self._saved_at > self.every_seconds:
            self.save()
        self.stopped = self._any_rank_stops()
        if self.stopped:
            # Paddle ends `fit` when this count runs out, after the callbacks of the batch and before the next one.
            self.model.num_iters = 1

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.stopped = self.stopped or self._any_rank_stops()  # also when it was asked while a batch was read
        self.save()

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one, and remove all but the last two.

        Raises:
            WeightsError: the folder cannot be written to.
        """
        if distributed.get_rank() == 0 and self._saved_step != self.step:
            path = self.folder / f"checkpoint-{self.step:08d}.safetensors"
            write_weights(compacted(self._tensors()), path, self._texts())
            # Not what has a higher number, which was damaged if this run began before it.
            earlier = [path for path in saved_checkpoints(self.folder) if _step(path) <= self.step]
            for path in earlier[_KEEP:]:
                if _is_of_a_run(path):
                    path.unlink(missing_ok=True)
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _tensors(self) -> dict[str, np.ndarray]:
        network = self.model.network
        parts = {"network": network.state_dict(), "optimizer": _accumulators(self.model._optimizer, network)}
        if self.average is not None:
            parts["average"] = self.average.network.state_dict()
        arrays = {
            f"{part}.{name}": tensor.numpy() for part, tensors in parts.items() for name, tensor in tensors.items()
        }
        for network_name, state in (self.history.weights if self.history else {}).items():
            arrays.update({f"best.{network_name}.{name}": array for name, array in state.items()})
        return arrays

    def _texts(self) -> dict[str, str]:
        optimizer: Any = self.model._optimizer
        rate, network = optimizer._learning_rate, self.model.network
        scaler = getattr(self.model, "_scaler", None)
        return {
            "step": str(self.step),
            "settings": json.dumps(self.settings),
            "network": json.dumps(description(network)),
            "schedule": json.dumps(rate.state_dict() if isinstance(rate, LRScheduler) else {}),
            "scaler": json.dumps(
                scaler.state_dict() if scaler else {}, default=lambda array: np.asarray(array).tolist()
            ),
            **({"history": json.dumps(self.history.as_json())} if self.history else {}),
        }

    def _any_rank_stops(self) -> bool:
        if not distributed.is_initialized():
            return self._stop_requested
        # A signal may reach the devices at different steps; a device that left alone would leave the others waiting.
        flag = paddle.to_tensor([int(self._stop_requested)], dtype="int32")
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())


class StepSeeds(paddle.callbacks.Callback):
    """Makes the framework's random numbers, dropout's for example, a function of seed, device and step.

    Args:
        seed: of the run.
        start_step: steps done before this `fit`.
    """

    def __init__(self, seed: int, start_step: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.step = start_step

    def on_train_batch_begin(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        words = np.random.SeedSequence([self.seed, distributed.get_rank(), self.step]).generate_state(1)
        paddle.seed(int(words[0]))
        self.step += 1


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _is_of_a_run(path: Path) -> bool:
    """Whether a file bears the mark of a training run's checkpoint, and not the name alone."""
    try:
        with open_file(path) as file:
            length = file.read(8)
            header = memoryview(length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER)))
        return {"step", "settings"} <= read_metadata(path, header).keys()
    except (WeightsError, OSError):
        return False


def _accumulators(optimizer: Any, network: nn.Layer) -> dict[str, paddle.Tensor]:
    """The optimizer's tensors under the names that the parameters have in the network, not under Paddle's own.

    Those hold counters of the process, so that a second network in a notebook could not be continued.
    """
    return {
        f"{name}.{kind}": tensors[parameter.name]
        for kind, tensors in optimizer._accumulators.items()
        for name, parameter in network.named_parameters()
        if parameter.name in tensors
    }


def _set_schedule(rate: LRScheduler, state: Mapping[str, Any], step: int) -> None:
    """Put the learning rate back to where it was; where it is a function of the step alone, the file must agree."""
    numbers = _numbers_like(rate.state_dict(), state)
    done, last = numbers.get("last_epoch", 0), numbers.get("last_lr", 0)
    if type(done) is not int or not 0 <= done <= step or last < 0:
        raise WeightsError(f"holds learning rate {last} after {done} of {step} steps, which no run has: {OLDER}")
    rate.set_state_dict(cast("Any", numbers))
    if not isinstance(rate, (WarmupCosine, WarmupDecay, PiecewiseDecay)):
        return
    # The cosine's last steps are differences of nearly equal numbers, which another machine may round otherwise.
    if not math.isclose(last, rate.get_lr(), rel_tol=1e-6, abs_tol=1e-12):
        raise WeightsError(
            f"holds learning rate {last} at step {done}, where this run's is {rate.get_lr():.6g}: continue with the "
            f"settings that the run began with, or {OLDER}"
        )


def _set_optimizer(optimizer: Optimizer, network: nn.Layer, arrays: Mapping[str, np.ndarray], step: int) -> None:
    if not arrays and step == 0:
        return  # there are none before the first step
    # Paddle makes accumulators in an optimizer's first step; what that does to the weights is put right afterwards.
    for parameter in optimizer._parameter_list:
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.step()
    optimizer.clear_grad()
    own = _accumulators(optimizer, network)
    for key in [*arrays, *own]:
        name, _, kind = key.rpartition(".")
        what = f"{shown(kind)} of {shown(name)}"
        if key not in own:
            raise WeightsError(
                f"holds {what} for another optimizer: continue with the settings that the run began with"
            )
        if key not in arrays:
            raise WeightsError(f"lacks {what}, which would start from zero at step {step}: {OLDER}")
        _set_accumulator(own[key], arrays[key], what)


def _set_accumulator(tensor: paddle.Tensor, array: np.ndarray, what: str) -> None:
    if array.dtype.kind != "f" or array.shape != tuple(tensor.shape):
        raise WeightsError(
            f"holds {array.dtype} {list(array.shape)} as {what}, which needs floats {list(tensor.shape)}: {OLDER}"
        )
    with np.errstate(over="ignore"):  # an infinity is reported as one
        value = paddle.to_tensor(array, dtype=tensor.dtype)
    if not paddle.isfinite(value).all().item():  # they would make every weight NaN in the next step
        raise WeightsError(f"holds NaN or infinity in {what}: {OLDER}")
    tensor.set_value(value)


def _set_scaler(model: paddle.Model, state: Mapping[str, Any]) -> None:
    """Put the loss scaling of a run with --amp back to where it was."""
    configs = getattr(model._adapter, "_amp_configs", None)
    if not configs:
        raise WeightsError("holds a loss scaling, for a run with --amp on a GPU: continue it there")
    scaler = paddle.amp.GradScaler(**configs)
    scaler.load_state_dict(cast("Any", _scaling_like(scaler.state_dict(), state)))
    model._scaler = scaler  # type: ignore[attr-defined]  # made in `fit` otherwise


def _scaling_like(own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of a loss scaling, as Paddle takes it: only the scale and the two counts change in a run.

    Paddle's scale is an array of one number, and a list in JSON.
    """
    scale = state.get("scale")
    plain = {**state, "scale": scale[0] if isinstance(scale, list) and scale else scale}
    numbers = _numbers_like({**own, "scale": 1.0}, plain)
    counts = {"incr_count": own["incr_every_n_steps"], "decr_count": own["decr_every_n_nan_or_inf"]}
    for name, value in numbers.items():
        if name == "scale":
            possible = value > 0
        elif name in counts:
            possible = type(value) is int and 0 <= value < counts[name]
        else:
            possible = value == own[name]
        if not possible:
            raise WeightsError(f"holds a loss scaling with {name} {value}, which no run here has: {OLDER}")
    return {**numbers, "scale": np.asarray([numbers["scale"]], "float32")}


def _numbers_like(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of a schedule or a scaling, if it has the same entries and all of them are numbers."""
    plain = all(isinstance(value, (int, float)) and abs(value) < _LARGE for value in saved.values())
    if saved.keys() != own.keys() or not plain:
        raise WeightsError(f"holds {shown(', '.join(saved))} where the numbers {', '.join(own)} should be: {OLDER}")
    return dict(saved)
