"""Squeeze and excitation (arXiv 1709.01507)."""

from __future__ import annotations

from paddle import Tensor, nn

from paddle_dense.layers.linear import linear


class SELayer(nn.Layer):
    """Scale every channel by a gate computed from all of them: [N, C, H, W] -> [N, C, H, W].

    Args:
        inplanes: channels C of the input.
        reduction: the gate's hidden layer has ``inplanes // reduction`` units.

    Raises:
        ValueError: the reduction leaves no unit.
    """

    def __init__(self, inplanes: int, reduction: int = 16) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2D(1)
        hidden = inplanes // reduction
        if not hidden:
            raise ValueError(f"a reduction of {reduction} leaves nothing of {inplanes} channels: give a smaller one")
        self.fc = nn.Sequential(
            linear(inplanes, hidden, bias=False),
            nn.ReLU(),
            linear(hidden, inplanes, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(self.avg_pool(x).flatten(1))
        return x * gate.unsqueeze([2, 3])
