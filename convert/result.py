"""What became of one file; `--json`, the sidecar and the report read it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense import __version__

if TYPE_CHECKING:
    from convert.parity.forward import LayerPrecision, Parity
    from convert.parity.training import TrainingParity
    from convert.report.weights import Weights

OWN_TWIN, WITH_ASSUMPTIONS = "twin", "with assumptions"
_FIGURES = ("max_abs_diff", "max_rel_diff", "top1_agreement")


@dataclass
class Result:
    """One file, filled in as the work goes: what is None or empty was not asked for or not reached.

    Attributes:
        input: the file.
        output: what was written.
        size: of that, in bytes, and `size_of_indices` how much of it the compact form would save.
        sha256: of the input.
        container: where in the input the tensors were.
        arch, config, params: the network, its arguments, and its number of parameters.
        verified: both frameworks were run and agree.
        checked_against: the PyTorch network that was run: "twin" for this package's own, or the --reference.
        assumed: the network's arguments, and the like, that neither the file nor the user nor the --reference settles.
        parity: the figures of that, and `atol` the largest difference allowed.
        layers: the same, layer by layer.
        training: loss, gradients and steps compared.
        cause: where and why two networks differ, a clause, where one of the usual causes explains it.
        weights: how the numbers are distributed.
        left_out: names of the file's tensors that are no part of the network.
        warnings: what the user should know, one sentence each.
        error: why it failed, one sentence.
        seconds: time taken.
    """

    input: str
    output: str | None = None
    size: int | None = None
    size_of_indices: int = 0
    sha256: str | None = None
    container: str | None = None
    arch: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    params: int | None = None
    verified: bool = False
    checked_against: str | None = None
    assumed: dict[str, Any] = field(default_factory=dict)
    parity: Parity | None = None
    atol: float | None = None
    layers: Sequence[LayerPrecision] = ()
    training: TrainingParity | None = None
    cause: str | None = None
    weights: Weights | None = None
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        """What was found, in one line."""
        networks, parity = f"{self.input} in PyTorch and {self.arch} in Paddle", self.parity
        if self.error or self.difference or not parity:
            return f"{networks}: {self.error or self.difference or 'not compared'}"
        said = [f"the {parity.what} agree to {parity.max_rel_diff:.1e} of their scale"]
        if self.layers:
            said.append(f"{len(self.layers)} layers to {max(layer.float64 for layer in self.layers):.1e} in float64")
        if self.training:
            said.append(f"losses, gradients and updates do so in {len(self.training.steps)} training steps")
        return f"{networks}: {', '.join(said)}"

    @property
    def max_abs_diff(self) -> float | None:
        """Largest absolute difference of any logit; None where both were not run."""
        return self.parity.max_abs_diff if self.parity else None

    @property
    def max_rel_diff(self) -> float | None:
        """The same, divided by the largest absolute logit of the PyTorch network."""
        return self.parity.max_rel_diff if self.parity else None

    @property
    def top1_agreement(self) -> float | None:
        """Share of the inputs for which both name the same class."""
        return self.parity.top1_agreement if self.parity else None

    @property
    def verdict(self) -> bool | str:
        """What ``"verified"`` says in JSON: True only where nothing was assumed."""
        return WITH_ASSUMPTIONS if self.verified and self.assumed else self.verified

    def conversion(self) -> dict[str, Any]:
        """What ``--json`` prints of a conversion."""
        keys = ("input", "output", "container", "arch", "config", "params", "sha256", *_FIGURES)
        others = ("checked_against", "assumed", "seconds", "left_out", "warnings")
        return {
            **{key: getattr(self, key) for key in keys},
            "verified": self.verdict,
            **{key: getattr(self, key) for key in others},
        }

    def provenance(self) -> dict[str, Any]:
        """What the sidecar says: what the network is, where it came from and how far it was checked."""
        return {
            "arch": self.arch,
            "config": self.config,
            "params": self.params,
            "source": {"file": Path(self.input).name, "sha256": self.sha256, "container": self.container},
            "verified": self.verdict,
            "checked_against": self.checked_against,
            "assumed": dict(self.assumed),
            "parity": {key: getattr(self, key) for key in _FIGURES},
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
            "versions": versions(),
        }

    def comparison(self, layers: bool) -> dict[str, Any]:
        """What ``--json`` prints of a comparison, with every layer if wanted."""
        first, training = self.first_layer, self.training
        every_layer = [{"name": layer.name, "max_rel_diff": layer.float64} for layer in self.layers]
        return {
            "input": self.input,
            "arch": self.arch,
            "config": self.config,
            **(asdict(self.parity) if self.parity else {}),
            "first_layer": first and {"name": first.name, "max_rel_diff": first.float64},
            **({"layers": every_layer} if layers else {}),
            "steps": [asdict(step) for step in training.steps] if training else [],
            "exact_steps": [asdict(step) for step in training.exact] if training else [],
            "first_difference": training and training.first_difference and asdict(training.first_difference),
            "verified": self.verdict,
            "checked_against": self.checked_against,
            "assumed": dict(self.assumed),
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }

    @property
    def first_layer(self) -> LayerPrecision | None:
        """The first layer that differs in float64 by more than is allowed; a NaN on one side counts."""
        atol = self.atol or 0.0
        return next((layer for layer in self.layers if not layer.float64 <= atol), None)

    @property
    def difference(self) -> str | None:
        """The first thing that differs, as a clause; None where PyTorch and Paddle do the same."""
        said, parity, atol = [], self.parity, self.atol or 0.0
        trains = not (self.training and self.training.first_difference)
        if parity and not parity.max_rel_diff <= atol:
            layer = None if self.cause else self.first_layer
            where = f", first in layer {layer.name}, by {layer.float64:.1e}" if layer else ""
            said.append(f"the {parity.what} differ by {parity.max_rel_diff:.1e} of their scale{where}")
        elif parity and parity.float64 is not None and (not parity.agrees(atol) or (self.cause and trains)):
            said.append(
                f"the {parity.what} differ by {parity.float64:.1e} of their scale in float64, far more than by rounding"
            )
        if self.training and self.training.first_difference:
            said.append(f"training differs first at {self.training.first_difference} of its scale")
        cause = f": it {self.cause}" if self.cause else ""
        return f"{', and '.join(said)} (allowed: {atol:.0e}){cause}" if said else None


def versions() -> dict[str, str]:
    """Of what a conversion's figures depend on: this package, and what is installed of Paddle, PyTorch and numpy."""
    found = {"paddle_dense": __version__}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "torch", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
