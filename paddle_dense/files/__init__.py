"""Any weight file to arrays and what it states, and arrays to a file; nothing in a file is executed.

`open_weights` reads a file of either framework with all that it states; `read_weights` reads the tensors of Paddle's
files and safetensors, `read_checkpoint` those of PyTorch's files and safetensors. `write_weights` writes ``.pdparams``
and ``.safetensors``, `write_torch` what torch.save writes.
"""

from paddle_dense.files.opened import WeightsFile, open_weights
from paddle_dense.files.torch_archive import write_torch
from paddle_dense.files.torch_file import Checkpoint, read_checkpoint
from paddle_dense.files.weights import read_metadata, read_weights, write_weights

__all__ = [
    "Checkpoint",
    "WeightsFile",
    "open_weights",
    "read_checkpoint",
    "read_metadata",
    "read_weights",
    "write_torch",
    "write_weights",
]
