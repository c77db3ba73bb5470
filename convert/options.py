"""What the command lines of conversions and comparisons say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_dense.files.spelling import Selection


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        arch: the preset that the file is said to be.
        config: arguments of the network that the user knows better than the file.
        drop: patterns of names of the file's tensors to leave out.
        rename: beginnings of the file's names, old and new.
        part: the beginning of the names to take, of a file with several networks.
        format: ``"pdparams"`` (``"pth"`` on the way back) or ``"safetensors"``.
        compact: write SFR's indices in the compact form, which only this package reads.
        keep_trained_form: do not condense a checkpoint in the trained form.
        condense_classifier: halve the classifier's inputs as CondenseNet's converter does, which changes the outputs.
        ema: take the EMA weights where the file has them.
        key: take the weights under this key of the file instead.
        verify: run both frameworks on the same inputs.
        atol: largest difference allowed, relative to the logits' scale.
        images: folder of images to compare on besides the random ones.
        reference: ``MODULE:FACTORY`` of the user's own PyTorch network, in place of the twin.
        network: ``MODULE:FACTORY`` of the user's own Paddle network, in place of one of this package.
        map: the mapping file that says which of the file's tensors its tensors are made of.
        propose: where to write such a file, instead of converting.
        inputs: ``MODULE:FUNCTION`` of what both networks are run on.
        force: overwrite what stands at the target.
        report: draw up what a report shows besides the result; it takes a run of both frameworks more.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less, and compare without them.
    """

    arch: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    drop: Sequence[str] = ()
    rename: Sequence[tuple[str, str]] = ()
    part: str = ""
    format: str = "pdparams"
    compact: bool = False
    keep_trained_form: bool = False
    condense_classifier: bool = False
    ema: bool = True
    key: str | None = None
    verify: bool = True
    atol: float = 1e-5
    images: Path | None = None
    reference: str | None = None
    network: str | None = None
    map: Path | None = None
    propose: Path | None = None
    inputs: str | None = None
    force: bool = False
    report: Path | None = None
    allow_nonfinite: bool = False

    @property
    def selection(self) -> Selection:
        """What the user says of the file's tensors."""
        return Selection(self.drop, self.rename, self.part)


@dataclass(frozen=True)
class ParityOptions(Options):
    """What the command line says: the options of a conversion that make sense here, and those of the training.

    Attributes:
        keep_trained_form: of a checkpoint in the trained form, leave out the comparison of its condensed form.
        steps: SGD steps, each with loss and gradients; 0 for none.
        learning_rate: of these steps; so large that training diverges, it lets rounding grow without bounds.
        batch_size: images in each step.
        size: pixels of the random images' sides; unless given, the network's own, but at most 64 in training.
        seed: of the random images.
        loss: ``MODULE:FUNCTION`` of the loss, of a network of the user's own.
    """

    steps: int = 3
    learning_rate: float = 0.01
    batch_size: int = 4
    size: int | None = None
    seed: int = 0
    loss: str | None = None
