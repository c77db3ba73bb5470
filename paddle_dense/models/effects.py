"""What single layers compute in evaluation: in one vocabulary, PyTorch's in a file and Paddle's in a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Union

from paddle import nn

from paddle_dense.layers.activation import HS
from paddle_dense.layers.condconv import CondConv2D, RoutedCondConv2D


@dataclass(frozen=True)
class Effect:
    """What a layer computes in evaluation: a word for it, and the numbers that it depends on."""

    kind: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_anchor(self) -> bool:
        """Whether it has tensors, so that both networks have it under one name."""
        return self.kind in (_CONVOLUTION, _NORM, LINEAR)


_CONVOLUTION, _NORM, LINEAR = "convolution", "batch normalisation", "linear layer"
_MAX_POOL, MEAN_POOL, ADAPTIVE_POOL = "max pool", "average pool", "adaptive average pool"
NOTHING = Effect("nothing")
# A layer made of others, or of a class that nobody knows, has no effect of its own that could be named: None.
MaybeEffect = Union[Effect, None]


def _pair(value: Any) -> Any:
    """A size in pixels as (height, width), whichever way it is given."""
    if isinstance(value, (list, tuple)):
        return tuple(value) * 2 if len(value) == 1 else tuple(value)
    return (value, value) if isinstance(value, int) else value


def _convolution(numbers: Mapping[str, Any]) -> Effect:
    """Numbers that make no difference are made equal: the dilation of one element, the mode of no padding."""
    told = {key: _pair(value) for key, value in numbers.items()}
    kernel, stride, dilation = (told.get(key, ()) for key in ("kernel_size", "stride", "dilation"))
    whole = all(isinstance(size, tuple) and all(type(n) is int for n in size) for size in (kernel, dilation))
    if whole:
        told["dilation"] = dilation = tuple(1 if side == 1 else step for side, step in zip(kernel, dilation))
    padding = str(told.get("padding")).lower()
    if padding == "same" and stride == (1, 1) and whole and all(n % 2 for n in kernel):
        told["padding"] = tuple(step * (n // 2) for n, step in zip(kernel, dilation))
    elif padding in ("same", "valid"):
        told["padding"] = "SAME" if padding == "same" else (0, 0)
    if told.get("padding") == (0, 0):
        told["padding_mode"] = "zeros"
    if "groups" in numbers:
        told["groups"] = numbers["groups"]
    return Effect(_CONVOLUTION, told)


def _pool(kind: str, numbers: Mapping[str, Any]) -> Effect:
    told = {key: _pair(value) for key, value in numbers.items()}
    if told.get("stride") is None and "kernel_size" in told:
        told["stride"] = told["kernel_size"]
    for key in ("ceil_mode", "count_include_pad"):
        if key in numbers:
            told[key] = bool(numbers[key])
    if told.get("padding") == (0, 0):
        told.pop("count_include_pad", None)
    return Effect(kind, told)


# As the file has it


def _taking(*keys: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda told: {key: told[key] for key in keys if key in told}


_CONV_KEYS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_CONV_NUMBERS = _taking(*_CONV_KEYS)
_NORM_NUMBERS = _taking("eps", "affine", "track_running_stats")
_MAX_POOL_NUMBERS = _taking("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_MEAN_POOL_NUMBERS = _taking("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _same_convolution(told: Mapping[str, Any]) -> Effect:
    return _convolution({**_CONV_NUMBERS(told), "padding": "same"})


_Table = Mapping[str, Callable[[Mapping[str, Any]], Effect]]
_ACTIVATIONS: _Table = {
    **{kind: lambda _, kind=kind: Effect(kind) for kind in ("ReLU", "SiLU", "Hardswish", "Sigmoid")},  # type: ignore[misc]
    "LeakyReLU": lambda told: Effect("LeakyReLU", _taking("negative_slope")(told)),
}
_OF_TORCH: _Table = {
    **_ACTIVATIONS,
    "Conv2d": lambda told: _convolution(_CONV_NUMBERS(told)),
    "Linear": lambda _: Effect(LINEAR),
    **dict.fromkeys(("BatchNorm2d", "SyncBatchNorm"), lambda told: Effect(_NORM, _NORM_NUMBERS(told))),
    "MaxPool2d": lambda told: _pool(_MAX_POOL, _MAX_POOL_NUMBERS(told)),
    "AvgPool2d": lambda told: _pool(MEAN_POOL, _MEAN_POOL_NUMBERS(told)),
    "AdaptiveAvgPool2d": lambda told: _pool(ADAPTIVE_POOL, _taking("output_size")(told)),
    **dict.fromkeys(
        ("Identity", "Flatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"), lambda _: NOTHING
    ),
}
_OF_TIMM: _Table = {
    **dict.fromkeys(("BatchNormAct2d", "SyncBatchNormAct"), _OF_TORCH["BatchNorm2d"]),
    "Conv2dSame": _same_convolution,
    "CondConv2d": lambda told: (_same_convolution if told.get("dynamic_padding") else _OF_TORCH["Conv2d"])(told),
    **dict.fromkeys(("Swish", "SwishMe", "SwishJit", "SwishJitAutoFn"), _ACTIVATIONS["SiLU"]),
    **dict.fromkeys(("HardSwish", "HardSwishMe", "HardSwishJit"), _ACTIVATIONS["Hardswish"]),
    "Sigmoid": _ACTIVATIONS["Sigmoid"],
    "FastAdaptiveAvgPool2d": lambda _: _pool(ADAPTIVE_POOL, {"output_size": 1}),
    "DropPath": lambda _: NOTHING,
}
# Classes that compute nothing besides their layers, or with them what the network of the same names computes.
_CONTAINERS = {"Sequential", "ModuleList", "ModuleDict", "DataParallel", "DistributedDataParallel"}
_WRAPPERS = {"torch._dynamo.eval_frame.OptimizedModule", "torch.optim.swa_utils.AveragedModel"}
_TIMM_PARTS = {"ConvNormAct", "ConvBnAct", "ClassifierHead", "SelectAdaptivePool2d", "SqueezeExcite"}
_LIBRARIES = (
    "torchvision.models.densenet.",
    "timm.models.densenet.",
    "timm.models.cspnet.",
    "timm.models.efficientnet.",
    "timm.models.efficientnet_blocks.",
    "timm.models._efficientnet_blocks.",
    "pytorchcv.models.condensenet.",
    "pytorchcv.models.common.",
    "convert.torch_models.",
)
# Those of the libraries' classes whose `forward` is nn.Sequential's.
SEQUENTIAL = {
    "torch.nn.modules.container.Sequential",
    "torchvision.models.densenet._Transition",
    "timm.models.densenet.DenseTransition",
    "convert.torch_models.condensenetv2.Conv",
    "convert.torch_models.cspnet.ConvNormAct",
}


def effect_in_file(told: Mapping[str, Any]) -> MaybeEffect:
    """The effect that a layer of the file states."""
    path, _, name = told["class"].rpartition(".")
    if path.startswith("torch.nn.") and name not in _CONTAINERS:
        # Any other layer of PyTorch computes something, under its own name.
        return _OF_TORCH.get(name, lambda _: Effect(name))(told)
    if path.startswith(("timm.layers.", "timm.models.layers.")) and name in _OF_TIMM:
        return _OF_TIMM[name](told)
    if told["class"] == "convert.torch_models.condconv.RoutedCondConv2D":
        shape = told.get("shape")
        kernel = shape[2:] if isinstance(shape, list) else shape
        return _convolution({**_CONV_NUMBERS(told), "kernel_size": kernel, "dilation": 1})
    # The authors' own hard-swish, in whatever module they have it.
    return Effect("Hardswish") if name == "HS" else None


def is_known(told: Mapping[str, Any]) -> bool:
    """Whether what a layer computes is known: from its class, or from the network that has such a layer."""
    kind = told["class"]
    path, _, name = kind.rpartition(".")
    parts = path.startswith(("timm.layers.", "timm.models.layers.")) and name in _TIMM_PARTS
    container = path.startswith("torch.nn.") and name in _CONTAINERS
    return container or parts or kind in _WRAPPERS or kind.startswith(_LIBRARIES) or effect_in_file(told) is not None


# As the network has it


def effect_in_network(layer: nn.Layer) -> MaybeEffect:
    """The effect of one of the layers that networks here are made of."""
    if isinstance(layer, nn.Conv2D):
        return _convolution({key: getattr(layer, f"_{key}") for key in _CONV_KEYS})
    if isinstance(layer, (CondConv2D, RoutedCondConv2D)):
        told = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
        return _convolution({"kernel_size": layer.kernel_shape[2:], "padding_mode": "zeros", **told})
    if isinstance(layer, nn.BatchNorm2D):
        return Effect(_NORM, {"eps": layer._epsilon, "affine": True, "track_running_stats": True})
    if isinstance(layer, (nn.MaxPool2D, nn.AvgPool2D)):
        told = {"kernel_size": layer.ksize, **{key: getattr(layer, key) for key in ("stride", "padding", "ceil_mode")}}
        if isinstance(layer, nn.MaxPool2D):
            return _pool(_MAX_POOL, {**told, "dilation": 1})
        return _pool(MEAN_POOL, {**told, "count_include_pad": not layer.exclusive, "divisor_override": layer.divisor})
    if isinstance(layer, nn.AdaptiveAvgPool2D):
        return _pool(ADAPTIVE_POOL, {"output_size": layer._output_size})
    if isinstance(layer, nn.LeakyReLU):
        return Effect("LeakyReLU", {"negative_slope": layer._negative_slope})
    words = {nn.Linear: LINEAR, nn.ReLU: "ReLU", nn.Silu: "SiLU", HS: "Hardswish", nn.Sigmoid: "Sigmoid"}
    if isinstance(layer, (nn.Dropout, nn.Flatten, nn.Identity)):
        return NOTHING
    return next((Effect(word) for kind, word in words.items() if isinstance(layer, kind)), None)


def called_by(layer: nn.Layer) -> dict[str, list[Effect]]:
    """The activations and pools that a layer's `forward` calls, by the layer that they follow."""
    mean = Effect(ADAPTIVE_POOL, {"output_size": (1, 1)})
    called = getattr(layer, "called_after", {})
    return {name: [mean if kind == "mean" else Effect(kind) for kind in kinds] for name, kinds in called.items()}
