"""Which network a weight file of either framework holds, and its tensors fitted to that network.

A file is first fitted in the form that it has, since condensing leaves out much that tells of damage, and what it
states of its layers is held against the network. Only then is the trained form condensed. Loading and converting both
do it here, so they come to the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from paddle_dense.condensing import condensed_form
from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.opened import WeightsFile, refuse_other_layout
from paddle_dense.files.sidecar import network_in, sidecar_path, unreadable_sidecar
from paddle_dense.files.spelling import EVERYTHING, Selection
from paddle_dense.layers.budget import Budget
from paddle_dense.models.fitting import check_state, with_other_inputs, without_head, without_other_classifier
from paddle_dense.models.matching import Match, match
from paddle_dense.models.network import Network, first_convolution, network_class
from paddle_dense.models.recognise import NOTHING_STATED, Architecture, settle
from paddle_dense.models.stated import check_stated, read_statements


class Identified(NamedTuple):
    """Which network a weight file holds.

    Attributes:
        architecture: the network and its numbers, in the form that the file has.
        state: the file's tensors under this package's names, in Paddle's layout.
        original: the same under PyTorch's names and in PyTorch's layout.
        matched: which tensors of the file they are.
        outline: the network without its memory, or with it, where there is one already.
    """

    architecture: Architecture
    state: dict[str, np.ndarray]
    original: dict[str, np.ndarray]
    matched: Match
    outline: Network | None = None

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one sentence each."""
        return [*self.architecture.warnings, *self.matched.warnings()]


def identify(
    file: WeightsFile,
    arch: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    selection: Selection = EVERYTHING,
) -> Identified:
    """Find out which network a weight file holds: what its sidecar says, or else what the tensors show.

    Args:
        file: what `open_weights` gave.
        arch: the preset that it is said to be, whatever the sidecar says.
        overrides: arguments of the network that the caller knows better.
        selection: what the caller says of the tensors.

    Raises:
        WeightsError: no known network has such tensors, `arch` has other numbers, or the sidecar cannot be used.
        ValueError: `arch` or an argument is unknown.
    """
    if file.sidecar_fault and not arch:
        raise file.sidecar_fault
    own = (file.sidecar or {}).get("network")
    if own and not arch:
        raise WeightsError(
            f"{file.path}: holds the weights of a network of your own, {shown(str(own))}: build it, and fill it with "
            f"paddle_dense.load_weights(network, path)"
        )
    described = None
    if file.sidecar and "arch" in file.sidecar and not arch:
        described = network_in(file.sidecar)
        if described is None:
            raise unreadable_sidecar(sidecar_path(file.path))
    overrides, in_pytorch = overrides or {}, file.checkpoint is not None
    headless, features_only = overrides.get("num_classes") == 0, overrides.get("features_only") is True
    with naming(file.path):
        refuse_other_layout(file)
        known = _described_class(described[0]) if described else None
        matched = match(file.tensors, in_pytorch, selection, known, headless, features_only)
        tensors = matched.state
        state, original = (to_paddle(tensors), tensors) if in_pytorch else (tensors, to_torch(tensors))
        if described is None:
            stated = read_statements(file.checkpoint, matched) if file.checkpoint else NOTHING_STATED
            found = _with_inner_head(settle(matched, arch, overrides, stated), file, matched)
            return Identified(found, state, original, matched)
        name, config = described
        try:
            found = Architecture(name, matched.network, config, budget=Budget.of(state))
            outline = found.outline()
        except ValueError as error:
            raise _no_network(error) from error
        architecture = replace(found, config={**config, **overrides})
        return Identified(architecture, state, original, matched, None if overrides else outline)


def _with_inner_head(found: Architecture, file: WeightsFile, matched: Match) -> Architecture:
    """With a word on what a state_dict cannot show: whether its classifier is the last part of the layer around it."""
    if not matched.inner_head or (file.checkpoint and file.checkpoint.layers):
        return found
    layer = shown(matched.inner_head)
    said = (
        f"a state_dict does not reveal what follows {layer} in the layer around it, a Softmax or Sigmoid for instance: "
        f"the outputs are those of {layer}"
    )
    return replace(found, assumed={**found.assumed, "outputs": matched.inner_head}, warnings=(*found.warnings, said))


def _described_class(arch: str) -> type[Network]:
    try:
        return network_class(arch)
    except ValueError as error:
        raise _no_network(error) from error


def _no_network(error: ValueError) -> WeightsError:
    return WeightsError(f"the sidecar .json describes no network of this package: {error}")


class Fitted(NamedTuple):
    """A file's tensors, each in its place in a network.

    Attributes:
        architecture: the network, in the form that was asked for.
        outline: the same, built without memory.
        state: its tensors, in its order.
        fresh: names of the tensors that the network keeps as it was built with.
        warnings: what the file states and the network leaves off, one sentence each.
    """

    architecture: Architecture
    outline: Network
    state: dict[str, np.ndarray]
    fresh: Sequence[str]
    warnings: list[str]


def fit(
    file: WeightsFile,
    found: Identified,
    overrides: Mapping[str, Any] | None = None,
    *,
    condensed: bool = True,
    adapting: bool = False,
    allow_nonfinite: bool = False,
    settled_by: str | None = None,
) -> Fitted:
    """Give each tensor of a file its place in the file's network, and condense the trained form.

    Args:
        file: what `open_weights` gave.
        found: the network that it holds.
        overrides: arguments of the network that the caller has changed.
        condensed: the form to return; a file in the condensed form stays in it.
        adapting: leave out a classifier for another number of classes than the network has, and sum or repeat the first
            convolution's weights for another number of channels.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        settled_by: what will settle who is right where the file states something else than the network computes, which
            is an error otherwise.

    Raises:
        WeightsError: the tensors do not fit, are no numbers that a network has or not condensed far enough, or the file
            states something else.
        ValueError: no network has the caller's numbers.
    """
    architecture, names = found.architecture, found.matched.names
    with naming(file.path):
        outline = found.outline or outlined(architecture, overrides)
        state = without_head(found.state, outline)
        adapted: list[str] = []
        fresh: list[str] = []
        if adapting:
            state, fresh = without_other_classifier(state, outline)
            state, adapted = with_other_inputs(state, outline, first_convolution(outline))
        state = check_state(state, outline, fresh, allow_nonfinite, names)
        said = adapted + check_stated(
            file.checkpoint, found.matched, architecture, outline, overrides or {}, settled_by
        )
        if condensed and architecture.config.get("condensed") is False:
            state, architecture = condensed_form(state, architecture)
            outline = outlined(architecture, overrides)
            state = check_state(state, outline, fresh, allow_nonfinite)
    return Fitted(architecture, outline, state, fresh, said)


def outlined(architecture: Architecture, overrides: Mapping[str, Any] | None = None) -> Network:
    """The network without its memory; numbers that make none are the caller's fault where the caller gave some.

    Raises:
        ValueError: there is none with the caller's numbers.
        WeightsError: there is none with the file's.
    """
    try:
        return architecture.outline()
    except ValueError as error:
        if overrides:
            raise
        raise WeightsError(f"holds tensors that make no network ({error}): take an undamaged checkpoint") from error
