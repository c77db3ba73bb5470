"""One training run from its settings: network, data, optimizer, callbacks, and the files that it leaves."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import paddle
from paddle import distributed, nn

from paddle_dense.checkpoints import load_model, load_pretrained, save_weights
from paddle_dense.classes import class_numbers
from paddle_dense.condensing import condense
from paddle_dense.cost import check_cost
from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError, naming
from paddle_dense.models.arguments import (
    Count,
    FromZero,
    OptionalCount,
    OptionalFactor,
    OptionalFromZero,
    OptionalShare,
    OptionalShareFromZero,
    OptionalSide,
    OptionalText,
    check_arguments,
)
from paddle_dense.models.fitting import set_state
from paddle_dense.models.network import build_network, config_keys, network_class
from paddle_dense.process import Stopped, handling_signals
from paddle_dense.released import is_released, released
from paddle_dense.training.accuracy import Accuracy, measure_accuracy
from paddle_dense.training.augment import Augmented, eval_transforms, train_transforms
from paddle_dense.training.batches import TrainingBatches
from paddle_dense.training.condensation import (
    CondensationCallback,
    CondensationLoss,
    density,
    learned_connections,
    set_progress,
)
from paddle_dense.training.data import ImageData, ImageLoader, Unreadable, open_data
from paddle_dense.training.ema import ModelEMA
from paddle_dense.training.freezing import freeze
from paddle_dense.training.history import EarlyStopping, History
from paddle_dense.training.mixing import Mixing, SharedLoss, WeightedCrossEntropy, class_weights
from paddle_dense.training.optimizers import check_optimizer, decay_rates, make_optimizer
from paddle_dense.training.progress import Curves, Progress
from paddle_dense.training.recipes import Recipe, recipe
from paddle_dense.training.resume import OLDER, Checkpoints, Saved, StepSeeds
from paddle_dense.training.schedule import RateOfUpdates


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; a continued run has the same.

    Attributes:
        data: `digits`, a folder of images, PaddleClas' lists, or a CIFAR archive.
        model: preset or network; what `pretrained` holds where that is given alone.
        recipe: name of a recipe.
        config: arguments of the network.
        pretrained: weights to begin with: a file, or the name of a preset or of a released set.
        epochs, batch_size, learning_rate: in place of the recipe's.
        seed: of weights, data order, augmentation, dropout and the images held out.
        val_split: share of each class to test on.
        image_root: where the paths in PaddleClas' lists start.
        amp: half precision where the device has it.
        ema: keep EMA weights, and take them at the end.
        size: side of the square that the network sees, in place of its own.
        optimizer, weight_decay, label_smoothing, mixup, cutmix, clip_norm: in place of the recipe's.
        accumulate: batches whose gradients are added up for an update.
        freeze: what does not learn, see `paddle_dense.training.freezing`.
        layer_decay: what each block's learning rate is multiplied with for the block before it.
        patience: the run ends after so many epochs without a better one.
        class_weights: ``"balanced"``, or a number for each class.

    Raises:
        ValueError: a setting is no such thing.
    """

    data: str
    recipe: str
    model: OptionalText = None
    config: dict[str, Any] = field(default_factory=dict)
    pretrained: OptionalText = None
    epochs: OptionalCount = None
    batch_size: OptionalCount = None
    learning_rate: OptionalFactor = None
    seed: FromZero = 0
    val_split: OptionalShare = None
    image_root: OptionalText = None
    amp: bool = False
    ema: bool = False
    size: OptionalSide = None
    optimizer: OptionalText = None
    weight_decay: OptionalFromZero = None
    label_smoothing: OptionalShareFromZero = None
    mixup: OptionalFromZero = None
    cutmix: OptionalFromZero = None
    clip_norm: OptionalFactor = None
    accumulate: Count = 1
    freeze: OptionalText = None
    layer_decay: OptionalShare = None
    patience: OptionalCount = None
    class_weights: OptionalText = None

    def __post_init__(self) -> None:
        check_arguments(type(self), vars(self))
        own = recipe(self.recipe)
        if self.optimizer and check_optimizer(self.optimizer) != own.optimizer and self.learning_rate is None:
            raise ValueError(
                f"--optimizer {self.optimizer} needs a --learning-rate of its own: {own.learning_rate} of recipe "
                f"{self.recipe} is for {own.optimizer}"
            )

    def resolved_recipe(self) -> Recipe:
        """The recipe, with what the settings say in its place."""
        own = {name: getattr(self, name) for name in _OF_RECIPES}
        return replace(recipe(self.recipe), **{name: value for name, value in own.items() if value is not None})


# Of the settings; learning rate and batch size are not among them, as the one is for the other.
_OF_RECIPES = ("optimizer", "weight_decay", "label_smoothing", "mixup", "cutmix", "clip_norm")


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        step: batches done.
        accuracies: what the test images gave, for each weight file written.
        stopped_by: the signal that asked it to stop, after which it can be continued; None at the end.
        epochs: whose weights each file has.
    """

    step: int
    accuracies: dict[Path, Accuracy]
    stopped_by: int | None = None
    epochs: dict[Path, int] = field(default_factory=dict)


class Run:
    """A training run: build it from settings, then `train` or `evaluate`.

    Args:
        settings: see `Settings`.
        folder: where checkpoints and weights go.
        saved: the checkpoint to continue from.
        workers: processes that prepare images.
        log_dir: folder for VisualDL.
        max_bad: share of the images, of each part, that may be unreadable; they are left out.

    Attributes:
        batch_size: images in a batch, over all devices: no more than there are.

    Raises:
        ValueError: settings that do not fit together.
        WeightsError: the pretrained file or the checkpoint cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        saved: Saved | None = None,
        workers: int = 0,
        log_dir: str | None = None,
        max_bad: float = 0.0,
    ) -> None:
        if distributed.get_world_size() > 1:
            distributed.init_parallel_env()
        paddle.seed(settings.seed)
        self.settings = settings
        self.folder = Path(folder)
        self.saved = saved
        self.workers = workers
        self.log_dir = log_dir
        self.recipe = settings.resolved_recipe()
        self.train_data = self._open("train")
        self.batch_size = self._batch_size()
        self.network = saved.build_network() if saved else _network(settings, self.recipe, self.train_data)
        if settings.freeze:
            freeze(self.network, settings.freeze)
        if settings.layer_decay:
            decay_rates(self.network, settings.layer_decay)
        self.preprocessing = _preprocessing(self.network, self.train_data, settings.size)
        # Both go with the weights, into their sidecar and into what is exported.
        self.network.preprocessing = self.preprocessing
        if self.network.num_classes == len(self.train_data.classes):  # it can be told to have more
            self.network.classes = self.train_data.classes
        if saved or settings.pretrained:
            with naming(saved.path if saved else cast("str", settings.pretrained)):
                check_cost(self.network, "take another checkpoint", self.preprocessing.input_size)
        self.test_data = Augmented(self._open("test"), eval_transforms(self.preprocessing))
        self.unreadable = [Unreadable(len(data), max_bad) for data in (self.train_data, self.test_data)]

    @property
    def keeps_ema(self) -> bool:
        """Whether EMA weights are kept."""
        return self.settings.ema or self.recipe.ema

    def evaluate(self, network: nn.Layer | None = None) -> Accuracy:
        """The accuracy of a network, the run's own unless given, on the test images."""
        return measure_accuracy(
            network or self.network, self.test_data, self.batch_size, self.workers, self.unreadable[1]
        )

    def train(self, condense_at_end: bool = False) -> Result:
        """Train to the end, or until asked to stop, and write the weights.

        Args:
            condense_at_end: also write the condensed form.
        """
        start = self.saved.step if self.saved else 0
        settings = self.settings
        batches = TrainingBatches(
            len(self.train_data), self.batch_size, self._epochs(), settings.seed, start, settings.accumulate
        )
        longer = self._is_longer(start, batches.steps_per_epoch)
        if self.saved and start > batches.total_steps:
            raise WeightsError(f"{self.saved.path} is at step {start} of a run of {batches.total_steps}: {OLDER}")
        model, average = self._prepared(batches)
        if self.saved and self.saved.schedule.get("last_epoch") != start:  # the rate changes at every step
            raise WeightsError(f"{self.saved.path} is at step {start}, and its learning rate at another: {OLDER}")
        history = History(self.folder, self._named(average), batches.steps_per_epoch)
        if self.saved:
            self.saved.restore(model, average, history, other_length=longer)

        def end_epoch() -> Accuracy:
            shown = average.network if average else self.network
            accuracy = self.evaluate(shown)
            history.add(cast("Any", model._optimizer).get_lr(), accuracy, density(self.network))
            return accuracy

        if len(history.rows) < start // batches.steps_per_epoch:
            end_epoch()  # a signal came while it was evaluated
        checkpoints = Checkpoints(
            self.folder,
            asdict(settings),
            start,
            batches.steps_per_epoch,
            average=average,
            history=history,
            multiple=settings.accumulate,
        )
        received: list[int] = []

        def stop(number: int, frame: Any) -> None:  # after the current batch
            received.append(number)
            checkpoints.request_stop()

        if len(batches) and not history.is_over(settings.patience):
            with handling_signals(stop):
                progress = Progress(batches.steps_per_epoch, batches.total_steps, start, history, end_epoch)
                callbacks = self._callbacks(batches, start, average, progress, checkpoints)
                model.fit(
                    self._loader(batches),  # type: ignore[arg-type]  # any iterable of batches will do
                    epochs=1,
                    verbose=0,
                    callbacks=callbacks,
                    accumulate_grad_batches=settings.accumulate,
                )
        if checkpoints.stopped:
            # It may have reached another device alone.
            return Result(checkpoints.step, {}, received[0] if received else signal.SIGINT)
        return self._finished(history, average, condense_at_end)

    def _loader(self, batches: TrainingBatches) -> ImageLoader:
        transforms = train_transforms(self.recipe.augmentation, self.preprocessing)
        images = Augmented(self.train_data, transforms, self.settings.seed)
        loader = _TrainingLoader(images, batches, self.workers, self.unreadable[0], same_size=True)
        if self.settings.accumulate > 1:
            loader.alone = False  # to end after an update, and not between the batches of one
        if self._is_mixed():
            classes = self.network.num_classes
            loader.mixing = Mixing(classes, self.recipe.mixup, self.recipe.cutmix, self.settings.seed)
        return loader

    def _is_mixed(self) -> bool:
        return bool(self.recipe.mixup or self.recipe.cutmix)

    def _loss(self) -> nn.Layer:
        smoothing, weights = self.recipe.label_smoothing, self.settings.class_weights
        if weights:
            found = class_weights(weights, self.train_data.labels, self.network.num_classes)
            return WeightedCrossEntropy(found, smoothing)
        return nn.CrossEntropyLoss(soft_label=self._is_mixed(), label_smoothing=smoothing)

    def _epochs(self) -> int:
        return self.settings.epochs or self.recipe.epochs

    def _is_longer(self, start: int, steps_per_epoch: int) -> bool:
        """Whether a run that has ended goes on for more epochs."""
        before = (self.saved.settings.get("epochs") or self.recipe.epochs) if self.saved else self._epochs()
        if before == self._epochs():
            return False
        if before > self._epochs() or start != before * steps_per_epoch:
            done = f"{start // steps_per_epoch} of {before} epochs are done"
            raise ValueError(
                f"--epochs {self._epochs()} can make a run longer that has ended, and {done}: leave --epochs out, or "
                f"give more once it has ended"
            )
        return True

    def _named(self, average: ModelEMA | None) -> dict[str, nn.Layer]:
        """The networks in training, by the names of their files."""
        return {"model": self.network, **({"model_ema": average.network} if average else {})}

    def _prepared(self, batches: TrainingBatches) -> tuple[paddle.Model, ModelEMA | None]:
        settings, rate = self.settings, self.settings.learning_rate
        if rate is None:
            # The linear scaling rule (arXiv 1706.02677): the recipe's rate is for the recipe's batch.
            rate = self.recipe.learning_rate * batches.batch_size * settings.accumulate / self.recipe.batch_size
        model = paddle.Model(self.network)
        optimizer = make_optimizer(
            self.recipe.optimizer,
            self.recipe.schedule(rate, batches.steps_per_epoch, batches.total_steps // batches.steps_per_epoch),
            [parameter for parameter in self.network.parameters() if not parameter.stop_gradient],
            self.recipe.weight_decay,
            self.recipe.clip_norm,
        )
        loss: nn.Layer = CondensationLoss(self._loss(), self.recipe.group_lasso, self.network)
        model.prepare(
            optimizer,
            SharedLoss(loss, settings.accumulate) if settings.accumulate > 1 else loss,
            paddle.metric.Accuracy(),
            amp_configs="O1" if settings.amp and not paddle.get_device().startswith("cpu") else None,
        )
        if not self.keeps_ema:
            return model, None
        updates = batches.start_step // settings.accumulate if self.recipe.ema else None
        return model, ModelEMA(self.network, self.recipe.ema_decay, updates)

    def _callbacks(
        self,
        batches: TrainingBatches,
        start: int,
        average: ModelEMA | None,
        progress: Progress,
        checkpoints: Checkpoints,
    ) -> list[paddle.callbacks.Callback]:
        """In this order: what changes the network, then what shows it, then what saves it."""
        return [
            StepSeeds(self.settings.seed, start),
            RateOfUpdates(self.settings.accumulate),
            *([CondensationCallback(batches.total_steps, start)] if learned_connections(self.network) else []),
            *([average] if average else []),
            progress,
            *([EarlyStopping(progress.history, self.settings.patience)] if self.settings.patience else []),
            *([Curves(self.log_dir, start, progress)] if self.log_dir else []),
            checkpoints,
        ]

    def _finished(self, history: History, average: ModelEMA | None, condense_at_end: bool) -> Result:
        """Write the best and the last weights: `model` is the best, `model_last` the last."""
        # All is dropped by now, unless the run was cut off between its last step and its end.
        set_progress(self.network, 1.0)
        if average:
            average.copy_choices(self.network)
        last = self._named(average)
        best = {name: _with_weights(network, history.weights.get(name)) for name, network in last.items()}
        networks = {**best, **{f"{name}_last": network for name, network in last.items()}}
        if condense_at_end:
            networks["model_condensed"] = condense(best["model_ema" if average else "model"])
        files = {self.folder / f"{name}.pdparams": network for name, network in networks.items()}
        accuracies = {file: self.evaluate(network) for file, network in files.items()}
        ended = history.rows[-1]
        epochs = {
            file: int((ended if file.stem.endswith("_last") else history.best or ended)["epoch"]) for file in files
        }
        if distributed.get_rank() == 0:
            for file, network in files.items():
                figures = {
                    "epoch": epochs[file],
                    "step": epochs[file] * history.steps_per_epoch,
                    "accuracy": accuracies[file].top1,
                    "density": density(network),
                }
                save_weights(network, file, {"training": {**asdict(self.settings), **figures}})
        return Result(int(ended["step"]), accuracies, epochs=epochs)

    def _open(self, part: str) -> ImageData:
        settings = self.settings
        return open_data(settings.data, part, settings.val_split, settings.seed, settings.image_root)

    def _batch_size(self) -> int:
        wanted, devices = self.settings.batch_size or self.recipe.batch_size, distributed.get_world_size()
        most = len(self.train_data) // self.settings.accumulate
        return wanted if wanted <= most else max(most // devices, 1) * devices


def _network(settings: Settings, recipe: Recipe, data: ImageData) -> nn.Layer:
    """The network of the settings, with as many outputs as the data has classes."""
    given = {"num_classes": len(data.classes), **settings.config}
    source = settings.pretrained
    if source and not settings.model and not is_released(source):
        network = load_model(source, **given)
    else:
        name = settings.model or str(source).partition(".")[0]
        given = {"in_channels": data.in_channels, **given}
        keys = config_keys(network_class(name))
        given = {**{key: value for key, value in recipe.network.items() if key in keys}, **given}
        if not source and "condensed" in keys:
            given = {"condensed": False, **given}
        network = build_network(name, given)
        if source:
            load_pretrained(network, released(source).file if is_released(source) else source)
    if source and not _tells_apart(network, data.classes):
        network.reset_classifier(network.num_classes)
        names = f"{source}: its classes have other names than those of {settings.data}"
        warnings.warn(f"{names}: the classifier is newly initialised", stacklevel=2)
    if network.config["in_channels"] != data.in_channels:
        raise WeightsError(
            f"{settings.pretrained or network.arch} takes images of {network.config['in_channels']} channels and "
            f"{settings.data} has {data.in_channels}: take another network or other data"
        )
    return network


def _tells_apart(network: nn.Layer, classes: Sequence[str]) -> bool:
    """Whether a network's classes are these, in this order, as far as it is known what they are called."""
    if network.classes is None or len(network.classes) != len(classes) or list(network.classes) == list(classes):
        return True
    numbers = class_numbers(network.classes)
    return [numbers.get(name) for name in classes] == list(range(len(classes)))


def _preprocessing(network: nn.Layer, data: ImageData, size: int | None) -> Preprocessing:
    """The data's own numbers where it has some, or else those of the network's paper; scaled to another size."""
    if data.mean is None or data.std is None or data.input_size is None:
        own: Preprocessing = network.preprocessing
    else:
        own = Preprocessing(data.input_size, data.input_size, mean=data.mean, std=data.std)
    if size is None:
        return own
    return replace(own, input_size=size, resize=round(own.resize * size / own.input_size))


def _with_weights(network: nn.Layer, weights: dict[str, np.ndarray] | None) -> nn.Layer:
    """A copy of a network with these weights, or the network itself if there are none."""
    if weights is None:
        return network
    copied = copy.deepcopy(network)
    set_state(copied, weights)
    return copied


class _TrainingLoader(ImageLoader):
    """Batches, mixed if need be, that end, as if there were no more, when the command is asked to stop meanwhile."""

    batches: TrainingBatches
    mixing: Mixing | None = None

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        with suppress(Stopped):
            for step, batch in enumerate(super().__iter__(), start=self.batches.start_step):
                yield self.mixing(step, *batch) if self.mixing else batch
