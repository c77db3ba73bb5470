"""Layers that do not learn."""

from __future__ import annotations

from fnmatch import fnmatchcase

from paddle import nn

from paddle_dense.errors import shown

BACKBONE = "backbone"


def freeze(network: nn.Layer, patterns: str) -> None:
    """Stop the parameters of these names from learning, and with them the statistics of their BN layers.

    Args:
        network: whose parameters these are.
        patterns: of their names, as of files, with commas between; ``"backbone"`` is everything but the classifier.

    Raises:
        ValueError: a pattern is that of no parameter, or all parameters are frozen.
    """
    # Paddle counts the statistics of a BN layer among its parameters.
    names = [name for name, _ in network.named_parameters() if not name.endswith(("._mean", "._variance"))]
    frozen: set[str] = set()
    for pattern in patterns.split(","):
        found = [name for name in names if _matches(network, name, pattern)]
        if not found:
            raise ValueError(f"--freeze {shown(pattern)} is no parameter's name: take one as {names[0]}, or 'backbone'")
        frozen.update(found)
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    if all(parameter.stop_gradient for parameter in network.parameters()):
        raise ValueError(f"--freeze {shown(patterns)} leaves nothing to train: freeze less, 'backbone' for example")
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, nn.BatchNorm2D) and layer.weight is not None and layer.weight.stop_gradient:
            layer._use_global_stats = True


def _matches(network: nn.Layer, name: str, pattern: str) -> bool:
    if pattern == BACKBONE:
        return not name.startswith(f"{network.classifier_name}.")
    return fnmatchcase(name, pattern)
