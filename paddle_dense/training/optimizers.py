"""The optimizers of the recipes, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Callable

from paddle import Tensor, nn, optimizer
from paddle.optimizer.lr import LRScheduler

from paddle_dense.errors import shown


class RMSPropTF(optimizer.RMSProp):
    """Paddle's RMSProp, which has epsilon under the root and the rate within the momentum, as TensorFlow 1's has.

    Its mean square begins at 1 as well, and not at 0: the first steps are small and not the largest of all.
    """

    def _add_accumulator(self, name: str, param: Tensor, *args: Any, **how: Any) -> Any:
        if name == self._mean_square_acc_str:
            how["fill_value"] = 1.0
        return super()._add_accumulator(name, param, *args, **how)


OPTIMIZERS: dict[str, Callable[..., optimizer.Optimizer]] = {
    "sgd": lambda rate, **how: optimizer.Momentum(rate, momentum=0.9, use_nesterov=True, **how),
    "rmsprop": lambda rate, **how: RMSPropTF(rate, rho=0.9, epsilon=1e-3, momentum=0.9, **how),
    "adam": lambda rate, **how: optimizer.Adam(rate, **how),
    "adamw": lambda rate, **how: optimizer.AdamW(rate, **how),
}


def make_optimizer(
    name: str, rate: LRScheduler, parameters: Sequence[Tensor], weight_decay: float, clip_norm: float | None = None
) -> optimizer.Optimizer:
    """An optimizer of `OPTIMIZERS`.

    Args:
        name: ``"sgd"`` (with Nesterov momentum 0.9), ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        rate: the learning rate at each step.
        parameters: those that learn.
        weight_decay: L2 penalty; decoupled from the gradient in AdamW.
        clip_norm: gradients are scaled down where the norm of all of them together is larger.
    """
    how: dict[str, Any] = {"parameters": list(parameters), "weight_decay": weight_decay}
    if clip_norm is not None:
        how["grad_clip"] = nn.ClipGradByGlobalNorm(clip_norm)
    return OPTIMIZERS[check_optimizer(name)](rate, **how)


def decay_rates(network: nn.Layer, decay: float) -> None:
    """Let each block learn more slowly than the one after it: its learning rate is the next one's times `decay`.

    What stands before the first block counts as one, and so does what stands after the last one, with the classifier,
    which has the full rate.

    Args:
        network: one of this package.
        decay: in (0, 1]; timm's ``--layer-decay`` over its coarse groups.
    """
    named = list(network.named_parameters())
    blocks = sorted({int(block[1]) for name, _ in named if (block := _BLOCK.match(name))})
    place = 0
    for name, parameter in named:
        block = _BLOCK.match(name)
        if block:
            place = 1 + blocks.index(int(block[1]))
        elif place and not name.startswith(_WITH_THE_LAST):
            place = 1 + len(blocks)
        parameter.optimize_attr["learning_rate"] = decay ** (1 + len(blocks) - place)


# The blocks of every network here, in the names of its parameters. As in timm, a transition goes with the block before
# it, and the last convolution of EfficientNets with their last block.
_BLOCK = re.compile(r"(?:features\.(?:denseblock|transition)_?|stages\.|blocks\.)(\d+)\.")
_WITH_THE_LAST = ("conv_head.", "bn2.")


def check_optimizer(name: str) -> str:
    """The name, if there is such an optimizer.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {shown(name)}: choose one of {', '.join(OPTIMIZERS)}")
    return name
