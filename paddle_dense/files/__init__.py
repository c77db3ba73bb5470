"""Any weight file to arrays and what it states, and arrays to a file; nothing in a file is executed.

`read_weights` reads Paddle's files and safetensors, `read_checkpoint` PyTorch's files and safetensors. `write_weights`
writes ``.pdparams`` and ``.safetensors``, `write_torch` what torch.save writes.
"""

from paddle_dense.files.torch_archive import write_torch
from paddle_dense.files.torch_file import Checkpoint, read_checkpoint
from paddle_dense.files.weights import read_metadata, read_weights, write_weights

__all__ = ["Checkpoint", "read_checkpoint", "read_metadata", "read_weights", "write_torch", "write_weights"]
