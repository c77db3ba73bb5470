r"""The same training in PyTorch and in Paddle, step by step: losses, masks, every gradient, every update.

From equal weights and equal batches both frameworks take the same steps, ``cross entropy + weight * group lasso`` and
Nesterov's SGD. What is compared, in the order in which it is computed, so that the first difference is the cause:

====================  =====================================================================================
initial value         every tensor of the two networks: equal
mask                  ``_mask``, ``_count``, ``_stage`` after the progress has been set: equal
output                the logits, or each output, relative to the largest; where they differ, the first layer whose
                      output does
loss                  the cross entropy, or the loss that is given, relative to its value
group lasso           each learned layer's, relative to its value
gradient              each parameter's, relative to the largest element of that gradient; none of a tensor that is
                      made of PyTorch's by a formula that does not make its gradient of theirs
update                each tensor's way since the start, BN's running statistics included, relative to that way
====================  =====================================================================================

**Rounding.** A gradient jumps where an activation crosses a kink (0 in ReLU, -3 and 3 in hard-swish), and two orders of
summation put a few of millions of activations on different sides. Each adds or takes away one term of a sum that
largely cancels, 1e-3 of a gradient and more; the update spreads it, and some steps later hundreds have crossed. PyTorch
parts with itself in the same way when it runs on another number of threads. From the same weights, gradients agree to
1e-5 in float32 wherever no activation crosses (tests/convert/test_training_parity.py counts them). A tolerance for the
crossings would be one for mistakes, so what differs in float32 is run once more in float64, which leaves 1e-16 for a
crossing to happen in, and each step from PyTorch's weights, so that nothing adds up: a mistake is as large as before,
and in the step that makes it.

**Scales.** There is none that a mistake could hide behind: every tensor is measured against itself. Taken off is only
what the numbers themselves cannot express. Of a gradient or an update, 1e-12 of the largest in the network: float64's
rounding of sums that cancel, which is all there is where the true gradient is 0 (a bias before a BN). Of an update,
besides, the rounding of the weights to their own dtype, half a unit in the last place in each framework and step.

**Running variance.** Paddle puts the biased variance of a batch into BN's running variance, PyTorch the unbiased one.
Both compute the same in training, and differ in evaluation: see `follow_pytorch_variance`, which is in force here.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import paddle

from convert.parity.forward import first_difference, in_float64, output_differences
from convert.parity.recording import OwnName, without_dropout
from convert.parity.structures import Arrays, as_array, for_paddle, for_torch, named_arrays, named_tensors, paired, run
from paddle_dense.errors import WeightsError
from paddle_dense.evaluation import copied
from paddle_dense.files.layout import to_paddle
from paddle_dense.models.fitting import set_state
from paddle_dense.training.condensation import learned_connections

if TYPE_CHECKING:
    import torch
    from paddle import nn

Batch = tuple[Any, Any]
Loss = Callable[[Any, Any], Any]

NO_DROPOUT = "dropout draws other numbers in each framework, so it was switched off in both for the training steps"
_CANCELLATION = 1e-12
_RATES = ("drop", "drop_path", "drop_prob", "drop_rate", "dropout")  # the last in recurrent layers and attention
_BUFFERS_OF_MASKS = ("_mask", "_count", "_stage")


@dataclass(frozen=True)
class Difference:
    """How far one thing is apart.

    Attributes:
        step: the training step, from 0.
        what: "initial value", "mask", "output", "loss", "group lasso", "gradient" or "update".
        name: the tensor, under Paddle's name, or the layer.
        size: the largest difference, relative to the scale that the module's docstring gives.
    """

    step: int
    what: str
    name: str
    size: float

    def __str__(self) -> str:
        return f"step {self.step}, {self.what} of {self.name}, by {self.size:.1e}"


@dataclass(frozen=True)
class StepParity:
    """One training step in both frameworks.

    Attributes:
        step: from 0.
        torch_loss, paddle_loss: the loss, before the step.
        loss_diff: absolute difference of the two.
        torch_lasso, paddle_lasso: the group lasso of all learned layers, before its weight.
        masks_equal: every mask and counter is the same in both.
        gradient: the gradient that differs most.
        update: the tensor whose way since the start differs most.
        first: the first difference beyond the tolerance, None if there is none.
    """

    step: int
    torch_loss: float
    paddle_loss: float
    loss_diff: float
    torch_lasso: float
    paddle_lasso: float
    masks_equal: bool
    gradient: Difference
    update: Difference
    first: Difference | None


@dataclass(frozen=True)
class TrainingParity:
    """What `compare_training` found.

    Attributes:
        steps: each step, in the networks' own precision.
        exact: each step in float64 and from PyTorch's weights, where `steps` differ beyond the tolerance; else empty.
        warnings: what the user should know, one sentence each.
    """

    steps: tuple[StepParity, ...]
    exact: tuple[StepParity, ...]
    warnings: tuple[str, ...]

    @property
    def first_difference(self) -> Difference | None:
        """The first step and tensor that differ beyond the tolerance; rounding that float64 settles is none."""
        return _first_of(self.exact or self.steps)

    @property
    def agrees(self) -> bool:
        """Whether both frameworks train alike."""
        return self.first_difference is None


def compare_training(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batches: Sequence[Batch],
    *,
    steps: int | None = None,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    group_lasso: float = 1e-5,
    tolerance: float = 1e-4,
    loss: Loss | tuple[Loss, Loss] | None = None,
    to_paddle: Callable[[Arrays], Arrays] = to_paddle,
    without_gradient: Container[str] = (),
    own_name: OwnName = str,
) -> TrainingParity:
    """Train copies of both networks in lockstep and report where they part; the networks themselves stay as they are.

    Dropout and stochastic depth are switched off in the copies, with a warning. Learned layers are told the progress
    ``t / steps`` before step t, and count towards the loss.

    Args:
        torch_model: the PyTorch network; its learned layers have `set_progress` and `group_lasso`, as the twins' have.
        paddle_model: the Paddle network with the same weights.
        batches: images, float32 [N, C, H, W], and classes, int64 [N], of each step; with a `loss`, what the networks
            take, and what the loss takes besides the outputs.
        steps: steps of the whole training, of which these batches are the first; as many as batches unless given.
        learning_rate: of the SGD.
        momentum: Nesterov's, or 0 for none.
        weight_decay: of all parameters.
        group_lasso: weight of the group lasso.
        tolerance: largest difference allowed, relative to the scales that the module's docstring gives.
        loss: of a network's outputs, as it gives them, and the batch's second half, as tensors: a scalar. One for both
            frameworks, or PyTorch's and Paddle's; the cross entropy unless given.
        to_paddle: PyTorch's state_dict, or gradients by the same names, by Paddle's names and in its layout.
        without_gradient: Paddle's tensors whose gradients it does not make of PyTorch's; their updates are compared.
        own_name: what the Paddle network calls a layer of the PyTorch network; None for one that it does not have.

    Raises:
        WeightsError: the networks do not have the same tensors, or the same outputs.
        ValueError: there is no batch, the loss is no scalar, or the PyTorch network's learned layers are not those of
            the Paddle network.
    """
    losses = loss if isinstance(loss, tuple) else (loss, loss)
    recipe = _Recipe(
        steps or len(batches),
        learning_rate,
        momentum,
        weight_decay,
        group_lasso,
        tolerance,
        (losses[0] or _torch_cross_entropy, losses[1] or paddle.nn.functional.cross_entropy),
        to_paddle,
        without_gradient,
        own_name,
    )
    found, random = _train(torch_model, paddle_model, batches, recipe)
    warnings = [NO_DROPOUT] if random else []
    exact: tuple[StepParity, ...] = ()
    first = _first_of(found)
    if first and "float64" not in str(next(iter(paddle_model.parameters())).dtype):
        trained, fault = in_float64(
            torch_model,
            paddle_model,
            lambda theirs, ours: _train(theirs, ours, batches, recipe, synchronised=True),
        )
        exact = trained[0] if trained else ()
        if fault:
            warnings.append(fault)
        elif _first_of(exact) is None:
            largest = max(_CANCELLATION, *(size for step in exact for size in (step.gradient.size, step.update.size)))
            warnings.append(
                f"training amplifies rounding: in float32 the frameworks part at {first} of its scale, and in float64 "
                f"every step is the same to {largest:.1e}"
            )
    return TrainingParity(found, exact, tuple(warnings))


def square_loss(seed: int = 0) -> Loss:
    """A loss that needs no classes: the mean of the squares of all floats of the outputs less fixed random numbers.

    Args:
        seed: of the random numbers, which are the same for either framework.
    """

    def loss(outputs: Any, _: Any) -> Any:
        random, total = np.random.default_rng(seed), 0.0
        for _, tensor in sorted(named_tensors(outputs).items(), key=lambda named: named[0]):
            if "float" in str(tensor.dtype):
                target = random.standard_normal(tuple(tensor.shape))
                total = total + ((tensor - _like(target, tensor)) ** 2).mean()
        return total

    return loss


def _like(array: np.ndarray, tensor: Any) -> Any:
    """An array as a tensor of the other tensor's framework, dtype and device."""
    if isinstance(tensor, paddle.Tensor):
        return paddle.to_tensor(array, dtype=tensor.dtype, place=tensor.place)
    return tensor.new_tensor(array)


def _torch_cross_entropy(logits: Any, classes: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(logits, classes)


def follow_pytorch_variance(model: nn.Layer) -> list[Any]:
    """From now on, training gives BN the running variance that PyTorch would give it; nothing else changes.

    With m the momentum in Paddle's sense, v the running variance, and b the biased variance of the n = N * H * W values
    that a channel has in the batch::

        Paddle     v' = m v + (1 - m) b
        PyTorch    v' = m v + (1 - m) b n / (n - 1)

    so that after each pass ``(v' - m v) / (n - 1)`` is missing in Paddle. n differs from layer to layer and from batch
    to batch, which is why a trained network's statistics cannot be corrected afterwards.

    Returns:
        The hooks that do so; each ends with its `remove`.
    """
    from paddle.nn import BatchNorm1D, BatchNorm2D, BatchNorm3D

    before = {}

    def record(layer: nn.Layer, inputs: tuple) -> None:
        before[id(layer)] = layer._variance.clone()

    def correct(layer: nn.Layer, inputs: tuple, output: object) -> None:
        shape = inputs[0].shape
        # As Paddle's kernels, which keep the momentum in float32.
        missing = layer._variance - float(np.float32(layer._momentum)) * before.pop(id(layer))
        if layer.training and not layer._use_global_stats:
            n = int(np.prod(shape)) // shape[1]
            layer._variance.set_value(layer._variance + missing / max(n - 1, 1))

    return [
        handle
        for layer in model.sublayers(include_self=True)
        if isinstance(layer, (BatchNorm1D, BatchNorm2D, BatchNorm3D))
        for handle in (
            # Paddle's annotations want a result of hooks, and one input.
            layer.register_forward_pre_hook(record),  # type: ignore[arg-type]
            layer.register_forward_post_hook(correct),  # type: ignore[arg-type]
        )
    ]


@dataclass(frozen=True)
class _Recipe:
    steps: int
    learning_rate: float
    momentum: float
    weight_decay: float
    group_lasso: float
    tolerance: float
    losses: tuple[Loss, Loss]
    to_paddle: Callable[[Arrays], Arrays]
    without_gradient: Container[str]
    own_name: OwnName


@dataclass(frozen=True)
class _Pass:
    """What one framework computes before an update; arrays under Paddle's names and in its layout."""

    output: Arrays
    loss: float
    lassos: dict[str, float]
    gradients: Arrays


@dataclass(frozen=True)
class _Side:
    """A copy of a network in training; what its framework calls otherwise than the other one is a field."""

    framework: Any
    model: Any
    layers: Mapping[str, Any]
    weight: float
    random: list[str]
    optimizer: Any
    clear_gradients: Callable[[], None]
    tensors: Callable[[Any, Any], Any]
    loss: Loss
    named: Callable[[Arrays], Arrays]

    def state(self) -> Arrays:
        return self.named({name: _array(value) for name, value in self.model.state_dict().items()})

    def backward(self, x: Any, y: Any) -> _Pass:
        with without_dropout(self.model, self.random):
            outputs = run(self.model, self.tensors(x, self.model))
        loss = self.loss(outputs, self.tensors(y, self.model))
        if not hasattr(loss, "backward") or loss.numel() != 1:
            raise ValueError(f"the loss is {_shown(loss)}: make the function return a scalar tensor of the outputs")
        lassos = {name: layer.group_lasso() for name, layer in self.layers.items()}
        self.clear_gradients()
        (loss + self.weight * sum(lassos.values())).backward()
        values = {name: value.item() for name, value in lassos.items()}
        return _Pass(named_arrays(outputs), loss.item(), values, self.gradients())

    def gradients(self) -> Arrays:
        """Of every tensor of the state_dict, so that the mapping finds what it takes; 0 where there is none."""
        parameters = {id(value): value for value in self.model.parameters()}
        found = {}
        for name, value in _state_of(self.model).items():
            gradient = parameters[id(value)].grad if id(value) in parameters else None
            found[name] = _array(self.framework.zeros_like(value) if gradient is None else gradient)
        return self.named(found)

    def parameters(self) -> set[str]:
        """Names of what is trained."""
        parameters = {id(value) for value in self.model.parameters()}
        return {name for name, value in _state_of(self.model).items() if id(value) in parameters}


def _state_of(model: Any) -> Mapping[str, Any]:
    """The tensors themselves, which PyTorch's state_dict gives detached unless asked."""
    return model.state_dict() if isinstance(model, paddle.nn.Layer) else model.state_dict(keep_vars=True)


def _shown(loss: Any) -> str:
    return f"a tensor of {list(loss.shape)}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"


def _array(tensor: Any) -> np.ndarray:
    array = as_array(tensor)
    return array.astype(np.int8) if array.dtype.kind == "b" else array.copy()


def _torch_side(model: torch.nn.Module, recipe: _Recipe) -> _Side:
    import torch

    model = copied(model).train()
    learned = {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "set_progress") and hasattr(layer, "group_lasso")
    }
    # Paddle's optimizer keeps these two in float32.
    momentum, decay = (float(np.float32(value)) for value in (recipe.momentum, recipe.weight_decay))
    sgd = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum, weight_decay=decay, nesterov=momentum > 0)
    random = without_randomness(model.modules())
    return _Side(
        torch,
        model,
        learned,
        recipe.group_lasso,
        random,
        sgd,
        sgd.zero_grad,
        for_torch,
        recipe.losses[0],
        recipe.to_paddle,
    )


def _paddle_side(model: nn.Layer, recipe: _Recipe) -> _Side:
    """The same in Paddle, its running variances as PyTorch has them."""
    model = copied(model)
    model.train()
    random = without_randomness(model.sublayers(include_self=True))
    sgd = paddle.optimizer.Momentum(
        recipe.learning_rate,
        recipe.momentum,
        parameters=model.parameters(),
        use_nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    follow_pytorch_variance(model)
    learned = learned_connections(model)
    return _Side(
        paddle,
        model,
        learned,
        recipe.group_lasso,
        random,
        sgd,
        sgd.clear_grad,
        for_paddle,
        recipe.losses[1],
        lambda arrays: arrays,
    )


def without_randomness(layers: Iterator[Any] | Sequence[Any]) -> list[str]:
    """Switch off dropout and stochastic depth in place; the classes of the layers that had any."""
    found = []
    for layer in layers:
        for name in ("p",) if "Dropout" in type(layer).__name__ else _RATES:
            rate = getattr(layer, name, 0)
            if isinstance(rate, float) and rate > 0:
                setattr(layer, name, 0.0)
                found.append(type(layer).__name__)
    return found


def _train(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batches: Sequence[Batch],
    recipe: _Recipe,
    synchronised: bool = False,
) -> tuple[tuple[StepParity, ...], bool]:
    """Every step, from PyTorch's weights if synchronised, and whether something random was switched off."""
    if not batches:
        raise ValueError("training is compared on batches, and there is none: give one for each step")
    torch_side, paddle_side = _torch_side(torch_model, recipe), _paddle_side(paddle_model, recipe)
    start = torch_side.state()
    initial = _initial_differences(torch_side, paddle_side, start)
    if synchronised:  # in float64; there a formula gives other digits than those that were rounded to float32
        initial = [difference for difference in initial if difference.name not in recipe.without_gradient]
    apart = _beyond(0, initial)
    steps: list[StepParity] = []
    for step, batch in enumerate(batches):
        if synchronised:
            start = torch_side.state()
            set_state(paddle_side.model, start)
        found = _step(torch_side, paddle_side, step, batch, start, recipe, name_layer=_first_of(steps) is None)
        steps.append(replace(found, first=apart) if apart and not step else found)
    return tuple(steps), bool(torch_side.random or paddle_side.random)


def _initial_differences(torch_side: _Side, paddle_side: _Side, start: Arrays) -> list[Difference]:
    found = paddle_side.state()
    for name in {**start, **found}:
        shapes = [list(state[name].shape) if name in state else "absent" for state in (start, found)]
        if shapes[0] != shapes[1]:
            raise WeightsError(f"tensor {name} is {shapes[0]} in the PyTorch network and {shapes[1]} in the Paddle one")
    if set(torch_side.layers) != set(paddle_side.layers):
        name = min(set(torch_side.layers) ^ set(paddle_side.layers))
        raise ValueError(
            f"{name} learns its connections in one network only: give the PyTorch layer set_progress and group_lasso, "
            f"as convert.torch_models has them"
        )
    return _differences(0, "initial value", found, start, _scales(start))


def _step(
    torch_side: _Side, paddle_side: _Side, step: int, batch: Batch, start: Arrays, recipe: _Recipe, name_layer: bool
) -> StepParity:
    for side in (torch_side, paddle_side):
        for layer in side.layers.values():
            layer.set_progress(step / recipe.steps)
    masks = _mask_differences(step, paddle_side.state(), torch_side.state())
    before = (copied(torch_side.model), copied(paddle_side.model)) if name_layer else None
    theirs, ours = torch_side.backward(*batch), paddle_side.backward(*batch)
    for side in (torch_side, paddle_side):
        side.optimizer.step()
    compared = {name for name in paddle_side.parameters() if name not in recipe.without_gradient}
    passes = _pass_differences(step, ours, theirs, compared)
    updates = _update_differences(step, paddle_side.state(), torch_side.state(), start)
    first = _beyond(0, masks) or _beyond(recipe.tolerance, [*passes, *updates])
    if before and first and first.what == "output":
        with without_dropout(before[0], []), without_dropout(before[1], []):
            layers = output_differences(*before, batch[0], own_name=recipe.own_name)
        layer = first_difference(layers, recipe.tolerance)
        first = Difference(step, "output", layer.name, layer.max_rel_diff) if layer else first
    return StepParity(
        step,
        torch_loss=theirs.loss,
        paddle_loss=ours.loss,
        loss_diff=abs(ours.loss - theirs.loss),
        torch_lasso=sum(theirs.lassos.values()),
        paddle_lasso=sum(ours.lassos.values()),
        masks_equal=_beyond(0, masks) is None,
        gradient=_largest(
            [difference for difference in passes if difference.what == "gradient"]
            or [Difference(step, "gradient", "the network", 0.0)]
        ),
        update=_largest(updates),
        first=first,
    )


def _mask_differences(step: int, ours: Arrays, theirs: Arrays) -> list[Difference]:
    masks = {name: value for name, value in theirs.items() if name.rpartition(".")[2] in _BUFFERS_OF_MASKS}
    return _differences(step, "mask", ours, masks, dict.fromkeys(masks, 1.0))


def _pass_differences(step: int, ours: _Pass, theirs: _Pass, compared: Container[str]) -> list[Difference]:
    """Differences of outputs, loss, group lassos and these gradients, in the order in which they are computed."""
    found = []
    for mine, expected in paired(ours.output, theirs.output):
        output = {"the network": expected}
        found += _differences(step, "output", {"the network": mine}, output, _scales(output))
    loss = {"the network": np.asarray(theirs.loss)}
    found += _differences(step, "loss", {"the network": ours.loss}, loss, _scales(loss))
    found += _differences(step, "group lasso", ours.lassos, theirs.lassos, theirs.lassos)
    trained = {name: value for name, value in theirs.gradients.items() if name in compared}
    scales = _scales(trained)
    rounding = dict.fromkeys(scales, _CANCELLATION * max(scales.values(), default=0.0))
    gradients = _differences(step, "gradient", ours.gradients, trained, scales, rounding)
    return [*found, *reversed(gradients)]


def _update_differences(step: int, ours: Arrays, theirs: Arrays, start: Arrays) -> list[Difference]:
    """Differences of the ways since the start, beyond what the tensors' own rounding explains."""
    ways = _scales({name: value - start[name] for name, value in theirs.items()})
    cancellation = _CANCELLATION * max(ways.values(), default=0.0)
    rounding = {
        name: cancellation + (step + 1) * float(np.finfo(value.dtype).eps * np.abs(value).max())
        for name, value in theirs.items()
        if value.dtype.kind == "f"
    }
    return _differences(step, "update", ours, theirs, ways, rounding)


def _differences(
    step: int,
    what: str,
    ours: Mapping[str, np.ndarray | float],
    theirs: Mapping[str, np.ndarray | float],
    scales: Mapping[str, float],
    rounding: Mapping[str, float] | None = None,
) -> list[Difference]:
    """One for each of `theirs`, relative to its scale; what is absent or not a number differs infinitely."""
    found = []
    for name, expected in theirs.items():
        difference = float(np.abs(ours.get(name, np.nan) - expected).max())
        beyond = difference - (rounding or {}).get(name, 0.0)
        size = 0.0 if beyond <= 0 else beyond / scales[name] if scales[name] else np.inf
        found.append(Difference(step, what, name, size if np.isfinite(size) else np.inf))
    return found


def _scales(arrays: Arrays) -> dict[str, float]:
    return {name: float(np.abs(value).max()) for name, value in arrays.items()}


def _largest(differences: Sequence[Difference]) -> Difference:
    return max(differences, key=lambda difference: difference.size)


def _beyond(tolerance: float, differences: Sequence[Difference]) -> Difference | None:
    return next((difference for difference in differences if difference.size > tolerance), None)


def _first_of(steps: Sequence[StepParity]) -> Difference | None:
    return next((step.first for step in steps if step.first), None)
