"""Condensing while a network learns: who tells the learned layers how far training is, and the loss that helps them.

The learned layers do the dropping (`paddle_dense.layers.learned`); here is what connects them to `paddle.Model`.
Everything belongs to one network: two models in one process do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor, distributed, nn

from paddle_dense.layers.learned import LearnedConnections


def learned_connections(network: nn.Layer) -> dict[str, LearnedConnections]:
    """The layers of a network that learn which connections to keep, by name; none in a condensed network."""
    return {
        name: layer
        for name, layer in network.named_sublayers(include_self=True)
        if isinstance(layer, LearnedConnections)
    }


def set_progress(network: nn.Layer, progress: float) -> bool:
    """Drop what is due at this share of training in every learned layer; on many devices, as rank 0 decides.

    Args:
        network: a network with `LGC` or `SFR` layers.
        progress: share of training done, in [0, 1].

    Returns:
        Whether any connection was dropped.
    """
    changed = False
    for layer in learned_connections(network).values():
        before = layer.stage
        layer.set_progress(progress)
        if layer.stage == before:
            continue
        changed = True
        if distributed.is_initialized():
            # The weights are equal on all ranks, yet a tie broken differently on one would part the networks for good.
            for buffer in (layer._mask, layer._count, layer._stage):
                distributed.broadcast(buffer, src=0)
    return changed


def density(network: nn.Layer) -> float:
    """Share of the connections of all learned layers that are left; 1 for a network without such layers."""
    masks = [layer._mask for layer in learned_connections(network).values()]
    left = sum(mask.sum().item() for mask in masks)
    return left / sum(mask.size for mask in masks) if masks else 1.0


class CondensationCallback(paddle.callbacks.Callback):
    """Lets a network lose connections while `paddle.Model.fit` trains it (CondenseNet, arXiv 1711.09224, section 3.2).

    Before each batch it tells every learned layer the share of training that is done; C - 1 times during the first
    half, the least important connections go. With gradient accumulation they go between two updates, not within one. A
    `CondensationLoss` that has no network yet is given the one in training.

    Args:
        total_steps: batches in the whole training; what this `fit` will run, unless given.
        start_step: batches done before this `fit`, in a run that is continued. Together with `total_steps` it puts the
            schedule where it was left.
        verbose: print a line when connections have been dropped.

    Attributes:
        history: (step, {layer: density}) at the start and whenever connections were dropped.

    Raises:
        ValueError: the network has no learned layer, or the number of steps is unknown or does not make sense.
    """

    model: paddle.Model

    def __init__(self, total_steps: int | None = None, start_step: int = 0, verbose: bool = True) -> None:
        super().__init__()
        if start_step < 0 or (total_steps is not None and total_steps <= start_step):
            raise ValueError(
                f"CondensationCallback: start_step={start_step} and total_steps={total_steps} leave no step to do: "
                f"count the batches of the whole training in total_steps"
            )
        self.total_steps = total_steps
        self.start_step = start_step
        self.verbose = verbose
        self.history: list[tuple[int, dict[str, float]]] = []
        self._step = start_step
        self._total = total_steps or 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        layers = learned_connections(self.model.network)
        if not layers:
            raise ValueError(
                f"{type(self.model.network).__name__} has no LGC or SFR layer to condense: build it with "
                f"condensed=False, or leave out CondensationCallback"
            )
        loss = self.model._loss
        if isinstance(loss, CondensationLoss) and loss.layers is None:
            loss.attach(self.model.network)
        self._step = self.start_step
        self._total = self.total_steps or self.start_step + self._steps_of_this_fit()
        self._record()

    def on_train_batch_begin(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        # Paddle adds up gradients from the first batch of an epoch on.
        if step % getattr(self.model, "_accumulate", 1) == 0:
            self._advance(self._step / self._total)

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        self._step += 1

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        # So few steps that none fell into the second half, or an update that spans the end: what is due goes now.
        self._advance(self._step / self._total)

    def _advance(self, progress: float) -> None:
        if set_progress(self.model.network, min(progress, 1.0)):
            self._record()
            if self.verbose and distributed.get_rank() == 0:
                left = density(self.model.network)
                print(f"step {self._step} of {self._total}: {left:.1%} of the learned connections are left", flush=True)

    def _record(self) -> None:
        densities = {name: layer.density for name, layer in learned_connections(self.model.network).items()}
        self.history.append((self._step, densities))

    def _steps_of_this_fit(self) -> int:
        iterations = getattr(self.model, "num_iters", None)
        if iterations is not None:
            return iterations
        if self.params.get("steps") is None:
            raise ValueError(
                "CondensationCallback cannot tell from data of unknown length how long training will be: give "
                "total_steps"
            )
        return self.params["epochs"] * self.params["steps"]


class CondensationLoss(nn.Layer):
    """A loss plus the group lasso of all learned layers (CondenseNet, arXiv 1711.09224, section 3.1).

    In evaluation it is the plain loss.

    Args:
        base: the loss on the network's output, such as `paddle.nn.CrossEntropyLoss()`.
        weight: of the group lasso; the papers use 1e-5 on ImageNet.
        network: whose layers count; `CondensationCallback` gives the one that it trains, unless there is one.

    Raises:
        ValueError: the weight is negative, or no network is known when the loss is computed.
    """

    def __init__(self, base: nn.Layer, weight: float = 1e-5, network: nn.Layer | None = None) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"CondensationLoss: weight={weight} must be 0 or more")
        self.base = base
        self.weight = weight
        self.layers: list[LearnedConnections] | None = None
        if network is not None:
            self.attach(network)

    def attach(self, network: nn.Layer) -> None:
        """Take the group lasso of this network's layers from now on."""
        # A list, so that the layers do not become a part of the loss and its parameters.
        self.layers = list(learned_connections(network).values())

    def forward(self, *outputs_and_labels: Tensor) -> Tensor:
        loss = self.base(*outputs_and_labels)
        if self.layers is None:
            raise ValueError(
                "CondensationLoss does not know the network: train with CondensationCallback, or give network=..."
            )
        learning = [layer for layer in self.layers if layer.training]
        if not learning or not self.weight:
            return loss
        return loss + self.weight * paddle.add_n([layer.group_lasso() for layer in learning])
