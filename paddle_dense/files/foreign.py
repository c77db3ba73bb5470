"""Files that are no weights this package reads, known by their first or last bytes: what they are and what to do."""

from __future__ import annotations

import re

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
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head)", re.IGNORECASE)
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12.{1,40}?[\x1a-\x3a]|\x3a)", re.DOTALL)
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
    if _JSON.match(head):
        return _json(bytes(data[:_MAX_JSON]))
    return None


def _json(text: bytes) -> str:
    """What a JSON file next to weights is, with what to do, as the end of a sentence."""
    if b'"weight_map"' in text:
        return "is the index of a PyTorch checkpoint: turn it into a Paddle file with python -m convert.torch2paddle"
    if b'"magic":"pir"' in text[:_MAX_HEAD].replace(b" ", b""):
        return "is a program that Paddle 3 exported: give the .pdparams file that it was exported from"
    return "is JSON and holds no tensors: give the weight file that it describes"
