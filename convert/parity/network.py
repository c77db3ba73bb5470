"""Two networks that are not ours, in PyTorch and in Paddle: outputs, every layer, training, and why they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from convert.parity.causes import Cause, find_cause
from convert.parity.forward import (
    LayerPrecision,
    Parity,
    evaluation,
    in_float64,
    layers_in_both_precisions,
    reason_of,
    settled,
)
from convert.parity.recording import OwnName, without_dropout
from convert.parity.structures import Arrays, for_torch, run
from convert.parity.training import Difference, Loss, TrainingParity, compare_training, square_loss, without_randomness
from paddle_dense.errors import WeightsError, is_of_memory
from paddle_dense.evaluation import copied
from paddle_dense.files import layout

if TYPE_CHECKING:
    import torch
    from paddle import nn

_ROUNDING = 1e-3  # of the difference allowed in float32: more than rounding leaves in float64


@dataclass(frozen=True)
class NetworkParity:
    """What `compare_networks` found.

    Attributes:
        parity: of the outputs.
        layers: every layer that pairs.
        training: loss, gradients and steps; None if none were asked for.
        cause: the first place that differs and why; None where everything agrees.
        warnings: what the user should know, one sentence each.
        atol: the largest difference allowed, relative to each scale.
    """

    parity: Parity
    layers: tuple[LayerPrecision, ...]
    training: TrainingParity | None
    cause: Cause | None
    warnings: tuple[str, ...]
    atol: float

    @property
    def agrees(self) -> bool:
        """Whether the outputs are equal and both train alike."""
        return self.cause is None and self.parity.agrees(self.atol)


def compare_networks(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    inputs: Any,
    *,
    own_name: OwnName = str,
    to_paddle: Callable[[Arrays], Arrays] = layout.to_paddle,
    nonlinear: Mapping[str, str] = MappingProxyType({}),
    loss: Loss | tuple[Loss, Loss] | None = None,
    steps: int = 0,
    learning_rate: float = 0.01,
    atol: float = 1e-5,
) -> NetworkParity:
    """Run a PyTorch and a Paddle network, with the weights that they have, on the same inputs; both stay as they are.

    Args:
        torch_model: the PyTorch network.
        paddle_model: the Paddle network.
        inputs: an array, a tuple or list of several, or a dict for keyword arguments, which may hold others.
        own_name: what the Paddle network calls a layer of the PyTorch network; None for one that it does not have.
        to_paddle: PyTorch's state_dict, or gradients by the same names, by Paddle's names and in its layout.
        nonlinear: in words, how those of Paddle's tensors are made whose gradients are not made of PyTorch's alike.
        loss: of a network's outputs, as it gives them, and the inputs, as tensors: a scalar. One for both frameworks,
            or PyTorch's and Paddle's. The mean of the squares of all outputs less fixed random numbers unless given.
        steps: SGD steps, each with loss and gradients, on the same inputs; 0 for none.
        learning_rate: of these steps.
        atol: largest difference allowed, relative to the scale of each output, gradient and update.

    Raises:
        WeightsError: the outputs, or the tensors, are not the same ones in both networks.
        ValueError: the outputs are no tensors, or the loss is no scalar.
    """
    try:
        parity, warnings = settled(torch_model, paddle_model, [inputs], atol, in_both=True)
    except Exception as error:  # a network of the user's own may raise anything
        if is_of_memory(error):
            raise
        raise _failure(error, torch_model, paddle_model, inputs, own_name, atol) from error
    agree = parity.agrees(atol)
    layers = layers_in_both_precisions(torch_model, paddle_model, inputs, own_name=own_name, by_order=True)
    if agree:  # what only its order pairs and differs was no pair
        names = {own_name(name) for name, _ in torch_model.named_modules()}
        layers = [layer for layer in layers if layer.name.partition(",")[0] in names or layer.float64 <= atol]
    cause = None
    if not agree or (parity.float64 or 0.0) > atol * _ROUNDING:
        cause = _smallest_cause(torch_model, paddle_model, inputs, own_name, parity, atol)
    if agree and cause and not cause.explained:
        warnings.append(
            f"the networks are {parity.float64:.1e} of the {parity.what}' scale apart in float64, which is more than "
            f"rounding leaves if all is computed in it: it {cause}"
        )
        cause = None
    agree = agree and cause is None
    training = None
    if steps and not list(paddle_model.parameters()):
        warnings.append("training was not compared: the Paddle network has no parameters")
    elif steps:

        def train(model: nn.Layer) -> TrainingParity:
            return compare_training(
                torch_model,
                model,
                [(inputs, inputs)] * steps,
                learning_rate=learning_rate,
                tolerance=atol,
                loss=loss or square_loss(),
                to_paddle=to_paddle,
                without_gradient=nonlinear,
                own_name=own_name,
            )

        training = train(paddle_model)
        warnings += training.warnings
        first = training.first_difference
        if agree and first and first.what == "update" and first.name in nonlinear:
            cause = _of_form(first.name, nonlinear[first.name])
        elif agree and first:
            cause = _of_training(torch_model, paddle_model, inputs, own_name, atol, first, train)
    return NetworkParity(parity, tuple(layers), training, cause, tuple(warnings), atol)


def _failure(
    error: Exception, torch_model: torch.nn.Module, paddle_model: nn.Layer, inputs: Any, own_name: OwnName, atol: float
) -> ValueError:
    """What to say of networks whose outputs cannot be compared, the place where they differ with it."""
    try:
        with evaluation(torch_model, paddle_model):
            run(torch_model, for_torch(inputs, torch_model))
    except Exception as fault:
        return ValueError(
            f"the PyTorch network cannot be run on the inputs ({reason_of(fault)}): give what its forward takes with "
            f"--inputs MODULE:FUNCTION (in Python: inputs=)"
        )
    with evaluation(torch_model, paddle_model):
        # As they are: in float64 it might fail earlier, for want of a kernel.
        cause = find_cause(torch_model, paddle_model, inputs, own_name, atol, partial=True)
    said = str(error) if isinstance(error, WeightsError) else f"the Paddle network fails ({reason_of(error)})"
    return WeightsError(f"{said}; it {cause}" if cause else said)


def _smallest_cause(
    torch_model: torch.nn.Module, paddle_model: nn.Layer, inputs: Any, own_name: OwnName, parity: Parity, atol: float
) -> Cause | None:
    """Why the outputs differ, also where they do so by less than `atol`."""
    unexplained = None
    # A small difference may begin with a smaller one; and some of Paddle's functions are no better in float64.
    for allowed in [atol * _ROUNDING, atol / 10, atol] if parity.max_rel_diff <= atol else [atol]:
        cause = _in_evaluation(torch_model, paddle_model, inputs, own_name, allowed)
        if cause and cause.explained:
            return cause
        unexplained = unexplained or cause
    return unexplained


def _in_evaluation(
    torch_model: torch.nn.Module, paddle_model: nn.Layer, inputs: Any, own_name: OwnName, atol: float
) -> Cause | None:
    """Why the outputs differ, found in float64 if both can be run in it."""

    def search(theirs: torch.nn.Module, ours: nn.Layer) -> Cause | None:
        with evaluation(theirs, ours):
            return find_cause(theirs, ours, inputs, own_name, atol)

    found, fault = in_float64(torch_model, paddle_model, search)
    return search(torch_model, paddle_model) if fault else found


def _of_form(name: str, formula: str) -> Cause:
    """Why a tensor learns otherwise than those of PyTorch that it is made of."""
    layer, _, leaf = name.rpartition(".")
    return Cause(
        layer or "the network",
        f"in training, its {leaf} and what it is made of in PyTorch ({formula}) are not updated alike: let both layers "
        f"keep their weight in the same form, or compare without training steps",
        True,
    )


def _of_training(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    inputs: Any,
    own_name: OwnName,
    atol: float,
    first: Difference,
    train: Callable[[nn.Layer], TrainingParity],
) -> Cause:
    """Why two networks with equal outputs train otherwise."""
    name = first.name if first.what == "output" else first.name.rpartition(".")[0]
    for text, change in _in_training(torch_model, paddle_model, name, own_name):
        changed = copied(paddle_model)
        change(dict(changed.named_sublayers(include_self=True))[name])
        again = train(changed).first_difference
        if again is None or (again.step, again.what, again.name) != (first.step, first.what, first.name):
            return Cause(name, f"in training, equal with {text}", True)
    if first.what == "output":

        def search(theirs: torch.nn.Module, ours: nn.Layer) -> Cause | None:
            theirs.train()
            ours.train()
            without_randomness([*theirs.modules(), *ours.sublayers(include_self=True)])
            with without_dropout(theirs, []), without_dropout(ours, []):
                return find_cause(theirs, ours, inputs, own_name, atol)

        cause, _ = in_float64(torch_model, paddle_model, search)
        if cause:
            return Cause(cause.place, f"in training, {cause.text}", cause.explained)
    return Cause(name or "the network", f"in training, no usual cause explains the {first.what} of {first.name}", False)


def _in_training(
    torch_model: torch.nn.Module, paddle_model: nn.Layer, name: str, own_name: OwnName
) -> Iterator[tuple[str, Callable[[nn.Layer], None]]]:
    """What a layer may do otherwise in training only, and how to change it in a copy of the Paddle network."""
    layer: Any = dict(paddle_model.named_sublayers(include_self=True)).get(name)
    module = {own_name(theirs): module for theirs, module in torch_model.named_modules()}.get(name)
    momentum = getattr(module, "momentum", None)
    if isinstance(momentum, float) and hasattr(layer, "_momentum") and not np.isclose(layer._momentum, 1 - momentum):
        yield (
            f"momentum {1 - momentum:.6g} (PyTorch's {momentum:.6g} is the other share; here {layer._momentum:.6g})",
            lambda layer: setattr(layer, "_momentum", 1 - momentum),
        )
    if getattr(layer, "_use_global_stats", None):
        yield (
            "the batch's own statistics (here use_global_stats=True)",
            lambda layer: setattr(layer, "_use_global_stats", None),
        )
    if hasattr(layer, "_padding_idx"):
        padding = getattr(module, "padding_idx", None)
        index = -1 if padding is None else padding
        if layer._padding_idx != index:
            yield (
                f"padding_idx {padding} (PyTorch's; here {None if layer._padding_idx == -1 else layer._padding_idx})",
                lambda layer: setattr(layer, "_padding_idx", index),
            )
    if layer is not None and any(parameter.stop_gradient for parameter in layer.parameters(include_sublayers=False)):

        def thaw(layer: nn.Layer) -> None:
            for parameter in layer.parameters(include_sublayers=False):
                parameter.stop_gradient = False

        yield "its weights trained (here stop_gradient=True)", thaw
