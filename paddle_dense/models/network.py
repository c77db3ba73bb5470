"""What every network here is, and the presets: how they are declared, found and built."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from paddle import LazyGuard, Tensor, nn
from paddle.utils import unique_name

from paddle_dense.data import Preprocessing
from paddle_dense.errors import did_you_mean
from paddle_dense.files.spelling import Spelling
from paddle_dense.layers.budget import check_budget
from paddle_dense.models.arguments import check_arguments

_T = TypeVar("_T")
_NETWORKS: dict[str, type[Network]] = {}
_PRESETS: dict[str, Preset] = {}
_named: WeakSet[Network] = WeakSet()


@dataclass(frozen=True)
class Recognised:
    """What one network reads from a state_dict.

    Attributes:
        config: the constructor's arguments.
        guesses: the arguments of which the file holds no trace, filled in as the released checkpoints have them.
    """

    config: dict[str, Any]
    guesses: tuple[str, ...] = ()


class _NamesParameters(type):
    """Class of the networks' classes: a network's parameters get their names as soon as its constructor is done."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return name_parameters(super().__call__(*args, **kwargs))

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, which `help` would not find otherwise."""
        _, *others = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(others)


class Network(nn.Layer, metaclass=_NamesParameters):
    """What the networks here have in common: each can be rebuilt from its `config`.

    A subclass hands its constructor's arguments over at once, and says in `describe` what it makes of an image::

        def __init__(self, width: Count = 8, num_classes: FromZero = 10, in_channels: Count = 3,
                     features_only: bool = False) -> None:
            super().__init__(locals())
            ...
            self.describe(input_size=32, feature_channels=[width], feature_strides=[2])

    Attributes:
        classifier_name: the layer that tells the classes apart.
        head_prefixes: how the names of those tensors begin that `features_only` leaves out.
        config: the constructor's arguments, every one.
        arch: name of the preset, or of the class.
        parameter_prefix: how Paddle's names of its parameters begin, once `name_parameters` has given them.
        num_classes: classes; 0 for none.
        features_only: whether it returns the pyramid instead of logits.
        out_indices: which levels of the pyramid it returns, by number; all of them unless chosen.
        input_size: side of the images that it was made for, in pixels.
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.
        preprocessing: how images are prepared for it.
        classes: the name of each class, by number, where they are known.
        tag: which of the released sets its weights are, as in ``densenet121.tv_in1k``.
        spellings: what other code calls its tensors.
        aliases: older names of single layers, theirs and ours, as rows of a `Spelling`; they hold in every spelling.
        anchors: tensors by which the network is found in a file, under whatever prefix; one of them is enough.
        folds: convolutions and the batch normalisation that alone reads each of them: templates of names.
    """

    classifier_name = "classifier"
    head_prefixes: tuple[str, ...] = ("classifier.",)
    spellings: tuple[Spelling, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    anchors: tuple[str, ...] = ()
    folds: tuple[tuple[str, str], ...] = ()
    input_size: int
    feature_channels: Sequence[int]
    feature_strides: Sequence[int]
    preprocessing: Preprocessing
    classes: Sequence[str] | None = None
    parameter_prefix: str | None = None
    tag: str | None = None
    out_indices: Sequence[int] | None = None

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Record the arguments.

        Args:
            arguments: the constructor's, by name: its `locals()` before it does anything else.

        Raises:
            ValueError: an argument is of another kind than its annotation says, or out of range.
        """
        super().__init__()
        # Lists are copied: a model's config is its own, though the preset's or the caller's may change.
        config: dict[str, Any] = {
            key: list(value) if isinstance(value, (list, tuple)) else value
            for key, value in ((key, arguments[key]) for key in config_keys(type(self)))
        }
        check_arguments(type(self).__init__, config)
        self.config = config
        self.arch = type(self).__name__
        self.num_classes: int = config["num_classes"]
        self.features_only: bool = config["features_only"]

    def describe(self, input_size: int, feature_channels: Sequence[int], feature_strides: Sequence[int]) -> None:
        """Set what the network makes of an image.

        Raises:
            ValueError: the strides leave nothing of one.
        """
        if feature_strides[-1] > input_size:
            raise ValueError(
                f"{type(self).__name__} would leave nothing of an image of {input_size} pixels, one for every "
                f"{feature_strides[-1]}: take fewer blocks or smaller strides"
            )
        self.input_size = input_size
        self.feature_channels, self.feature_strides = list(feature_channels), list(feature_strides)
        check_budget(self.config["in_channels"])
        self.preprocessing = Preprocessing.for_network(input_size, self.config["in_channels"])

    def choose_levels(self, out_indices: Sequence[int]) -> None:
        """Return only some levels of the pyramid from now on; their channels and strides are the network's then.

        Args:
            out_indices: places in `feature_strides`, ascending, from the end where negative, as in timm.

        Raises:
            ValueError: the network returns logits, or has no such levels.
        """
        if not self.features_only:
            raise ValueError("out_indices chooses among the levels of the pyramid: give features_only=True with it")
        self.out_indices = check_levels(self.arch, out_indices, self.feature_strides)
        self.feature_channels = self.chosen(self.feature_channels)
        self.feature_strides = self.chosen(self.feature_strides)

    def chosen(self, levels: Sequence[_T]) -> list[_T]:
        """What `out_indices` leaves of the levels of the pyramid."""
        return list(levels) if self.out_indices is None else [levels[index] for index in self.out_indices]

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> what the head reads, [N, C, H', W'], after the last normalisation and activation.

        `forward_head` makes logits of it. A network that was built with ``features_only`` has no head to read it.
        """
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returned -> [N, num_classes].

        Args:
            x: [N, C, H', W'].
            pre_logits: return what the classifier reads, [N, features], as a network without a classifier does.
        """
        raise NotImplementedError

    def get_classifier(self) -> nn.Layer:
        """The layer that tells the classes apart; `paddle.nn.Identity` where there is none."""
        owner, leaf = self._place_of_classifier()
        return owner._sub_layers.get(leaf) or nn.Identity() if owner is not None else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in the classifier's place; the network is otherwise the same.

        Args:
            num_classes: classes; 0 takes the classifier out.

        Raises:
            ValueError: the network has no head, or cannot have so many classes.
        """
        if self.features_only:
            raise ValueError("a network with features_only=True has no classifier: build it without features_only")
        config = {**self.config, "num_classes": num_classes}
        with LazyGuard():
            other = build_network(type(self).__name__, config)
        (owner, leaf), (others, _) = self._place_of_classifier(), other._place_of_classifier()
        owner._sub_layers.pop(leaf, None)
        fresh = others._sub_layers.get(leaf)
        if fresh is not None:
            for name, parameter in fresh.named_parameters():
                parameter.initialize()
                parameter.name = f"{self.parameter_prefix or ''}{self.classifier_name}.{name}"
            fresh.train() if self.training else fresh.eval()
            owner.add_sublayer(leaf, fresh)
        self.config, self.num_classes, self.classes = config, num_classes, None

    def _place_of_classifier(self) -> tuple[Any, str]:
        """The layer that the classifier is in, None where there is none, and its name there."""
        *path, leaf = self.classifier_name.split(".")
        owner: Any = self
        for name in path:
            owner = owner._sub_layers.get(name)
        return owner, leaf

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's users ask of a model: how images are prepared, and the names of its first and last layers."""
        told = self.preprocessing
        return {
            "architecture": self.arch,
            "tag": self.tag,
            "num_classes": self.num_classes,
            "input_size": (len(told.mean), told.input_size, told.input_size),
            "crop_pct": told.input_size / told.resize,
            "interpolation": told.interpolation,
            "mean": tuple(told.mean),
            "std": tuple(told.std),
            "first_conv": first_convolution(self).rpartition(".")[0],
            "classifier": self.classifier_name,
        }

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        raise NotImplementedError


def check_levels(arch: str, levels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The places of these levels of a pyramid, from the end where negative.

    Raises:
        ValueError: it has no such levels, or they are not in ascending order.
    """
    known = range(len(strides))
    found = [level + len(strides) if level < 0 else level for level in levels]
    if not found or found != sorted(set(found)) or not set(found) <= set(known):
        raise ValueError(
            f"{arch} has no levels {list(levels)}: give ascending ones of {list(known)}, which have the strides "
            f"{list(strides)}"
        )
    return found


@dataclass(frozen=True)
class Published:
    """What the paper, or the page of the weights, says of a preset.

    Attributes:
        params: parameters, in millions.
        macs: multiply-accumulates, in millions, at the preset's own image size; the CondenseNets' papers count
            activations and pooling with the products, everybody else the products alone.
        top1_error, top5_error: in percent.
        data: what the errors were measured on.
        remark: what else is to be known, in a few words.
    """

    params: float | None = None
    macs: float | None = None
    top1_error: float | None = None
    top5_error: float | None = None
    data: str = "ImageNet"
    remark: str = ""

    def __str__(self) -> str:
        errors = [(self.top1_error, "top-1"), (self.top5_error, "top-5")]
        figures = [
            f"{number} M {what}" for number, what in ((self.params, "parameters"), (self.macs, "MACs")) if number
        ]
        said = " and ".join(f"{error} % {which}" for error, which in errors if error is not None)
        figures += [f"{said} error on {self.data}"] if said else []
        return ", ".join([*figures, *([self.remark] if self.remark else [])])


class Size(NamedTuple):
    """The exact size of a preset, as `paddle_dense.profile` counts it at the preset's own image size."""

    params: int
    macs: int
    executed_macs: int


@dataclass(frozen=True)
class Preset:
    """A named network of a paper.

    Attributes:
        name: the name that `create_model` takes.
        network: the class of the network.
        config: the constructor's arguments that make this preset.
        preprocessing: how the images were prepared that the published figure was measured on.
        published: the published figures.
        size: the exact ones, where they have been measured.
    """

    name: str
    network: type[Network]
    config: dict[str, Any] = field(compare=False)
    preprocessing: Preprocessing
    published: Published = Published()
    size: Size | None = None

    @property
    def note(self) -> str:
        """The published figures in one line, and the measured size where none is published."""
        published = self.published
        if self.size and published.params is None:
            params, macs = round(self.size.params / 1e6, 1), round(self.size.executed_macs / 1e6)
            published = replace(published, params=params, macs=macs)
        return str(published)

    def build(self, config: Mapping[str, Any]) -> Network:
        """A new network with fresh weights; ValueError if an argument in `config` is unknown or cannot be used."""
        model = build_network(self.network.__name__, {**self.config, **_with_alias(config)})
        model.arch = self.name
        model.preprocessing = self.preprocessing
        model.input_size = self.preprocessing.input_size
        return model


def register_network(network: type[Network]) -> type[Network]:
    """Class decorator: `network` can be rebuilt from the name of its class and its `config`, and is recognised."""
    _NETWORKS[network.__name__] = network
    return network


def register_model(
    name: str,
    network: type[Network],
    preprocessing: Preprocessing,
    published: Published = Published(),
    size: Size | None = None,
    **config: Any,
) -> None:
    """Declare a preset, which `create_model` builds and files are recognised as.

    Args:
        name: the name that `create_model` takes.
        network: the class of the network.
        preprocessing: how images are prepared for it.
        published: figures that were published of it.
        size: its exact size, where that has been measured.
        config: the constructor's arguments that make this preset.
    """
    _PRESETS[name] = Preset(name, network, config, preprocessing, published, size)


def _with_alias(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with ppim's name of `num_classes`, `class_dim`, put right."""
    if {"class_dim", "num_classes"} <= set(config):
        raise ValueError("class_dim and num_classes are two names for one argument: give one of them")
    return {"num_classes" if key == "class_dim" else key: value for key, value in config.items()}


def config_keys(network: type[Network]) -> Sequence[str]:
    """Names of the arguments that a network's constructor takes."""
    return list(inspect.signature(network.__init__).parameters)[1:]


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, _PRESETS)}: choose one of {', '.join(_PRESETS)}")
    return _PRESETS[name]


def presets(network: type[Network] | None = None) -> list[Preset]:
    """All presets, family by family, or those of one network."""
    return [entry for entry in _PRESETS.values() if network in (None, entry.network)]


def network_class(arch: str) -> type[Network]:
    """The class behind the name of a preset or of a network.

    Raises:
        ValueError: there is no such name; the message lists what there is.
    """
    if arch in _PRESETS:
        return _PRESETS[arch].network
    if arch not in _NETWORKS:
        known = [*_PRESETS, *_NETWORKS]
        raise ValueError(f"unknown network {arch!r}{did_you_mean(arch, known)}: choose one of {', '.join(known)}")
    return _NETWORKS[arch]


def networks() -> list[type[Network]]:
    """The networks that presets are made of, one or more for each paper."""
    return list(_NETWORKS.values())


def build_network(arch: str, config: Mapping[str, Any]) -> Network:
    """Build a network from the name of its class, or of a preset, and a complete or partial config.

    Raises:
        ValueError: the name or an argument is unknown, or no network has such numbers.
    """
    network = network_class(arch)
    if arch in _PRESETS:
        return _PRESETS[arch].build(config)
    unknown = set(config) - set(config_keys(network))
    if unknown:
        first, known = sorted(unknown)[0], config_keys(network)
        raise ValueError(f"{arch} takes no argument {first!r}{did_you_mean(first, known)}: it takes {', '.join(known)}")
    try:
        return network(**config)
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, SystemError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(f"{arch} cannot be built with the arguments {dict(config)}: {reason[0]}") from error


def first_convolution(network: nn.Layer) -> str:
    """Name of the weight that reads the images: the first of four dimensions."""
    return next(name for name, tensor in network.state_dict().items() if len(tensor.shape) == 4)


def name_parameters(network: Network) -> Network:
    """Give parameters names for Paddle that tell of the network alone, where Paddle counts all layers of the process.

    Optimizers keep their state, in memory and in ``.pdopt`` files, by these names, so they must be the same in the
    process that continues a training, and differ between networks that one optimizer trains. A name is therefore the
    class, the form and the name in the state_dict: ``CondenseNetV2.fc.weight``, ``CondenseNetV2.trained.fc.weight``.
    While a network of these names is in use, the next one gets a number: ``CondenseNetV2_2.fc.weight``.

    Args:
        network: an outline is left as it is; what `materialise` makes of it gets the names.
    """
    parameters = dict(network.named_parameters())
    if not all(parameter._is_initialized() for parameter in parameters.values()):
        return network
    form = "" if network.config.get("condensed", True) else ".trained"
    prefix = _free_prefix(network, form)
    if prefix != f"{type(network).__name__}{form}.":
        gc.collect()  # a `paddle.Model` that is used no more keeps its network until then
        prefix = _free_prefix(network, form)
    for name, parameter in parameters.items():
        parameter.name = prefix + name
    network.parameter_prefix = prefix
    _named.add(network)
    _forget_counts(prefix)
    return network


def _free_prefix(network: Network, form: str) -> str:
    taken = {other.parameter_prefix for other in _named if other is not network}
    numbers = ("", *(f"_{number}" for number in range(2, len(taken) + 2)))
    return next(name for number in numbers if (name := f"{type(network).__name__}{number}{form}.") not in taken)


def _forget_counts(prefix: str) -> None:
    """Let Paddle count an optimizer's tensors from 0 again, where a network that is gone had the same names."""
    current = unique_name.switch()
    unique_name.switch(*current)
    counts = getattr(current[0], "ids", {})
    for key in [key for key in counts if key.startswith(prefix)]:
        del counts[key]
