"""LGC and SFR in training: the schedule by which connections are dropped, and what is dropped.

Both are BN -> activation -> 1x1 convolution whose dense weight W [out, in] is multiplied by a 0/1 mask. While the
network learns, the mask loses the connections whose weights are smallest, until 1/C of them are left:

* LGC lets each group of *outputs* choose its inputs. Row r belongs to group ``r mod G``; input j matters to group g by
  ``sum(|W[r, j]| for r in g)``.
* SFR lets each group of *inputs* choose the outputs it reactivates. Column c belongs to group ``c mod G``; output i
  matters to group g by ``sum(|W[i, c]| for c in g)``.

They are one idea seen from its two sides, one the other with the weight transposed, so one class holds the schedule,
the dropping and the group lasso, and `LGC` and `SFR` say only which side is in groups.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from paddle_dense.layers.activation import activation as make_activation
from paddle_dense.layers.budget import check_budget
from paddle_dense.layers.choices import binary_fault
from paddle_dense.layers.conv import fan_out


def due_stage(progress: float, condense_factor: int) -> int:
    """The condensing stage that is due, from 0 (all connections) to C - 1 (1/C of them).

    The C - 1 stages are spread evenly over the first half of training (CondenseNet, arXiv 1711.09224, section 3.2).

    Args:
        progress: share of training done, in [0, 1].
        condense_factor: the condensation factor C.
    """
    for stage in range(condense_factor - 1):
        if 2 * progress < (stage + 1) / (condense_factor - 1):
            return stage
    return condense_factor - 1


def _outside(counter: np.ndarray, most: int) -> str | None:
    # An average is fractional; a NaN fails as well.
    if -0.5 <= counter[0] <= most + 0.5:
        return None
    return f"is {counter[0]:.6g}, where 0 to {most} are possible"


class MaskedConv2D(nn.Conv2D):
    """A 1x1 convolution without bias that is handed a mask for its weight: [N, in, H, W] -> [N, out, H, W].

    Quantization leaves it in floats, since it knows layers by their exact class: condense a network first.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, weight_attr=fan_out(1, out_channels), bias_attr=False)

    # The mask stands in the layer around it, as the original's checkpoints name it.
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv2d(x, self.weight * mask)


class LearnedConnections(nn.Layer):
    """What LGC and SFR share: a masked 1x1 convolution, [N, in, H, W] -> [N, out, H, W], that can lose connections.

    Buffers, named as in the original's checkpoints: ``_mask`` [out, in, 1, 1], ``_stage`` [1] (stages done) and
    ``_count`` [1] (candidates dropped in every group).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        groups: number of groups G.
        condense_factor: the condensation factor C; G unless given.
        dropout_rate: dropout before the convolution.
        activation: ``"ReLU"`` or ``"HS"``.

    Raises:
        ValueError: the channels cannot be split into G groups or C parts.
    """

    _grouped_axis: int  # of the weight: its rows (0) or columns (1) belong to the groups in turn, the others are chosen

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        condense_factor: int | None = None,
        dropout_rate: float = 0.0,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.condense_factor = condense_factor or groups
        sides = ("out_channels", "in_channels")
        grouped, chosen = sides[self._grouped_axis], sides[1 - self._grouped_axis]
        for channels, parts in ((grouped, "groups"), (chosen, "condense_factor")):
            if getattr(self, channels) % getattr(self, parts):
                raise ValueError(
                    f"{type(self).__name__}: {channels}={getattr(self, channels)} must be a multiple of "
                    f"{parts}={getattr(self, parts)}"
                )
        self.activation_name = activation
        self.norm = nn.BatchNorm2D(in_channels)
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate else None
        self.conv = MaskedConv2D(in_channels, out_channels)
        self.register_buffer("_count", paddle.zeros([1]))
        self.register_buffer("_stage", paddle.zeros([1]))
        check_budget(out_channels, in_channels)
        self.register_buffer("_mask", paddle.ones([out_channels, in_channels, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x))
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv(x, self._mask)

    @property
    def density(self) -> float:
        """Share of the connections that are left, 1 at the start and 1/C at the end."""
        return self._mask.mean().item()

    @property
    def stage(self) -> int:
        """Condensing stages done, from 0 to C - 1."""
        return round(self._stage.item())

    @paddle.no_grad()
    def set_progress(self, progress: float) -> None:
        """Drop every connection that is due at this share of training; none ever comes back.

        The original looks at the progress in each forward pass and drops one stage's worth however many were skipped.
        Here whatever is due goes, so every run that passes half of the training ends at exactly 1/C.

        Args:
            progress: share of training done, in [0, 1].
        """
        stage = due_stage(progress, self.condense_factor)
        if stage <= self.stage:
            return
        dropped = stage * (self._candidates // self.condense_factor)
        alive = self._per_group(self._mask[:, :, 0, 0]) > 0
        importance = self._per_group((self.conv.weight * self._mask).abs()[:, :, 0, 0])
        # What is gone ranks below everything that is left, even below a weight that happens to be zero.
        importance = paddle.where(alive, importance, paddle.full_like(importance, -1.0))
        rank = importance.argsort(axis=1).argsort(axis=1)
        keep = (rank >= dropped).astype(self._mask.dtype)
        keep = self._grouped_first(keep.tile([self._mask.shape[self._grouped_axis] // self.groups, 1]))
        self._mask.set_value(keep.reshape(self._mask.shape))
        self._count.set_value(paddle.full_like(self._count, dropped))
        self._stage.set_value(paddle.full_like(self._stage, stage))

    def group_lasso(self) -> Tensor:
        """Sum over groups and candidates of the L2 norm of the weights they share; 0 once G - 1 stages are done.

        It makes the weights of one group agree on what to drop (arXiv 1711.09224, section 3.1). Norms are bounded below
        by 1e-3, where the square root's gradient would grow without limit.
        """
        if self.stage >= self.groups - 1:
            return paddle.zeros([])
        weight = (self.conv.weight * self._mask)[:, :, 0, 0]
        return self._per_group(weight * weight).clip(min=1e-6).sqrt().sum()

    def mask_fault(self, mask: np.ndarray) -> str | None:
        """What is wrong with a `_mask` [out, in, 1, 1], as the end of a sentence; None if, rounded, it can be used."""
        fault = binary_fault(mask)
        members = np.moveaxis(mask[:, :, 0, 0], self._grouped_axis, 0) > 0.5
        members = members.reshape(-1, self.groups, members.shape[1])
        if not fault and not (members == members[0]).all():
            fault = f"keeps different connections for channels of one group, where {self.groups} groups keep one choice"
        return fault

    def count_fault(self, count: np.ndarray) -> str | None:
        """What is wrong with a `_count` [1], as the end of a sentence; None if it can be used once it is rounded."""
        return _outside(count, self._candidates)

    def stage_fault(self, stage: np.ndarray) -> str | None:
        """What is wrong with a `_stage` [1], as the end of a sentence; None if it can be used once it is rounded."""
        return _outside(stage, self.condense_factor - 1)

    @property
    def _candidates(self) -> int:
        """How many channels a group chooses from."""
        return self._mask.shape[1 - self._grouped_axis]

    def _grouped_first(self, weight: Tensor) -> Tensor:
        """From [out, in] to [grouped side, candidates], and back."""
        return weight.t() if self._grouped_axis else weight

    def _per_group(self, weight: Tensor) -> Tensor:
        """Sum [out, in] over what a group shares: [G, candidates]."""
        return self._grouped_first(weight).reshape([-1, self.groups, self._candidates]).sum(0)
