"""Names and layouts: what a PyTorch state_dict is called and how it lies in Paddle.

`LAYOUTS` is the whole mapping, by the class of the Paddle layer that owns a tensor; `sources` applies it to a network.
Where no network is known yet, as for a file of this project's networks, the names decide: `to_paddle` and `to_torch`
take what ends in ``weight`` and has two dimensions for that of a linear layer, except in a layer called ``conv...``,
where it holds rows of experts, [E, numbers of a kernel].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Callable, NamedTuple

import numpy as np

from paddle_dense.errors import WeightsError
from paddle_dense.files.names import COUNTER, STATISTICS, renamed
from paddle_dense.files.reparametrised import magnitude_and_direction, normed, spectral_parts

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Formula:
    """How a tensor of Paddle is made of tensors of PyTorch.

    Attributes:
        text: the formula in words.
        make: PyTorch's arrays -> Paddle's. Raises WeightsError, its sentence going on after the first array's name.
        linear: it makes Paddle's gradient of PyTorch's gradients as well, if both layers have the same axes.
    """

    text: str
    make: Callable[[Arrays], np.ndarray]
    linear: bool = True


class Row(NamedTuple):
    """One tensor of a Paddle layer.

    Attributes:
        name: from the layer on; ``{n}`` is any number.
        theirs: names of PyTorch's tensors, from the layer of the same name on.
        formula: makes the one of the others.
    """

    name: str
    theirs: tuple[str, ...]
    formula: Formula


AS_IT_IS = Formula("as it is", lambda arrays: arrays[0])
TRANSPOSED = Formula("transposed", lambda arrays: arrays[0].T)
FLAT = Formula("flat: of a normalised shape [3, 4], [12]", lambda arrays: arrays[0].reshape(-1))
ONE_ROW = Formula("[out] as [1, out]", lambda arrays: arrays[0][None] if arrays[0].ndim == 1 else arrays[0])


def flat(shape: Sequence[int]) -> Formula:
    """That of a layer normalisation over this shape; [4, 3] would be as long as [3, 4]."""
    return Formula(FLAT.text, lambda arrays: FLAT.make(arrays) if arrays[0].shape == tuple(shape) else arrays[0])


def with_padding(index: int) -> Formula:
    """That of an embedding with a row for padding, for which Paddle gives 0 whatever the row holds."""

    def make(arrays: Arrays) -> np.ndarray:
        if arrays[0][index : index + 1 or None].any():
            raise WeightsError(
                f"with numbers other than 0 in row {index}, for which Paddle's Embedding gives 0: build the network "
                f"with an Embedding without padding_idx"
            )
        return arrays[0]

    return Formula(f"as it is, once row {index} holds 0", make)


def _third(number: int, formula: Formula) -> Formula:
    def make(arrays: Arrays) -> np.ndarray:
        length, rest = divmod(len(arrays[0]), 3) if arrays[0].ndim else (0, 1)
        if rest:
            raise WeightsError(
                f"of the shape {list(arrays[0].shape)}, which is not that of a query, a key and a value: save the "
                f"network's state_dict again"
            )
        return formula.make([arrays[0][number * length : (number + 1) * length]])

    return Formula(f"the {('first', 'second', 'last')[number]} third of the rows, {formula.text}", make)


_WEIGHT = (Row("weight", ("weight",), AS_IT_IS),)
_STATISTICS = tuple(Row(ours, (theirs,), AS_IT_IS) for theirs, ours in STATISTICS.items())
_SCALE = (Row("scale", ("weight",), AS_IT_IS),)
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# The gates lie in the same order in both: input, forget, cell, output of an LSTM; reset, update, new of a GRU.
_RECURRENT = tuple(
    Row(f"{{n}}.{cell}.{name}", (f"{name}_l{{n}}{direction}",), AS_IT_IS)
    for cell, direction in (("cell", ""), ("cell_fw", ""), ("cell_bw", "_reverse"))
    for name in _CELL
)
_PROJECTED = tuple(
    Row(f"{{n}}.{cell}.weight_ho", (f"weight_hr_l{{n}}{direction}",), TRANSPOSED)
    for cell, direction in (("cell", ""), ("cell_fw", ""), ("cell_bw", "_reverse"))
)
_ATTENTION = tuple(
    Row(f"{kind}_proj.{leaf}", (theirs,), formula)
    for number, kind in enumerate("qkv")
    for leaf, theirs, formula in (
        ("weight", "in_proj_weight", _third(number, TRANSPOSED)),
        ("weight", f"{kind}_proj_weight", TRANSPOSED),  # where keys or values have another size
        ("bias", "in_proj_bias", _third(number, AS_IT_IS)),
        ("bias", f"{kind}_proj.bias", AS_IT_IS),  # of an attention that the user has made of linear layers
    )
)

# Class of a Paddle layer -> what is not called or does not lie as in PyTorch's layer of the same kind. Of several rows
# for one tensor the first applies whose names the file has. A tensor that stands in no row is PyTorch's of the same
# name, as it is; one that a layer has under two names is what the row of either says.
LAYOUTS: dict[str, tuple[Row, ...]] = {
    "Linear": (Row("weight", ("weight",), TRANSPOSED),),
    "Bilinear": (*_WEIGHT, Row("bias", ("bias",), ONE_ROW)),
    "Embedding": _WEIGHT,
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "DeformConv2D"), _WEIGHT),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _WEIGHT),
    **dict.fromkeys(("BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "SyncBatchNorm"), _STATISTICS),
    **dict.fromkeys(("InstanceNorm1D", "InstanceNorm2D", "InstanceNorm3D"), _SCALE),
    "GroupNorm": (),
    "LayerNorm": (Row("weight", ("weight",), FLAT), Row("bias", ("bias",), FLAT)),
    "PReLU": (Row("_weight", ("weight",), AS_IT_IS),),
    **dict.fromkeys(("SimpleRNNCell", "GRUCell", "LSTMCell"), ()),
    **dict.fromkeys(("SimpleRNN", "GRU"), _RECURRENT),
    "LSTM": (*_RECURRENT, *_PROJECTED),
    "MultiHeadAttention": _ATTENTION,
    "AdaptiveLogSoftmaxWithLoss": (
        Row("head_weight", ("head.weight",), TRANSPOSED),
        Row("head_bias", ("head.bias",), AS_IT_IS),
    ),
    # Without a counterpart in PyTorch, so what stands in its place there has the same names.
    **dict.fromkeys(("SpectralNorm", "HSigmoidLoss"), ()),
    # Made of the layers above, and what the user's own layers are made of.
    **dict.fromkeys(("TransformerEncoderLayer", "TransformerDecoderLayer", "RNN", "BiRNN"), ()),
    **dict.fromkeys(("Layer", "LayerList", "LayerDict", "Sequential", "ParameterList", "ParameterDict"), ()),
}

# Class of a Paddle layer -> what PyTorch's layer calls the layers in it, where that is another name.
SUBLAYERS = {"TransformerDecoderLayer": {"cross_attn": "multihead_attn"}}

# Class of a Paddle layer -> names that PyTorch's layer of the same kind may have besides, and computes with, where
# Paddle's has no place for them; and what to do.
WITHOUT_PLACE: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(
        ("InstanceNorm1D", "InstanceNorm2D", "InstanceNorm3D"),
        (
            tuple(STATISTICS),
            "Paddle's instance normalisation keeps no running statistics: build BatchNorm of as many dimensions in its "
            "place, which computes the same in evaluation, or leave them out with --drop (in Python: drop=[...]) if "
            "PyTorch's layer has track_running_stats=False",
        ),
    ),
    "MultiHeadAttention": (
        ("bias_k", "bias_v"),
        "Paddle's MultiHeadAttention adds no key and value of its own: build the network with an attention layer that "
        "appends bias_k and bias_v to the keys and values",
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        tuple(f"tail.{n}.{layer}.weight" for n in range(100) for layer in (0, 1)),
        "Paddle's AdaptiveLogSoftmaxWithLoss leaves the weights of its clusters out of its state_dict: build the "
        "network with linear layers in its place",
    ),
}

_SAME_DIRECTION = 0.99  # the cosine, from which on two vectors of spectral_norm belong together

# Where Paddle's own layers are whose class is as PyTorch's of the same name, or only made of others.
_AS_PYTORCHS = ("paddle.compat.", "paddle.vision.", "paddle.audio.", "paddle.text.")


def layer_kind(classes: Iterable[type]) -> str | None:
    """Which line of `LAYOUTS` a layer has: that of the first of Paddle's classes that it is derived from.

    Args:
        classes: the layer's class and those that it is derived from, in Python's order of resolution.

    Returns:
        The line's name; None for a layer of Paddle's that the table does not know.
    """
    for known in classes:
        if known.__module__.startswith(("paddle.nn.layer.", "paddle.vision.ops")) and known.__name__ in LAYOUTS:
            return known.__name__
        if known.__module__.startswith("paddle.") and not known.__module__.startswith(_AS_PYTORCHS):
            return None
    return None


def rows_of(kind: str | None, name: str) -> Iterator[Row]:
    """The rows for one tensor of a layer, with numbers in the places of ``{n}``; the likeliest first.

    Args:
        kind: what `layer_kind` gave.
        name: the tensor's name, from the layer on.
    """
    for row in LAYOUTS.get(kind or "", ()):
        found = re.fullmatch(row.name.replace(".", r"\.").replace("{n}", r"(\d+)"), name)
        if found:
            number = found[1] if found.groups() else ""
            yield Row(name, tuple(theirs.replace("{n}", number) for theirs in row.theirs), row.formula)


# A weight that a layer computes of parts before each use


def whole_of_parts(row: Row, usual: int) -> Iterator[Row]:
    """The rows of a plain weight for a file in which PyTorch's weight_norm or spectral_norm computes it.

    Args:
        row: the weight's own, of one tensor.
        usual: the axis along which PyTorch's spectral_norm goes unless told another.
    """
    for size, direction in magnitude_and_direction(row.theirs[0]):
        yield Row(
            row.name,
            (size, direction),
            Formula(
                f"magnitude * direction / its norm, {row.formula.text}",
                lambda arrays: row.formula.make([normed(*arrays)]),
                linear=False,
            ),
        )
    for parts in spectral_parts(row.theirs[0]):
        yield Row(
            row.name,
            parts,
            Formula(
                f"weight / (u W v), {row.formula.text}",
                lambda arrays: row.formula.make([_divided(usual, *arrays)]),
                linear=False,
            ),
        )


def parts_of_weight_norm(row: Row, axis: int | None, shape: Sequence[int]) -> Iterator[Row]:
    """The rows of the magnitude and the direction of Paddle's weight_norm.

    PyTorch's magnitudes may belong to another axis, as those of a linear layer do unless both say which: then the
    weight is the same, and learns at another pace.

    Args:
        row: the weight's own, of one tensor.
        axis: of Paddle's weight, for each of whose indices there is one magnitude; None for one in all.
        shape: of the weight.
    """
    whole = f"{row.formula.text}, the whole weight"
    norm = f"the norm of {whole} for each index of axis {axis}" if axis is not None else f"the norm of {whole}"
    same = axis is None or axis == _axis_in_paddle(row.formula, len(shape), 0)
    for theirs in (*magnitude_and_direction(row.theirs[0]), row.theirs):
        texts = (
            f"[out, 1, ...] as [out]; if of another axis, {norm}",
            f"{row.formula.text}; if of another axis, {whole}",
        )
        for part, leaf in enumerate("gv"):
            text = texts[part] if len(theirs) == 2 else (norm, row.formula.text)[part]
            make = partial(_paddles_norm, row.formula, axis, part)
            yield Row(f"{row.name}_{leaf}", theirs, Formula(text, make, linear=same and len(theirs) == 2))


def parts_of_spectral_norm(row: Row, axis: int) -> Iterator[Row]:
    """The rows of the weight and the two vectors of Paddle's spectral_norm.

    In training, torch.nn.utils.parametrizations improves the left vector first, and Paddle and torch.nn.utils the right
    one, so the weights differ as long as the vectors do.

    Args:
        row: the weight's own, of one tensor.
        axis: of Paddle's weight, that of its left vector.
    """
    for original, left, right in spectral_parts(row.theirs[0]):
        yield Row(f"{row.name}_orig", (original,), row.formula)
        for part, leaf in enumerate("uv"):
            names = (left, right, original) if part == 0 else (right, left, original)
            text = "as it is; of a matrix along whose other axis Paddle's lies, the other vector"
            make = partial(_paddles_vector, row.formula, axis, part)
            yield Row(f"{row.name}_{leaf}", names, Formula(text, make, linear=False))


def _axis_in_paddle(formula: Formula, dimensions: int, axis: int) -> int:
    """Where an axis of PyTorch's tensor lies in Paddle's."""
    probe = np.empty([2 if n == axis else 1 for n in range(dimensions)])
    return formula.make([probe]).shape.index(2)


def _paddles_norm(formula: Formula, axis: int | None, part: int, arrays: Arrays) -> np.ndarray:
    """The magnitude (part 0) or direction (part 1) of Paddle's weight_norm, of PyTorch's two or of the whole weight."""
    if len(arrays) == 2:
        size, direction = arrays
        whole = formula.make([normed(size, direction)])
        spread = formula.make([size.reshape(size.shape or (1,) * direction.ndim)])
        if spread.shape == tuple(n if i == axis else 1 for i, n in enumerate(whole.shape)):
            return (spread.reshape(-1 if axis is not None else ()), formula.make([direction]))[part]
    else:
        whole = formula.make(arrays)
    if part == 1:
        return whole
    others = tuple(i for i in range(whole.ndim) if i != axis)
    return np.sqrt((whole.astype(np.float64) ** 2).sum(others)).astype(whole.dtype)


def _paddles_vector(formula: Formula, axis: int, part: int, arrays: Arrays) -> np.ndarray:
    """The left (part 0) or right (part 1) vector of Paddle's spectral_norm, of PyTorch's: it, the other, the weight."""
    mine, other, weight = arrays
    left, right = (mine, other) if part == 0 else (other, mine)
    axes = {_axis_in_paddle(formula, weight.ndim, n): n for n in range(weight.ndim)}
    theirs = _spectral_axis(weight, left, right, axes.get(axis, -1))
    if theirs == axes.get(axis):
        return mine
    if weight.ndim == 2:
        return other
    raise WeightsError(
        f"of a spectral_norm along axis {theirs}, and Paddle's goes along axis {axis}: build the network with "
        f"spectral_norm(layer, dim={theirs})"
    )


def _spectral_axis(weight: np.ndarray, left: np.ndarray, right: np.ndarray, usual: int) -> int:
    """Along which axis of its weight PyTorch's spectral_norm goes: the usual one, unless u is W v only along another.

    Raises:
        WeightsError: the two vectors do not belong to the weight.
    """
    cosines = {}
    for axis, length in enumerate(weight.shape):
        if length and left.shape == (length,) and right.shape == (weight.size // length,):
            product = _matrix(weight, axis) @ right.astype(np.float64)
            cosines[axis] = float(abs(product @ left) / (np.linalg.norm(product) * np.linalg.norm(left) or 1))
    if not cosines:
        raise WeightsError(
            f"of the shape {list(left.shape)} next to {list(right.shape)}, which are not the vectors of a weight "
            f"{list(weight.shape)}: save the network's state_dict again"
        )
    likeliest = max(cosines, key=lambda axis: cosines[axis])
    # Before the first step of training both vectors are random, and say nothing.
    return likeliest if cosines[likeliest] > _SAME_DIRECTION or usual not in cosines else usual


def _matrix(weight: np.ndarray, axis: int) -> np.ndarray:
    """[the axis, all others]"""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)


def _divided(usual: int, weight: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The weight that PyTorch's spectral_norm computes in evaluation."""
    matrix = _matrix(weight, _spectral_axis(weight, left, right, usual))
    size = left.astype(np.float64) @ matrix @ right.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight / size).astype(weight.dtype)


# Names alone, for the networks of this project


def to_paddle(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A PyTorch state_dict under Paddle's names and in Paddle's layout; arrays are views where they can be.

    Raises:
        WeightsError: two names would become one.
    """
    kept = {name: value for name, value in state.items() if name.rpartition(".")[2] != COUNTER}
    return _transposed(renamed(kept, lambda name: _with_leaf(name, STATISTICS)))


def to_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A Paddle state_dict under PyTorch's names and in PyTorch's layout; arrays are views where they can be.

    PyTorch's BN also counts its batches. Paddle keeps no such number, and only a BN without a momentum reads it, so it
    is 0.

    Raises:
        WeightsError: two names would become one.
    """
    names = {ours: theirs for theirs, ours in STATISTICS.items()}
    mapped: dict[str, np.ndarray] = {}
    for name, value in _transposed(renamed(state, lambda name: _with_leaf(name, names))).items():
        mapped[name] = value
        owner, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            mapped.setdefault(f"{owner}.{COUNTER}", np.zeros((), np.int64))
    return mapped


def _with_leaf(name: str, leaves: Mapping[str, str]) -> str:
    """The name with its last part as `leaves` gives it."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.{leaves[leaf]}" if leaf in leaves else name


def _transposed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with the formula of linear layers, which is its own inverse, applied to their weights."""
    [(_, _, formula)] = LAYOUTS["Linear"]
    return {name: formula.make([value]) if is_linear(name, value) else value for name, value in state.items()}


def is_linear(name: str, value: np.ndarray) -> bool:
    """Whether this is the weight of a linear layer, the one kind of tensor that lies transposed in Paddle."""
    owner, _, leaf = name.rpartition(".")
    return value.ndim == 2 and leaf == "weight" and not owner.rpartition(".")[2].startswith("conv")
