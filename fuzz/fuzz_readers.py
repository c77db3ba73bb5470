"""Fuzzes what reads files: `make fuzz`, or python fuzz/fuzz_readers.py [OPTION OF libFuzzer]...

Needs atheris, which follows what parts of `paddle_dense` and `convert` an input reaches and changes the inputs until
they reach more; it begins with the real files of corpus/. Inputs that reached something new stay in build/fuzz, where
the next run goes on. What a reader does wrong ends the run, and the input is left in crashes/.

python fuzz/fuzz_readers.py FILE... gives files to the readers once more, without atheris; tests/security/ does that for
all of corpus/ and crashes/.

Whatever a file holds, a reader gives arrays of plain numbers or raises WeightsError with one printable sentence. It
runs nothing, writes nothing and warns of nothing, and its time and memory are bounded by the size of the file.
"""

from __future__ import annotations

import atexit
import copy
import gc
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
CRASHES = ROOT / "fuzz" / "crashes"
BUILD = ROOT / "build" / "fuzz"

_fuzzing = __name__ == "__main__" and importlib.util.find_spec("atheris") is not None
if _fuzzing:
    import atheris
with atheris.instrument_imports(include=["paddle_dense", "convert"]) if _fuzzing else nullcontext():
    from paddle_dense.errors import WeightsError
    from paddle_dense.files.sidecar import is_left_over, network_in, read_sidecar
    from paddle_dense.files.torch_file import read_checkpoint
    from paddle_dense.files.weights import read_metadata, read_weights

# How much a file may take. Most of it is Python's: an empty dict is one byte of a pickle and 64 bytes of memory.
SECONDS, SECONDS_PER_BYTE = 2.0, 1e-4  # of the processor, with room for atheris
MEMORY, MEMORY_PER_BYTE = 2**20, 500
NUMBERS_PER_BYTE = 16  # bytes of the arrays: the same data may be used 8 times, and half precision becomes single
SENTENCE = 2000  # characters
SHARDS = ("torch.safetensors", "views.pth")  # next to an index

# What no reader does, as Python reports it to a hook.
ALARMS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.mkdir", "os.remove", "os.rename"}
ALARMS |= {"subprocess.Popen", "pickle.find_class", "socket.connect", "ctypes.dlopen", "shutil.copyfile"}

_heard: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    if _heard is None:
        return
    if event in ALARMS or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        _heard.append(f"{event} {arguments}")


sys.addaudithook(_listen)


# The readers


@dataclass(frozen=True)
class Reader:
    """What reads a file, and how an input becomes that file.

    Attributes:
        suffix: of the file.
        read: gives arrays by name, or nothing that needs a look.
        file_of: the file's content, from an input.
    """

    suffix: str
    read: Callable[[Path], Mapping[str, Any]]
    file_of: Callable[[bytes], bytes] = bytes


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    checkpoint = read_checkpoint(path)
    for warning in checkpoint.warnings:
        _check_sentence(warning)
    return checkpoint.state


def _read_metadata(path: Path) -> Mapping[str, Any]:
    for pair in read_metadata(path).items():
        assert all(type(text) is str for text in pair), pair
    return {}


def _read_sidecar(path: Path) -> Mapping[str, Any]:
    weights, state = path.with_suffix(".pdparams"), {"w": np.arange(3, dtype="f4")}
    is_left_over(path)
    sidecar = read_sidecar(weights, state)
    json.dumps(copy.deepcopy(sidecar))  # as `info --json` does
    found = network_in(sidecar or {})
    assert found is None or (type(found[0]) is str and type(found[1]) is dict), found
    return {}


def in_archive(program: bytes) -> bytes:
    """corpus/state_dict.pth with another pickle in it, which no checksum keeps from being read."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in _records().items():
            archive.writestr(zipfile.ZipInfo(name), program if name.endswith("/data.pkl") else content)
    return made.getvalue()


@lru_cache
def _records() -> dict[str, bytes]:
    with zipfile.ZipFile(CORPUS / "state_dict.pth") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


READERS = {
    "pdparams": Reader(".pdparams", read_weights),
    "safetensors": Reader(".safetensors", read_weights),
    "checkpoint": Reader(".pth", _read_checkpoint),
    "pickle of a checkpoint": Reader(".pth", _read_checkpoint, in_archive),
    "metadata": Reader(".safetensors", _read_metadata),
    "sidecar": Reader(".json", _read_sidecar),
    "index": Reader(".index.json", _read_checkpoint),
}


# The judge


def check(reader: str, content: bytes, memory: bool = False) -> dict[str, np.ndarray] | None:
    """Reads an input with one of `READERS`.

    Args:
        reader: its name.
        content: the input.
        memory: look at the memory, too, which takes some time.

    Returns:
        The arrays, or None if the reader refused the file.

    Raises:
        AssertionError: the reader did what none may do; and whatever else it raised.
    """
    reads = READERS[reader]
    path = _folder() / f"net{reads.suffix}"
    content = reads.file_of(content)
    path.write_bytes(content)
    try:
        with _nothing_runs(), _bounded(len(content), memory), warnings.catch_warnings():
            warnings.simplefilter("error")
            arrays = dict(reads.read(path))
    except WeightsError as error:
        assert str(error).startswith(str(path)), error
        _check_sentence(str(error)[len(str(path)) :])
        return None
    _check_arrays(arrays, len(content))
    return arrays


_folders: list[tempfile.TemporaryDirectory] = []


def _folder() -> Path:
    if not _folders:
        in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        _folders.append(tempfile.TemporaryDirectory(dir=in_memory))
        atexit.register(_folders[0].cleanup)
        for shard in SHARDS:
            shutil.copy(CORPUS / shard, _folders[0].name)
    return Path(_folders[0].name)


@contextmanager
def _nothing_runs() -> Iterator[None]:
    global _heard
    _heard = []
    try:
        yield
    finally:
        heard, _heard = _heard, None
        assert not heard, heard


@contextmanager
def _bounded(size: int, memory: bool) -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()  # looking through all that a long run of tests has loaded takes seconds
    if memory:
        tracemalloc.start()
    start = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - start
        if collecting:
            gc.enable()
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
        if memory:
            tracemalloc.stop()
        assert seconds <= SECONDS + SECONDS_PER_BYTE * size, f"{seconds} s for {size} bytes"
        assert peak <= MEMORY + MEMORY_PER_BYTE * size, f"{peak} bytes of memory for {size} bytes"


def _check_sentence(text: str) -> None:
    assert text.isprintable() and len(text) <= SENTENCE, f"{len(text)} characters: {text!r}"


def _check_arrays(arrays: Mapping[str, np.ndarray], size: int) -> None:
    for name, array in arrays.items():
        assert type(name) is str and type(array) is np.ndarray, (name, type(array))
        assert array.dtype.kind in "biuf" and array.dtype.isnative, (name, array.dtype)
    total = sum(array.nbytes for array in arrays.values())
    assert total <= NUMBERS_PER_BYTE * size, f"{total} bytes of numbers in {size} bytes"
    for array in arrays.values():
        array.tobytes()  # all of it can be read


# The fuzzer

# What changing bytes one by one would hardly find.
WORDS = (
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"),
    *(b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n", b"ccollections\nOrderedDict\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\nFloatStorage\n"),
    *(b"ctorch\nBoolStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch._tensor\n_rebuild_from_type_v2\n"),
    *(b"ctorch._utils\n_rebuild_parameter\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"c__builtin__\nbytearray\n"),
    *(b"storage", b"module", b"state_dict", b"_parameters", b"_buffers", b"_modules", b"_metadata"),
    *(b"UnpackBigParamInfor@@", b"OriginShape", b"slices", b"StructuredToParameterName@@", b"data.pkl", b"byteorder"),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b'"__metadata__"', b'"dtype"'),
    *(b'"shape"', b'"data_offsets"', b'"F32"', b'"BF16"', b'"BOOL"', b'"tensors_sha256"', b'"previous"', b'"arch"'),
    b'"weight_map"',
)


def one_input(data: bytes) -> None:
    """What atheris calls: the first byte chooses the reader, the rest is its input."""
    if data:
        check(list(READERS)[data[0] % len(READERS)], data[1:])


def write_seeds(folder: Path) -> None:
    """The files of the corpus as inputs of `one_input`, for every reader."""
    for number, name in enumerate(READERS):
        for path in CORPUS.iterdir():
            content = path.read_bytes()
            if name == "pickle of a checkpoint" and content[:2] == b"PK":
                # One has no checksums, and one is no file of PyTorch.
                with suppress(zipfile.BadZipFile, StopIteration), zipfile.ZipFile(path) as archive:
                    content = archive.read(next(entry for entry in archive.namelist() if entry.endswith("/data.pkl")))
            (folder / f"{number}-{path.name}").write_bytes(bytes([number]) + content)


def fuzz(options: list[str]) -> None:
    """Runs until a time in `options` is over, or something is wrong; does not return."""
    seeds, found, words = BUILD / "seeds", BUILD / "corpus", BUILD / "words"
    for folder in (seeds, found, CRASHES):
        folder.mkdir(parents=True, exist_ok=True)
    write_seeds(seeds)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS))
    # A machine that is asleep would be a timeout; `check` looks at the processor's time.
    settings = [f"-artifact_prefix={CRASHES}/", f"-dict={words}", "-max_len=8192", "-timeout=3600"]
    atheris.Setup([sys.argv[0], *settings, *options, str(found), str(seeds)], one_input)
    atheris.Fuzz()


def replay(path: Path) -> None:
    """Gives a file to every reader, and once more as atheris gave it."""
    content = path.read_bytes()
    for name in READERS:
        check(name, content, memory=True)
    one_input(content)


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for path in paths:
        replay(path)
        print(f"{path}: no reader did anything wrong")
    if not paths and not _fuzzing:
        sys.exit('fuzzing needs atheris: pip install -e ".[fuzz]", or name the files to read once more')
    if not paths:
        fuzz(sys.argv[1:])
