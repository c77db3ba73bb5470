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
from convert.mapping import Order, Pairing, executed, pair, refuse
from convert.mapping_file import read_mapping, write_proposal
from convert.options import Options, ParityOptions
from convert.parity.forward import evaluation, load_torch_state, reason_of
from convert.parity.network import compare_networks
from convert.parity.structures import for_paddle, for_torch, run
from convert.pytorch import pytorch_fault
from convert.report import summarise
from convert.result import Result
from convert.verification import own_reference, unchecked
from paddle_dense.errors import WeightsError, is_of_memory, naming
from paddle_dense.evaluation import brought_to_cpu, on_cpu
from paddle_dense.files import WeightsFile, open_weights
from paddle_dense.files.names import STATISTICS
from paddle_dense.files.reparametrised import whole_weights
from paddle_dense.files.sidecar import sidecar_path, write_with_sidecar
from paddle_dense.files.spelling import Selection
from paddle_dense.models.fitting import check_state, set_state
from paddle_dense.models.sources import made_of

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]
TorchWeights = Union[str, os.PathLike, Mapping[str, Any], "torch.nn.Module"]
Mapped = Union[str, os.PathLike, Mapping[str, str], None]
_IMAGE = 224  # pixels
_LOSS = "a function of the outputs and the inputs that returns a scalar"
_INPUTS = "what both networks are run on: arrays, or tuples, lists and dicts of them"
_NOT_CHECKED = (
    "the result was not checked: give the PyTorch network with --reference MODULE:FACTORY (in Python: reference=)"
)


@dataclass(frozen=True)
class Conversion:
    """What `convert` made of PyTorch's weights.

    Attributes:
        state: Paddle's tensors, by the Paddle network's names.
        pairs: PyTorch's names of what each is made of.
        left_out: PyTorch's tensors that have no place and need none.
        result: how far both networks agree, as `write_report` takes it.
    """

    state: Arrays
    pairs: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    result: Result


@dataclass(frozen=True)
class Tensors:
    """PyTorch's tensors.

    Attributes:
        stored: weights of weight_norm in parts.
        whole: the same weights computed.
        notes: what was done, one sentence each.
    """

    stored: Arrays
    whole: Arrays
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, file: WeightsFile) -> Tensors:
        """Those of a PyTorch file."""
        parts = file.checkpoint.parts if file.checkpoint else {}
        return cls(_in_parts(file.tensors, parts), file.tensors)

    @classmethod
    def in_state(cls, state: Mapping[str, Any]) -> Tensors:
        """Those of a state_dict, of tensors or arrays."""
        arrays = {
            name: value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            for name, value in state.items()
        }
        notes: list[str] = []
        whole, parts = whole_weights(arrays, notes)
        return cls(_in_parts(whole, parts), whole, notes)

    def fill(self, reference: torch.nn.Module) -> None:
        """Put them into the PyTorch network, which has the parts or the whole weights."""
        parts = self.stored.keys() - self.whole.keys()
        load_torch_state(reference, self.stored if parts <= reference.state_dict().keys() else self.whole)


def _in_parts(whole: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays:
    stored: Arrays = {}
    for name, value in whole.items():
        stored.update(parts.get(name, {name: value}))
    return stored


# In Python


def convert(
    torch_state: TorchWeights,
    paddle_layer: nn.Layer,
    reference: torch.nn.Module | None = None,
    *,
    inputs: Any = None,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    part: str = "",
    mapping: Mapped = None,
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
        mapping: the path of a mapping file, or PyTorch's name for each of Paddle's, where names do not show it.
        loss, steps, atol: see `compare`.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Raises:
        WeightsError: a tensor has no certain place, does not fit, or the two networks differ.
        ValueError: the networks cannot be run on the inputs.
    """
    label, tensors = _tensors(torch_state)
    selection = Selection(drop, tuple((rename or {}).items()), part)
    before = {name: tensor.numpy() for name, tensor in paddle_layer.state_dict().items()}
    result = _result(label, paddle_layer, reference, atol)
    with naming(label), on_cpu():
        pairing, state = placed(paddle_layer, tensors, selection, mapping, allow_nonfinite)
        result.left_out, result.warnings = list(pairing.left_out), [*tensors.notes, *pairing.notes]
        set_state(paddle_layer, state)
        try:
            if reference is None:
                result.warnings.append(_NOT_CHECKED)
            else:
                tensors.fill(reference)
                run_both(pairing, reference, paddle_layer, inputs, result, loss, steps)
                refuse_difference(result)
        except BaseException:
            set_state(paddle_layer, before)
            raise
    return Conversion(state, {name: source.names for name, source in pairing.chosen.items()}, pairing.left_out, result)


def compare(
    torch_module: torch.nn.Module,
    paddle_layer: nn.Layer,
    inputs: Any = None,
    *,
    rename: Mapping[str, str] | None = None,
    mapping: Mapped = None,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
    learning_rate: float = 0.01,
    atol: float = 1e-5,
) -> Result:
    """Run a PyTorch and a Paddle network, with the weights that they have, on the same inputs; both stay as they are.

    Args:
        torch_module: the PyTorch network.
        paddle_layer: the Paddle network.
        inputs, rename, mapping: see `convert`.
        loss: of the outputs, as a network gives them, and the inputs, as tensors of either framework: a scalar. The
            mean of the squares of the outputs less fixed random numbers unless given.
        steps: SGD steps to compare, each with loss and gradients; 0 for none.
        learning_rate: of these steps.
        atol: largest difference allowed, relative to the scale of each output, gradient and update.

    Returns:
        The figures; `difference` is None where both do the same, and otherwise says where and why they do not.

    Raises:
        WeightsError: the tensors of the two do not pair.
        ValueError: the networks cannot be run on the inputs.
    """
    result = _result(type(torch_module).__name__, paddle_layer, torch_module, atol)
    selection = Selection(rename=tuple((rename or {}).items()))
    with on_cpu():
        pairing = pair(paddle_layer, Tensors.in_state(torch_module.state_dict()).stored, selection, _given(mapping))
        refuse(pairing)
        run_both(pairing, torch_module, paddle_layer, inputs, result, loss, steps, learning_rate)
    return result


def _result(label: str, network: nn.Layer, reference: torch.nn.Module | None, atol: float) -> Result:
    against = type(reference).__name__ if reference is not None else None
    return Result(
        label, arch=type(network).__name__, params=_count_parameters(network), checked_against=against, atol=atol
    )


def _tensors(weights: TorchWeights) -> tuple[str, Tensors]:
    """What to call PyTorch's weights in messages, and the tensors."""
    if isinstance(weights, (str, os.PathLike)):
        return os.fspath(weights), Tensors.of(open_weights(Path(weights), "pytorch"))
    if isinstance(weights, Mapping):
        return "the state_dict", Tensors.in_state(weights)
    return type(weights).__name__, Tensors.in_state(weights.state_dict())


def _given(mapping: Mapped) -> Any:
    """What the user says of pairs, read from the mapping file where it is one."""
    return read_mapping(mapping) if isinstance(mapping, (str, os.PathLike)) else mapping


# The commands


def convert_file(file: WeightsFile, target: Path, options: Options, result: Result) -> Result:
    """Convert a PyTorch file for the user's own Paddle network; nothing is written if the two networks differ.

    Args:
        file: what `open_weights` read, its SHA-256 with it.
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
    tensors = Tensors.of(file)
    with on_cpu(), naming(file.path):
        network, pairing, state = _for_own_network(file, tensors, options, result)
        fault = pytorch_fault() if options.verify and options.reference else None
        if fault or not options.reference:
            result.warnings.append(unchecked(fault) if fault else _NOT_CHECKED)
        elif options.verify:
            reference = own_reference(options.reference)
            tensors.fill(reference)
            set_state(network, state)
            run_both(pairing, reference, network, own_inputs(options), result)
            result.checked_against = options.reference
            refuse_difference(result)
    conclude(result, file, target, start)
    described = result.provenance()
    described["network"] = described.pop("arch")
    write_with_sidecar(state, target, described, options.force)
    result.size = target.stat().st_size
    return result


def compare_file(file: WeightsFile | None, options: ParityOptions, result: Result) -> Result:
    """Compare the user's own networks, with the weights of a file or the PyTorch network's own. Nothing is written.

    Args:
        file: what `open_weights` read; None for none.
        options: see `ParityOptions`; `network` and `reference` say which networks.
        result: to be filled in as the comparison goes.

    Raises:
        WeightsError: a tensor has no certain place or does not fit.
        ValueError: the user's code cannot be run.
    """
    start = time.perf_counter()
    reference = own_reference(options.reference or "")
    loss = function("--loss", options.loss, _LOSS) if options.loss else None
    with on_cpu(), naming(result.input):
        if file:
            tensors = Tensors.of(file)
        else:
            own = Tensors.in_state(reference.state_dict()).stored
            tensors = Tensors(own, own)
        network, pairing, state = _for_own_network(file, tensors, options, result)
        tensors.fill(reference)
        set_state(network, state)
        run_both(pairing, reference, network, own_inputs(options), result, loss, options.steps, options.learning_rate)
    result.checked_against = options.reference
    result.error, result.seconds = result.difference, time.perf_counter() - start
    return result


def propose(file: WeightsFile, options: Options) -> Pairing:
    """Write where the tensors of a file could go in the user's own network, to be read and given back.

    With a PyTorch network, the order is that in which the layers of both are run, and not that of their names.
    """
    with on_cpu(), naming(file.path):
        network, tensors = own_network(options.network or ""), Tensors.of(file).stored
        order = _order_of_running(network, options) if options.reference else None
        pairing = pair(network, tensors, options.selection, order=order)
    write_proposal(pairing, options.propose or "", options.force)
    return pairing


def _order_of_running(network: nn.Layer, options: Options) -> Order:
    """In which order the layers of both networks are run on the user's inputs."""
    reference = own_reference(options.reference or "")
    inputs = own_inputs(options) if options.inputs else example_inputs(reference)
    try:
        with evaluation(reference, network):
            return Order(
                executed(network, lambda: run(network, for_paddle(inputs, network))),
                executed(reference, lambda: run(reference, for_torch(inputs, reference))),
            )
    except Exception as error:  # a network of the user's own may raise anything
        if is_of_memory(error):
            raise
        raise ValueError(
            f"the networks cannot be run on the inputs ({reason_of(error)}), which would show the order of their "
            f"layers: give what their forward takes with --inputs MODULE:FUNCTION, or leave out --reference"
        ) from error


def own_network(name: str) -> nn.Layer:
    """The Paddle network that the user's ``MODULE:FACTORY`` makes."""
    network = call("--network", name, "the Paddle network")
    if not isinstance(network, nn.Layer):
        raise ValueError(f"--network {name} returned {type(network).__name__}: return a paddle.nn.Layer")
    return network


def own_inputs(options: Options) -> Any:
    """What the user's ``--inputs`` returns, None without."""
    return call("--inputs", options.inputs, _INPUTS) if options.inputs else None


def _for_own_network(
    file: WeightsFile | None, tensors: Tensors, options: Options, result: Result
) -> tuple[nn.Layer, Pairing, Arrays]:
    """The user's own network, and the tensors, which are the file's if there is one, in their places in it."""
    network = own_network(options.network or "")
    pairing, state = placed(network, tensors, options.selection, options.map, options.allow_nonfinite)
    result.arch, result.params = options.network, _count_parameters(network)
    result.left_out, result.atol = list(pairing.left_out), options.atol
    if file:
        result.container = file.container
        result.warnings += file.warnings
    result.warnings += [*tensors.notes, *pairing.notes]
    if options.report:
        result.weights = summarise(state)
    return network, pairing, state


def _count_parameters(network: nn.Layer) -> int:
    """How many numbers learn; Paddle files BN's running statistics under parameters."""
    named = network.named_parameters()
    return sum(int(parameter.size) for name, parameter in named if name.rpartition(".")[2] not in STATISTICS.values())


# Both


def placed(
    network: nn.Layer, tensors: Tensors, selection: Selection, mapping: Mapped, allow_nonfinite: bool
) -> tuple[Pairing, Arrays]:
    """Which tensor of a Paddle network is made of which of PyTorch's, and the network's tensors.

    Args:
        network: of Paddle.
        tensors: of PyTorch.
        selection: what the user says of them.
        mapping: what the user says of their places.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Raises:
        WeightsError: a tensor has no certain place, does not fit, or holds what no network has.
    """
    pairing = pair(network, tensors.stored, selection, _given(mapping))
    refuse(pairing)
    own = {name: tensor.numpy() for name, tensor in network.state_dict().items() if name in pairing.untouched}
    names = {name: source.names[0] for name, source in pairing.chosen.items() if source.names}
    state = {**own, **made_of(tensors.stored, pairing.chosen)}
    return pairing, check_state(state, network, (), allow_nonfinite, names)


def run_both(
    pairing: Pairing,
    reference: torch.nn.Module,
    network: nn.Layer,
    inputs: Any,
    result: Result,
    loss: Callable[..., Any] | None = None,
    steps: int = 0,
    learning_rate: float = 0.01,
) -> None:
    """Compare both networks as they are; the figures and warnings go into the result."""
    # On a GPU, float32 is not always float32.
    found = compare_networks(
        reference,
        brought_to_cpu(network),
        example_inputs(reference) if inputs is None else inputs,
        own_name=pairing.own_name,
        to_paddle=lambda tensors: made_of(tensors, pairing.chosen),
        nonlinear={name: one.formula.text for name, one in pairing.chosen.items() if not one.formula.linear},
        loss=loss,
        steps=steps,
        learning_rate=learning_rate,
        atol=result.atol or 0.0,
    )
    result.parity, result.layers, result.training = found.parity, found.layers, found.training
    result.cause, result.verified = str(found.cause) if found.cause else None, found.agrees
    result.warnings += found.warnings


def refuse_difference(result: Result) -> None:
    """WeightsError if the two networks do not do the same."""
    if result.difference:
        raise WeightsError(f"Paddle's and PyTorch's network differ: {result.difference}")


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
