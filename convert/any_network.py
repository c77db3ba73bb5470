"""Networks that are not this package's: converted by the layers that own the tensors, proved by running both."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Union

import numpy as np
from paddle import nn

from convert.conversion import check_targets, conclude
from convert.factories import call, function
from convert.mapping import Pairing, pair, read_mapping, refuse, write_proposal
from convert.options import Options, ParityOptions
from convert.parity.forward import load_torch_state
from convert.parity.network import compare_networks
from convert.pytorch import pytorch_fault
from convert.report import summarise
from convert.result import Result
from convert.verification import own_reference, unchecked
from paddle_dense.errors import WeightsError, naming
from paddle_dense.evaluation import on_cpu
from paddle_dense.files import WeightsFile, open_weights
from paddle_dense.files.reparametrised import whole_weights
from paddle_dense.files.sidecar import sidecar_path, write_with_sidecar
from paddle_dense.files.spelling import Selection
from paddle_dense.models.fitting import check_state, set_state
from paddle_dense.models.sources import made_of

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]
TorchWeights = Union[str, os.PathLike, Mapping[str, Any], "torch.nn.Module"]
_MAGNITUDE = ".weight_g"  # how the names of Paddle's weight_norm end
_IMAGE = 224  # pixels
_LOSS = "a function of the outputs that returns a scalar"
_INPUTS = "what both networks are run on: arrays, or tuples, lists and dicts of them"
_NOT_CHECKED = "there is no --reference MODULE:FACTORY of the PyTorch network, so the result was not checked against it"


@dataclass(frozen=True)
class Placed:
    """PyTorch's weights in their places in a Paddle network.

    Attributes:
        stored: PyTorch's tensors as they are stored.
        whole: the same with weights that are stored in parts computed, where Paddle's network has none in parts.
        pairing: which of them each of Paddle's tensors is made of.
        state: Paddle's tensors.
        notes: what was done, one sentence each.
    """

    stored: Arrays
    whole: Arrays
    pairing: Pairing
    state: Arrays
    notes: Sequence[str]

    def to_paddle(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Tensors by PyTorch's names, gradients for instance, by Paddle's and in its layout."""
        return made_of(tensors, self.pairing.chosen)

    def of(self, reference: torch.nn.Module) -> Arrays:
        """The tensors that the PyTorch network has: in parts where it has parts."""
        own = reference.state_dict()
        return self.stored if all(name in own for name in self.stored.keys() - self.whole.keys()) else self.whole


def fitted(
    network: nn.Layer,
    stored: Arrays,
    selection: Selection,
    given: Mapping[str, str] | None,
    allow_nonfinite: bool,
) -> Placed:
    """PyTorch's tensors in the places that they certainly have in a Paddle network.

    Args:
        network: of Paddle.
        stored: PyTorch's tensors.
        selection: what the user says of them.
        given: what the user says of their places.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Raises:
        WeightsError: a tensor has no certain place, does not fit, or holds what no network has.
    """
    notes: list[str] = []
    in_parts = any(name.endswith(_MAGNITUDE) for name in network.state_dict())
    whole = stored if in_parts else whole_weights(stored, notes)
    pairing = pair(network, whole, selection, given)
    refuse(pairing)
    names = {name: source.names[0] for name, source in pairing.chosen.items()}
    state = check_state(made_of(whole, pairing.chosen), network, (), allow_nonfinite, names)
    return Placed(stored, whole, pairing, state, [*notes, *pairing.notes])


@dataclass(frozen=True)
class Conversion:
    """What `convert` made of PyTorch's weights.

    Attributes:
        state: Paddle's tensors, by the Paddle network's names.
        pairs: PyTorch's names of what each is made of.
        left_out: PyTorch's tensors that have no place.
        result: how far both networks agree, as `write_report` takes it.
    """

    state: Arrays
    pairs: dict[str, tuple[str, ...]]
    left_out: list[str]
    result: Result


def convert(
    torch_state: TorchWeights,
    paddle_layer: nn.Layer,
    reference: torch.nn.Module | None = None,
    *,
    inputs: Any = None,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    part: str = "",
    mapping: str | os.PathLike | Mapping[str, str] | None = None,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
    atol: float = 1e-5,
    allow_nonfinite: bool = False,
) -> Conversion:
    """Put PyTorch's weights into any Paddle network, and check it against the PyTorch network.

    Args:
        torch_state: a state_dict, of tensors or arrays; a module; or the path of a file, in which nothing is executed.
        paddle_layer: the Paddle network; it has the weights afterwards, and its own again after an error.
        reference: the PyTorch network; it is given the weights too. Without it nothing is checked.
        inputs: what both are run on, as arrays: one, a tuple for several, a dict for keyword arguments; random numbers
            of a shape that the first layer takes unless given.
        drop, rename, part: see `paddle_dense.load_weights`.
        mapping: a mapping file as ``--propose`` writes it, or Paddle's names and PyTorch's.
        loss, steps, atol: see `compare`.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Raises:
        WeightsError: a tensor has no certain place, does not fit, or the two networks differ.
        ValueError: the networks cannot be run on the inputs.
    """
    label, stored = _stored(torch_state)
    selection = Selection(drop, tuple((rename or {}).items()), part)
    given = _given(mapping)
    before = {name: tensor.numpy() for name, tensor in paddle_layer.state_dict().items()}
    result = Result(label, arch=type(paddle_layer).__name__, atol=atol)
    with naming(label), on_cpu():
        weights = fitted(paddle_layer, stored, selection, given, allow_nonfinite)
        set_state(paddle_layer, weights.state)
        try:
            result.left_out, result.warnings = list(weights.pairing.left_out), list(weights.notes)
            if reference is not None:
                prove(weights, reference, paddle_layer, inputs, result, loss, steps)
        except BaseException:
            set_state(paddle_layer, before)
            raise
    pairs = {name: source.names for name, source in weights.pairing.chosen.items()}
    return Conversion(weights.state, pairs, result.left_out, result)


def compare(
    torch_module: torch.nn.Module,
    paddle_layer: nn.Layer,
    inputs: Any = None,
    *,
    rename: Mapping[str, str] | None = None,
    mapping: str | os.PathLike | Mapping[str, str] | None = None,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
    atol: float = 1e-5,
) -> Result:
    """Run a PyTorch and a Paddle network, with the weights that they have, on the same inputs.

    Args:
        torch_module, paddle_layer: the networks; both stay as they are.
        inputs: as arrays: one, a tuple for several, a dict for keyword arguments; random numbers of a shape that the
            first layer takes unless given.
        rename, mapping: how the layers pair whose names differ, see `convert`.
        loss: of the outputs, given as both frameworks' tensors, a scalar; for the gradients and steps.
        steps: SGD steps to compare, each with loss and gradients.
        atol: largest difference allowed, relative to the scale of each output.

    Returns:
        The figures; `difference` is None where both do the same, and names the first layer that does not otherwise.

    Raises:
        WeightsError: the tensors of the two do not pair.
        ValueError: the networks cannot be run on the inputs.
    """
    given = _given(mapping)
    result = Result(type(torch_module).__name__, arch=type(paddle_layer).__name__, atol=atol)
    stored = _arrays(torch_module.state_dict())
    with on_cpu():
        pairing = pair(paddle_layer, stored, Selection(rename=tuple((rename or {}).items())), given)
        refuse(pairing)
        run_both(Placed(stored, stored, pairing, {}, []), torch_module, paddle_layer, inputs, result, loss, steps)
    return result


def convert_file(file: WeightsFile, target: Path, options: Options, result: Result) -> Result:
    """Convert a PyTorch file for the user's own Paddle network; nothing is written if the two networks differ.

    Args:
        file: what `open_weights` read, its SHA-256 with it and weights in parts left so.
        target: the file to write; its sidecar ``.json`` is written next to it.
        options: see `Options`; `network` says which network.
        result: to be filled in as the conversion goes.

    Raises:
        WeightsError: a tensor has no certain place, does not fit, or the two networks differ.
        ValueError: the user's code cannot be run.
        OSError: the target cannot be written.
    """
    start = time.perf_counter()
    check_targets((target, sidecar_path(target)), (file.path, *file.shards), options)
    with on_cpu(), naming(file.path):
        network, placed = place(file, options, result)
        fault = pytorch_fault() if options.verify and options.reference else None
        if fault or not options.reference:
            result.warnings.append(_NOT_CHECKED if not options.reference else unchecked(fault))
        elif options.verify:
            prove(placed, own_reference(options.reference), network, own_inputs(options), result)
    conclude(result, file, target, start)
    described = result.provenance()
    described["network"] = described.pop("arch")
    write_with_sidecar(placed.state, target, described, options.force)
    result.size = target.stat().st_size
    return result


def compare_file(file: WeightsFile | None, options: ParityOptions, result: Result) -> Result:
    """Compare the user's own networks, with the weights of a file or the reference's own. Nothing is written.

    Args:
        file: what `open_weights` read, weights in parts left so; None for none.
        options: see `ParityOptions`; `network` and `reference` say which networks.
        result: to be filled in as the comparison goes.

    Raises:
        WeightsError: a tensor has no certain place or does not fit.
        ValueError: the user's code cannot be run.
    """
    start = time.perf_counter()
    reference = own_reference(options.reference or "")
    with on_cpu(), naming(result.input):
        if file is None:
            file = WeightsFile(Path(result.input), "PyTorch", 0, _arrays(reference.state_dict()), None, {})
        network, placed = place(file, options, result)
        set_state(network, placed.state)
        loss = function("--loss", options.loss, _LOSS) if options.loss else None
        load_torch_state(reference, placed.of(reference))
        run_both(placed, reference, network, own_inputs(options), result, loss, options.steps, options.learning_rate)
    result.error, result.seconds = result.difference, time.perf_counter() - start
    return result


def propose(file: WeightsFile, options: Options) -> Pairing:
    """Write where the tensors of a file could go in the user's own network, to be read and given back."""
    with on_cpu(), naming(file.path):
        pairing = pair(own_network(options.network or ""), whole_weights(file.tensors, []), options.selection)
    write_proposal(pairing, options.propose, options.force)
    return pairing


def place(file: WeightsFile, options: Options, result: Result) -> tuple[nn.Layer, Placed]:
    """The user's own network and the file's tensors in their places in it."""
    network = own_network(options.network or "")
    given = read_mapping(options.map) if options.map else None
    placed = fitted(network, file.tensors, options.selection, given, options.allow_nonfinite)
    result.arch, result.params = options.network, sum(int(parameter.size) for parameter in network.parameters())
    result.container, result.left_out = file.container, list(placed.pairing.left_out)
    result.warnings += [*file.warnings, *placed.notes]
    if options.report:
        result.weights = summarise(placed.state)
    return network, placed


def own_network(name: str) -> nn.Layer:
    """The Paddle network that the user's ``MODULE:FACTORY`` makes."""
    network = call("--network", name, "the Paddle network")
    if not isinstance(network, nn.Layer):
        raise ValueError(f"--network {name} returned {type(network).__name__}: return a paddle.nn.Layer")
    return network


def own_inputs(options: Options) -> Any:
    """What the user's ``--inputs`` returns, None without."""
    return call("--inputs", options.inputs, _INPUTS) if options.inputs else None


def prove(
    placed: Placed,
    reference: torch.nn.Module,
    network: nn.Layer,
    inputs: Any,
    result: Result,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
) -> None:
    """Give both networks the weights and run them; WeightsError with the first layer that differs."""
    load_torch_state(reference, placed.of(reference))
    set_state(network, placed.state)
    run_both(placed, reference, network, inputs, result, loss, steps)
    if result.difference:
        raise WeightsError(f"Paddle's and PyTorch's network differ: {result.difference}")


def run_both(
    placed: Placed,
    reference: torch.nn.Module,
    network: nn.Layer,
    inputs: Any,
    result: Result,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
    learning_rate: float = 0.01,
) -> None:
    """Compare both networks as they are; the figures and warnings go into the result."""
    found = compare_networks(
        reference,
        network,
        example_inputs(reference) if inputs is None else inputs,
        own_name=placed.pairing.own_name,
        to_paddle=placed.to_paddle,
        loss=loss,
        steps=steps,
        learning_rate=learning_rate,
        atol=result.atol,
    )
    result.parity, result.layers, result.training = found.parity, found.layers, found.training
    result.cause, result.verified = found.cause, found.agrees
    result.warnings += found.warnings


def example_inputs(network: torch.nn.Module) -> np.ndarray:
    """Random numbers of a shape that the first layer with weights takes.

    Raises:
        ValueError: it is no layer of which that is known.
    """
    import torch

    random, shapes = np.random.default_rng(0), {1: (64,), 2: (_IMAGE, _IMAGE), 3: (16, 64, 64)}
    first = next((module for module in network.modules() if list(module.parameters(recurse=False))), network)
    if isinstance(first, torch.nn.Embedding):
        return random.integers(first.num_embeddings, size=(2, 16))
    if isinstance(first, torch.nn.Linear):
        return random.standard_normal((2, first.in_features), np.float32)
    for axes, kind in enumerate((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), 1):
        if isinstance(first, kind):
            return random.standard_normal((2, first.in_channels, *shapes[axes]), np.float32)
    raise ValueError(
        f"the network begins with {type(first).__name__}, which does not show what it takes: give both networks' "
        f"inputs with --inputs MODULE:FUNCTION (in Python: inputs=)"
    )


def _stored(weights: TorchWeights) -> tuple[str, Arrays]:
    """What to call PyTorch's weights in messages, and the tensors."""
    if isinstance(weights, (str, os.PathLike)):
        return os.fspath(weights), open_weights(Path(weights), "pytorch", whole=False).tensors
    if hasattr(weights, "state_dict"):
        return type(weights).__name__, _arrays(weights.state_dict())
    return "the state_dict", _arrays(weights)


def _arrays(state: Mapping[str, Any]) -> Arrays:
    return {
        name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        for name, value in state.items()
    }


def _given(mapping: str | os.PathLike | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """What the user says of pairs, read from the mapping file where it is one."""
    return read_mapping(Path(mapping)) if isinstance(mapping, (str, os.PathLike)) else mapping
