"""What is no weight file of this package, by first and last bytes, names or classes: what it is and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from paddle_dense.errors import shown
from paddle_dense.files.unpickle import Inert, Name

_SAVE = "load it with its own library, and save the PyTorch network's state_dict with torch.save"
_MAX_HEAD, _MAX_JSON = 400, 10_000_000  # bytes from the beginning that are looked at
_LEVELDB_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of the index of a TensorFlow checkpoint
_BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS in place of the file: fetch the file with git lfs pull",
    b"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes: {_SAVE}",
    b"BZh": "is compressed with bzip2: unpack it with bunzip2",
    b"\xfd7zXZ\x00": "is compressed with xz: unpack it with unxz",
    b"7z\xbc\xaf'\x1c": "is a 7z archive: unpack it with 7z x",
    b"Rar!": "is a RAR archive: unpack it with unrar x",
    b"model_checkpoint_path:": f"is the list of a TensorFlow run's checkpoints: {_SAVE}",
    b"\x93NUMPY": f"is an array of NumPy without a tensor's name: {_SAVE}",
}
_EXPORTED = "give the .pdparams file that it was exported from"
_DISTRIBUTED = (
    "of torch.distributed.checkpoint: turn the folder into one file with python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NAME.pth"
)
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head)", re.IGNORECASE)
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12.{1,40}?[\x1a-\x3a]|\x3a)", re.DOTALL)
_PDMODEL = re.compile(rb"\n[\x80-\xff]{0,4}[\0-\x7f]\x08\0\x10\xff{9}\x01")  # its first block, whose parent is -1
# Of an optimizer's tensors: the parameter's name, which is Paddle's own or the user's, what it is, and a number.
_OPTIMIZER = re.compile(r"(\.[wb]_\d+_\w+|_(moment\w*|velocity|beta\d_pow_acc))_\d+$")
_JSON = re.compile(rb"\s*\{\s*[\"}]")
_PDIPARAMS = bytes(16)  # versions and levels of its first tensor, all 0


def foreign(data: memoryview) -> str | None:
    """What a file is that is no weight file, with what to do, as the end of a sentence; None for all others."""
    head = bytes(data[:_MAX_HEAD])
    known = next((said for begin, said in _BEGINNINGS.items() if head.startswith(begin)), None)
    if known:
        return known
    if _PAGE.match(head):
        return (
            "is a web page that was saved in place of the file, such as a login, an error or a warning of the size: "
            "download the file itself, by its direct link"
        )
    if head[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model: {_SAVE}"
    if bytes(data[-8:]) == _LEVELDB_END:
        return f"is the index of a TensorFlow checkpoint: {_SAVE}"
    if head[:16] == _PDIPARAMS and len(data) > 24:
        return (
            "is Paddle's .pdiparams, the weights of an exported program without their names: give the .pdparams file "
            "that the program was exported from"
        )
    if _ONNX.match(head):
        return "is an ONNX model: give the PyTorch checkpoint that it was exported from"
    if _PDMODEL.match(head):
        return f"is a program that Paddle exported, a .pdmodel: {_EXPORTED}"
    if _JSON.match(head):
        return _json(bytes(data[:_MAX_JSON]))
    return None


def _json(text: bytes) -> str:
    """What a JSON file next to weights is, with what to do, as the end of a sentence."""
    if b'"weight_map"' in text:
        return "is the index of a PyTorch checkpoint: turn it into a Paddle file with python -m convert.torch2paddle"
    if b'"magic":"pir"' in text[:_MAX_HEAD].replace(b" ", b""):
        return f"is a program that Paddle 3 exported: {_EXPORTED}"
    return "is JSON and holds no tensors: give the weight file that it describes"


def foreign_by_name(name: str) -> str | None:
    """The same of a file that is known by its name alone."""
    if name.endswith(".distcp") or name == ".metadata":
        return f"is a part of a checkpoint {_DISTRIBUTED}"
    return None


def folder(path: str | os.PathLike) -> str:
    """The same of a folder; OSError if it cannot be read."""
    names = sorted(os.listdir(path))
    if any(map(foreign_by_name, names)):
        return f"is the folder of a checkpoint {_DISTRIBUTED}"
    index = next((name for name in names if name.endswith(".index.json")), None)
    return f"is not a file: give {shown(index) if index else 'the weight file itself'}{' in it' * bool(index)}"


def is_optimizer(names: Collection[str]) -> bool:
    """Whether tensors of these names are what Paddle's optimizers save."""
    return bool(names) and all(map(_OPTIMIZER.search, names))


def sharded(name: object, value: object) -> str | None:
    """What is wrong with an object of a file that is one process's part of a tensor, as FSDP saves it."""
    if not isinstance(value, Inert) or value.name != "torch._utils._rebuild_wrapper_subclass" or not value.args:
        return None
    kind = value.args[0]
    if not isinstance(kind, Name) or not kind.text.startswith("torch.distributed."):
        return None
    return (
        f"holds under {shown(name)} the part of a tensor that one process had, a {shown(kind.text)}: save whole "
        f"tensors, which get_model_state_dict of torch.distributed.checkpoint.state_dict gives with "
        f"StateDictOptions(full_state_dict=True)"
    )
