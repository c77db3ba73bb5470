"""Which functions of Paddle are which of PyTorch, by which arguments they differ, and what the usual values are.

A layer calls one of these functions, or the network's own `forward` does. So does PyTorch's, and the arguments of the
two calls show what one of them does otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from convert.parity.structures import as_array


@dataclass(frozen=True)
class Setting:
    """One argument.

    Attributes:
        ours: its name in Paddle.
        theirs: its name in PyTorch; "" where PyTorch has none and always computes with `default`.
        default: PyTorch's default.
        usual: values that are tried where it is not known which call of PyTorch is the same.
        convert: PyTorch's value -> Paddle's.
        word: what a sentence calls it; Paddle's name unless given.
    """

    ours: str
    theirs: str
    default: Any = None
    usual: tuple[Any, ...] = ()
    convert: Callable[[Any], Any] = lambda value: value
    word: str = ""


@dataclass(frozen=True)
class Function:
    """A function of paddle.nn.functional.

    Attributes:
        family: functions of one family are taken for each other in a port, as activations are.
        theirs: PyTorch's function.
        arguments: PyTorch's arguments in order, as the call without names gives them.
        settings: what may differ.
    """

    family: str
    theirs: str
    arguments: tuple[str, ...]
    settings: tuple[Setting, ...] = ()


ACTIVATION = "activation"
_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-1, 1e-4)


def _row(family: str, theirs: str, arguments: str, *settings: Setting) -> Function:
    return Function(family, theirs, tuple(arguments.split()), settings)


def _epsilon(ours: str = "epsilon", theirs: str = "eps", default: float | None = 1e-5) -> Setting:
    return Setting(ours, theirs, default, _EPSILONS, word="epsilon")


def _pool(theirs: str, arguments: str, *settings: Setting) -> Function:
    return _row(
        "pool",
        theirs,
        arguments,
        Setting("kernel_size", "kernel_size", None, (2, 3), word="kernel size"),
        Setting("stride", "stride", None, (1, 2, 3)),
        Setting("padding", "padding", 0, (0, 1, "SAME")),
        Setting("ceil_mode", "ceil_mode", False, (True, False)),
        *settings,
    )


_AVERAGE = (
    Setting("exclusive", "count_include_pad", True, (True, False), lambda counted: not counted),
    Setting("divisor_override", "divisor_override"),
)
_AXIS = Setting("axis", "dim", -1, (-1, 1, 0, 2))
_INTERPOLATE = _row(
    "interpolate",
    "interpolate",
    "input size scale_factor mode align_corners",
    Setting("align_corners", "align_corners", False, (True, False), bool),
    Setting("mode", "mode", "nearest", ("bilinear", "nearest", "bicubic")),
    Setting("align_mode", "", 0, (0, 1)),
    Setting("size", "size"),
    Setting("scale_factor", "scale_factor", word="scale factor"),
)


def _padding(value: Any) -> Any:
    """ "same" and "valid" are in capitals in Paddle."""
    return value.upper() if isinstance(value, str) else value


def _convolution(axes: int) -> dict[str, Function]:
    settings = (
        Setting("stride", "stride", 1, (1, 2)),
        Setting(
            "padding",
            "padding",
            0,
            ("SAME", 0, 1, 2, 3),
            lambda value: value.upper() if isinstance(value, str) else value,
        ),
        Setting("dilation", "dilation", 1, (1, 2)),
        Setting("groups", "groups", 1),
    )
    transposed = (*settings, Setting("output_padding", "output_padding", 0, (0, 1), word="output padding"))
    return {
        f"conv{axes}d": _row(
            "convolution", f"conv{axes}d", "input weight bias stride padding dilation groups", *settings
        ),
        f"conv{axes}d_transpose": _row(
            "transposed convolution",
            f"conv_transpose{axes}d",
            "input weight bias stride padding output_padding groups dilation",
            *transposed,
        ),
    }


def _activation(theirs: str, arguments: str = "input", *settings: Setting) -> Function:
    return _row(ACTIVATION, theirs, arguments, *settings)


# By Paddle's name; what is compared of weights and statistics stands in `WEIGHTS`.
FUNCTIONS: dict[str, Function] = {
    "linear": _row("linear", "linear", "input weight bias"),
    "embedding": _row("embedding", "embedding", "input weight padding_idx", Setting("padding_idx", "", None, (None,))),
    "batch_norm": _row(
        "batch norm",
        "batch_norm",
        "input running_mean running_var weight bias training momentum eps",
        _epsilon(),
        Setting("use_global_stats", "", None, (None,)),
    ),
    "layer_norm": _row("layer norm", "layer_norm", "input normalized_shape weight bias eps", _epsilon()),
    "rms_norm": _row("RMS norm", "rms_norm", "input normalized_shape weight eps", _epsilon("eps", "eps", None)),
    "group_norm": _row(
        "group norm",
        "group_norm",
        "input num_groups weight bias eps",
        _epsilon(),
        Setting("num_groups", "num_groups", word="number of groups"),
    ),
    "instance_norm": _row(
        "instance norm",
        "instance_norm",
        "input running_mean running_var weight bias use_input_stats momentum eps",
        _epsilon("eps"),
    ),
    "local_response_norm": _row(
        "local response norm",
        "local_response_norm",
        "input size alpha beta k",
        Setting("size", "size", 5, (5,)),
        Setting("alpha", "alpha", 1e-4, (1e-4,)),
        Setting("beta", "beta", 0.75, (0.75,)),
        Setting("k", "k", 1.0, (1.0, 2.0)),
    ),
    "normalize": _row(
        "normalize",
        "normalize",
        "input p dim eps",
        Setting("axis", "dim", 1, (1, -1, 0)),
        Setting("p", "p", 2, (2, 1)),
        _epsilon(default=1e-12),
    ),
    "dropout": _row(
        "dropout", "dropout", "input p training inplace", Setting("mode", "", "upscale_in_train", ("upscale_in_train",))
    ),
    "interpolate": _INTERPOLATE,
    "upsample": _INTERPOLATE,
    "pad": _row(
        "pad",
        "pad",
        "input pad mode value",
        Setting("pad", "pad", None, (), lambda value: list(value)),
        Setting("mode", "mode", "constant", ("constant", "reflect", "replicate", "circular")),
        Setting("value", "value", 0.0, (), lambda value: value or 0.0),
    ),
    "softmax": _row("softmax", "softmax", "input dim", _AXIS),
    "log_softmax": _row("softmax", "log_softmax", "input dim", _AXIS),
    "glu": _row("glu", "glu", "input dim", _AXIS),
    "prelu": _row("prelu", "prelu", "input weight"),
    "pixel_shuffle": _row(
        "pixel shuffle", "pixel_shuffle", "input upscale_factor", Setting("upscale_factor", "upscale_factor")
    ),
    **{name: row for axes in (1, 2, 3) for name, row in _convolution(axes).items()},
    **{
        f"max_pool{axes}d": _pool(
            f"max_pool{axes}d", "input kernel_size stride padding dilation ceil_mode return_indices"
        )
        for axes in (1, 2, 3)
    },
    **{
        f"avg_pool{axes}d": _pool(
            f"avg_pool{axes}d",
            "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
            *_AVERAGE[: 1 if axes == 1 else 2],
        )
        for axes in (1, 2, 3)
    },
    **{
        f"adaptive_{kind}_pool{axes}d": _row(
            "adaptive pool",
            f"adaptive_{kind}_pool{axes}d",
            "input output_size",
            Setting("output_size", "output_size", None, (1,), word="output size"),
        )
        for axes in (1, 2, 3)
        for kind in ("avg", "max")
    },
    "relu": _activation("relu"),
    "relu6": _activation("relu6"),
    "silu": _activation("silu"),
    "swish": _activation("silu"),
    "hardswish": _activation("hardswish"),
    "gelu": _activation(
        "gelu",
        "input approximate",
        Setting("approximate", "approximate", False, (True, False), lambda form: form == "tanh"),
    ),
    "leaky_relu": _activation(
        "leaky_relu",
        "input negative_slope inplace",
        Setting("negative_slope", "negative_slope", 0.01, (0.01, 0.2, 0.1, 0.3, 0.05), word="slope"),
    ),
    "elu": _activation("elu", "input alpha inplace", Setting("alpha", "alpha", 1.0, (1.0,))),
    "celu": _activation("celu", "input alpha inplace", Setting("alpha", "alpha", 1.0, (1.0,))),
    "selu": _activation("selu"),
    "sigmoid": _activation("sigmoid"),
    "hardsigmoid": _activation(
        "hardsigmoid", "input inplace", Setting("slope", "", 1 / 6, (1 / 6, 0.2)), Setting("offset", "", 0.5, (0.5,))
    ),
    "hardtanh": _activation(
        "hardtanh",
        "input min_val max_val inplace",
        Setting("min", "min_val", -1.0, (-1.0, 0.0)),
        Setting("max", "max_val", 1.0, (1.0, 6.0)),
    ),
    "softplus": _activation(
        "softplus",
        "input beta threshold",
        Setting("beta", "beta", 1, (1,)),
        Setting("threshold", "threshold", 20, (20,)),
    ),
    "mish": _activation("mish"),
    "tanh": _activation("tanh"),
    "softsign": _activation("softsign"),
    "log_sigmoid": _activation("log_sigmoid"),
    "tanhshrink": _activation("tanhshrink"),
    "hardshrink": _activation("hardshrink", "input lambd", Setting("threshold", "lambd", 0.5, (0.5,))),
    "softshrink": _activation("softshrink", "input lambd", Setting("threshold", "lambd", 0.5, (0.5,))),
}
# What PyTorch calls a function, and what Paddle does; of two names in Paddle the first.
OURS = {row.theirs: name for name, row in reversed(FUNCTIONS.items())}
# Names of weights and statistics in Paddle's functions, and in PyTorch's.
WEIGHTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Call:
    """One call of a function, in either framework.

    Attributes:
        function: its name in Paddle.
        arguments: by their names in the framework where it was called, without the first, which is `given`.
        given: the first argument.
    """

    function: str
    arguments: Mapping[str, Any]
    given: np.ndarray

    @property
    def family(self) -> str:
        """What it may be taken for in a port."""
        return FUNCTIONS[self.function].family


def torch_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """The call of a PyTorch function, None for one that is not in the table."""
    ours = OURS.get(name.rstrip("_"))
    if ours is None:
        return None
    named = {**dict(zip(FUNCTIONS[ours].arguments, args)), **kwargs}
    given = named.pop("input", None)
    if ours == "hardtanh" and (named.get("min_val"), named.get("max_val")) == (0.0, 6.0):
        ours = "relu6"  # as PyTorch computes it
    return Call(ours, named, np.array(as_array(given))) if hasattr(given, "detach") else None


def value_in_pytorch(setting: Setting, call: Call) -> Any:
    """A setting of PyTorch's call as Paddle would be given it."""
    value = call.arguments.get(setting.theirs, setting.default)
    if setting.ours == "stride" and value in (None, [], ()):  # of pooling
        value = call.arguments.get("kernel_size")
    return setting.convert(value)


def weight_in_pytorch(name: str, call: Call) -> np.ndarray | None:
    """A weight of PyTorch's call in Paddle's layout, None where it has none."""
    value = call.arguments.get(name)
    if value is None:
        return None
    array = as_array(value)
    return array.T if call.function == "linear" and name == "weight" else array


def plain(value: Any) -> Any:
    """A setting as it can be compared: numbers of equal size for each axis are one number."""
    if isinstance(value, (tuple, list)):
        values = [plain(part) for part in value]
        return values[0] if values and all(part == values[0] for part in values) else values
    if hasattr(value, "detach") or isinstance(value, (np.ndarray, np.generic)):
        return plain(as_array(value).tolist())
    return value


def bound(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every argument of a call by its name, defaults included; None where the function does not say its names."""
    try:
        arguments = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    arguments.apply_defaults()
    return dict(arguments.arguments)
