"""What networks take and answer: tensors, or tuples, lists and dicts of them, as arrays with names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import paddle

from paddle_dense.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from paddle import nn

Arrays = dict[str, np.ndarray]
OUTPUT = "out"


def run(network: Callable[..., Any], inputs: Any) -> Any:
    """Call a network: a dict holds keyword arguments, a tuple or list positional ones, anything else is the one."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


def for_torch(inputs: Any, model: torch.nn.Module) -> Any:
    """The inputs as PyTorch's tensors on the model's device; floats have the model's dtype, other numbers stay."""
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    floats = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())
    device = tensors[0].device if tensors else None

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = torch.tensor(array, device=device)
        return value.to(floats) if value.is_floating_point() else value

    return _each(inputs, tensor)


def for_paddle(inputs: Any, model: nn.Layer) -> Any:
    """The inputs as Paddle's tensors; floats have the model's dtype, other numbers stay."""
    floats = next((p.dtype for p in model.parameters() if paddle.is_floating_point(p)), paddle.get_default_dtype())
    return _each(inputs, lambda array: paddle.to_tensor(array, dtype=floats if array.dtype.kind == "f" else None))


def _each(values: Any, tensor: Callable[[np.ndarray], Any]) -> Any:
    """The same structure with a tensor for each array; None, and what is no array, stays."""
    if isinstance(values, Mapping):
        return {key: _each(value, tensor) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return [_each(value, tensor) for value in values]
    if values is None or isinstance(values, (bool, int, float, str)):
        return values
    return tensor(as_array(values))


def as_array(tensor: Any) -> np.ndarray:
    """A tensor of either framework, or anything like an array; bfloat16, which NumPy lacks, becomes float32."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    if "bfloat16" in str(tensor.dtype):
        tensor = tensor.astype("float32") if hasattr(tensor, "astype") else tensor.float()
    return tensor.detach().cpu().numpy()


def named_arrays(output: Any) -> Arrays:
    """What a network or layer answers: "out" for one tensor, "out.0" in a tuple or list, the keys of a dict.

    Attributes of dataclasses count as keys; None is left out.

    Raises:
        ValueError: there is something that holds no tensors.
    """
    return {name: as_array(tensor) for name, tensor in named_tensors(output).items()}


def named_tensors(output: Any) -> dict[str, Any]:
    """The same as tensors."""
    return dict(_leaves(output, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if hasattr(value, "detach") or isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        yield name or OUTPUT, value
        return
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
    elif isinstance(value, (tuple, list)):
        items = [(f"{name or OUTPUT}.{number}", part) for number, part in enumerate(value)]
    elif is_dataclass(value):
        attributes = [(field.name, getattr(value, field.name)) for field in fields(value)]
        items = [(f"{name}.{key}" if name else key, part) for key, part in attributes]
    else:
        raise ValueError(
            f"{name or 'the network'} answers a {type(value).__name__}, which cannot be compared: return tensors, or "
            f"tuples, lists and dicts of them"
        )
    for path, part in items:
        yield from _leaves(part, path)


def paired(found: Arrays, expected: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    """Paddle's and PyTorch's array of each output: by name, or in order where only the names differ.

    Args:
        found: of Paddle.
        expected: of PyTorch.

    Raises:
        WeightsError: they are not the same number of arrays of the same shapes.
    """
    if found.keys() == expected.keys():
        found = {name: found[name] for name in expected}
    shapes = [[list(array.shape) for array in arrays.values()] for arrays in (expected, found)]
    if shapes[0] != shapes[1] or not expected:
        theirs, ours = (" and ".join(map(str, some)) or "nothing" for some in shapes)
        raise WeightsError(f"PyTorch answers {theirs} and Paddle {ours}: make both networks return the same tensors")
    return list(zip(found.values(), expected.values()))
