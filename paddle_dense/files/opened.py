"""Whose file is it, and what does it hold: a weight file of either framework and its sidecar, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paddle_dense.errors import WeightsError, naming
from paddle_dense.files.foreign import foreign, is_optimizer
from paddle_dense.files.names import paddle_sign, pytorch_sign, refuse_mixture
from paddle_dense.files.shards import Shards, contents
from paddle_dense.files.sidecar import in_one_moment, read_sidecar
from paddle_dense.files.torch_file import Checkpoint, read_checkpoint
from paddle_dense.files.weights import (
    PYTORCH_MAGIC,
    ZIP_MAGIC,
    is_safetensors,
    read_file,
    read_metadata,
    read_weights,
)
from paddle_dense.process import signals_waiting

Framework = Literal["pytorch", "paddle"]
AS_PYTORCHS = (
    "write its tensors as PyTorch's, with write_weights(read_weights(PATH), 'NAME.safetensors', {'format': 'pt'}), and "
    "take that file"
)
_HEAD = 32  # bytes from the beginning that tell one format from another


@dataclass(frozen=True)
class WeightsFile:
    """A weight file that has been read.

    Attributes:
        path: its path.
        format: how it is written, in words.
        size: in bytes; that of the archive where it is in one, and of an index and its shards together.
        tensors: arrays under the file's own names, in its order; without the prefixes of PyTorch's wrappers.
        checkpoint: what PyTorch's file holds besides; None for Paddle's file.
        metadata: the texts in the header of a .safetensors file.
        sidecar: what the file ``NAME.json`` next to a Paddle file says of it, or None.
        sidecar_fault: why that cannot be used.
        digests: see `digest`.
        shards: the paths of the files that it is the index of.
    """

    path: Path
    format: str
    size: int
    tensors: dict[str, np.ndarray]
    checkpoint: Checkpoint | None
    metadata: dict[str, str]
    sidecar: dict[str, Any] | None = None
    sidecar_fault: WeightsError | None = None
    digests: Mapping[str, Future[str]] = field(default_factory=dict)
    shards: Sequence[Path] = ()

    @property
    def container(self) -> str | None:
        """Where in PyTorch's file the tensors were, such as "state_dict_ema"; None for Paddle's file."""
        return self.checkpoint.container if self.checkpoint else None

    def described(self, num_classes: int) -> dict[str, Any]:
        """What the file says of a network with so many classes, as a sidecar does; of a PyTorch file, their names."""
        if not self.checkpoint:
            return self.sidecar or {}
        names = self.checkpoint.classes or []
        return {"classes": names} if names and len(names) == num_classes else {}

    @property
    def warnings(self) -> list[str]:
        """What the user should know about the tensors, one sentence each."""
        return list(self.checkpoint.warnings) if self.checkpoint else []

    def digest(self, kind: str = "sha256") -> str:
        """A hash that was asked for, of the very bytes that were read.

        Of shards it is that of the index and all of them in the order of their names, one after the other, as in
        ``cat model.safetensors.index.json model-*.safetensors | sha256sum``.
        """
        return self.digests[kind].result()


def open_weights(
    path: Path,
    framework: Framework | None = None,
    ema: bool = True,
    hashes: Sequence[str] = (),
    key: str | None = None,
) -> WeightsFile:
    """Read a weight file, and a Paddle file's sidecar.

    Nothing in the file is executed.

    Args:
        path: ``.pth``, ``.pth.tar``, ``.pt``, ``.safetensors``, ``.pdparams``, or the ``.index.json`` of shards.
        framework: whose file it is; its content decides unless given.
        ema: take the EMA weights where a PyTorch file has them.
        hashes: names of hashes to compute, in threads of their own.
        key: take the weights under this key of a PyTorch file instead.

    Raises:
        WeightsError: the file cannot be read, is damaged, or its tensors could only be had by running it.
        HostileFileError: it asks to run code.
    """
    opened: list[WeightsFile] = []

    def read() -> dict[str, Any] | None:
        opened.clear()  # before memory is needed for it again
        opened.append(_read(path, framework, ema, hashes, key))
        return None if opened[0].checkpoint else read_sidecar(path, opened[0].tensors)

    try:
        sidecar = in_one_moment(path, read)
    except WeightsError as fault:
        if not opened:
            raise
        return replace(opened[0], sidecar_fault=fault)
    return replace(opened[0], sidecar=sidecar)


def refuse_other_layout(file: WeightsFile, own: Container[str] = ()) -> None:
    """See that linear layers lie as the file's kind says: a square one would fit as it is, and compute something else.

    Args:
        file: what `open_weights` gave.
        own: names that the Paddle network has itself, which show nothing.

    Raises:
        WeightsError: a PyTorch file has Paddle's names, a Paddle file has PyTorch's, or either has both.
    """
    theirs, ours = pytorch_sign(file.tensors, file.metadata, own), paddle_sign(file.tensors)
    if theirs and ours:
        refuse_mixture(name for name in file.tensors if name not in own)
    if ours and file.checkpoint:
        raise WeightsError(
            f"has {ours} already, so its linear layers lie as in Paddle: write its tensors to a Paddle file as they "
            f"are, with write_weights(read_checkpoint(PATH).state, 'NAME.pdparams')"
        )
    if theirs and not file.checkpoint:
        raise WeightsError(f"has {theirs}, and PyTorch lays linear layers out differently: {AS_PYTORCHS}")


def _read(path: Path, framework: Framework | None, ema: bool, hashes: Sequence[str], key: str | None) -> WeightsFile:
    with naming(path):
        whole = read_file(path)
        content = contents(path, whole)
    if isinstance(content, Shards):
        return _read_shards(path, framework, content, hashes, key)
    head, metadata, checkpoint = bytes(content[:_HEAD]), read_metadata(path, content), None
    if is_safetensors(content):
        format = "safetensors"
    elif head[:1] == b"\x80" and PYTORCH_MAGIC.to_bytes(10, "little") not in head:
        format = "pdparams"
    else:
        format = "PyTorch" if head[:4] == ZIP_MAGIC else "PyTorch, before 1.6"
    if framework == "paddle" or (framework is None and not format.startswith("PyTorch")):
        tensors = read_weights(path, content)
        if is_optimizer(tensors):
            raise WeightsError(f"{path}: is the state of Paddle's optimizer: give the .pdparams file saved with it")
        if framework is None and format == "safetensors" and pytorch_sign(tensors, metadata):
            framework = "pytorch"
    if framework == "pytorch" or format.startswith("PyTorch"):
        checkpoint = read_checkpoint(path, ema, content, key)
        tensors = checkpoint.state
        format = "safetensors, from PyTorch" if format == "safetensors" else format
    elif key is not None:
        raise WeightsError(f"{path}: is Paddle's, where weights have no key: leave --key out (in Python: key)")
    format += ", unpacked" if content is not whole else ""
    return WeightsFile(path, format, len(whole), tensors, checkpoint, metadata, digests=_hashing([whole], hashes))


def _read_shards(
    path: Path, framework: Framework | None, shards: Shards, hashes: Sequence[str], key: str | None
) -> WeightsFile:
    if framework == "paddle":
        raise WeightsError(f"{path}: {foreign(shards.index)}")
    checkpoint = read_checkpoint(path, content=shards, key=key)
    parts = [shards.index, *shards.contents.values()]
    return WeightsFile(
        path,
        f"PyTorch, in {len(shards.contents)} shards",
        sum(map(len, parts)),
        checkpoint.state,
        checkpoint,
        {},
        digests=_hashing(parts, hashes),
        shards=[path.parent / shard for shard in shards.contents],
    )


def _hashing(parts: Sequence[memoryview], hashes: Sequence[str]) -> dict[str, Future[str]]:
    """Hashes need no turn of the interpreter, so they are free while a framework loads."""
    threads = ThreadPoolExecutor(max(len(hashes), 1))
    with signals_waiting():
        found = {kind: threads.submit(_digest, kind, parts) for kind in hashes}
    threads.shutdown(wait=False)
    return found


def _digest(kind: str, parts: Sequence[memoryview]) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
