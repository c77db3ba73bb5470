"""Damages checkpoints and converts them: each must end as a correct conversion or as one sentence with status 1.

python -m fuzz.mutations --count 2000 --seed 0

Every mutation is converted in processes of its own, forked from one that has imported the frameworks and computed
nothing: first unchecked, where time and memory are those of reading, then, if that went well, as users do. It ends
badly with anything but status 0 or 1, with more or less than one line on stderr, with a file left behind, after 10 s
of the processor's time or 10 s in which it waits for nothing that comes, with more memory than converting the sound
file takes and three times the file on top, or with an output that is not correct. Whatever ends badly is saved and
named, and the status is 1.

What is correct depends on what the file can show:

* An output must hold exactly the numbers that an independent reader finds in the damaged file, under the names and in
  the layout of `paddle_dense.files.layout`, condensed if the file holds the trained form. The independent readers are
  PyTorch's own, safetensors' own, and Python's pickle with a list of what it may import. Where they cannot read the
  file any more, the output must be that of the sound file: the damage has hit nothing that matters.
* A zip file (.pth, .pth.tar, modules, archives) has checksums. PyTorch ignores them; the independent reader here does
  not, so no flipped bit of a tensor gets through. Flips whose checksums are corrected reach the other layers.
* An old .pth, a .safetensors and a .pdparams file have none. A flipped bit of a tensor is another number there, and a
  correct conversion has that number; what no network can have (NaN, a negative variance) is refused.
* Archives hold a .safetensors file, and the damage hits the archive; a .zip has checksums, a .tar has none of the
  content. Of a checkpoint in shards, either the index is damaged or one of the shards.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import io
import json
import os
import pickle
import resource
import select
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path

# Threads do not survive a fork.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.numpy import load, load_file, save_file

from convert import paddle2torch, torch2paddle
from convert.parity.forward import load_torch_state
from convert.verification import build_twin
from paddle_dense.condensing import condensed_form
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle
from paddle_dense.layers.choices import learned_layers
from paddle_dense.models.fitting import check_state
from paddle_dense.models.matching import match
from paddle_dense.models.recognise import recognise

Arrays = dict[str, np.ndarray]

ROOT = Path(__file__).resolve().parents[1]
OFFENDERS = Path("build", "mutations")
SECONDS = 10  # of the processor's time, or of waiting
FILES = 3  # how many times its own size a file may take above what the sound file takes
# By what the table calls them: the archives around a .safetensors file, from the inside to the outside.
PACKED = {
    ".zip": [".zip"],
    ".tar": [".tar"],
    ".gz in a .zip": [".gz", ".zip"],
    ".zip in a .tar": [".zip", ".tar"],
}
_PICKLED = {"_reconstruct", "ndarray", "dtype", "encode", "scalar"}


# The checkpoints


@dataclass
class Kind:
    """A kind of checkpoint: a sound one, and how it is written, read by others and converted.

    Attributes:
        name: what the table calls it.
        suffix: of its files.
        arrays: the tensors of the sound file, under the names of the framework that writes it.
        write: puts tensors into a file.
        read: an independent reader of such files.
        main: the command that converts it.
        output_suffix: of what the command writes.
        beside: the content of the files next to it, by name.
        given: the name of the file that the command is given, if it is one of these.
        sound: bytes of the sound file.
        structure: positions in it that do not belong to the tensors' numbers.
        output: bytes of the sound file's conversion.
        memory: what converting the sound file takes, unchecked and checked, in KB.
    """

    name: str
    suffix: str
    arrays: Arrays
    write: Callable[[Arrays, Path], None]
    read: Callable[[Path], Arrays]
    main: Callable[[Sequence[str]], int]
    output_suffix: str = ".pdparams"
    beside: dict[str, bytes] = field(default_factory=dict)
    given: str = ""
    sound: bytes = b""
    structure: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    output: bytes = b""
    memory: tuple[int, int] = (0, 0)

    def size(self, content: bytes) -> int:
        """Of a mutation and the files next to it, in bytes."""
        return len(content) + sum(map(len, self.beside.values()))

    def file_of(self, arrays: Arrays) -> bytes:
        """The bytes of a file with these tensors."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"net{self.suffix}")
            self.write(arrays, path)
            return path.read_bytes()

    @cached_property
    def memory_in_float64(self) -> int:
        """What checking takes where float32 differs, as it may with a mutation, and with no tolerance always does."""
        _, run, _ = _attempt(self, self.sound, ["--atol", "0"])
        return run.memory


def kinds() -> list[Kind]:
    """The kinds of checkpoint, each with a small trained network in it."""
    digits = read_torch(ROOT / "weights" / "cdnv2_digits.pth")
    averaged = read_torch(ROOT / "tests" / "data" / "cdnv2_tiny_ema.pth.tar")
    trained = _unwrapped(read_torch(ROOT / "tests" / "data" / "condensenet_tiny_trained_unconverted.pth.tar"))
    twin = build_twin(recognise(to_paddle(digits)))
    load_torch_state(twin, digits)
    forward, back = torch2paddle.main, paddle2torch.main
    found = [
        Kind("zip .pth", ".pth", digits, _write_zip, read_torch, forward),
        Kind("old .pth", ".pth", trained, _write_old, read_torch, forward),
        Kind(".pth.tar", ".pth.tar", averaged, _write_training, read_torch, forward),
        Kind(".safetensors", ".safetensors", digits, _write_safetensors, load_file, forward),
        Kind(".pdparams", ".pdparams", to_paddle(digits), _write_pdparams, read_pdparams, back, ".pth"),
        Kind("whole module", ".pth", digits, lambda a, path: _write_module(a, twin, path), read_torch, forward),
        *(
            Kind(name, ".pth", digits, partial(_write_packed, name), partial(read_packed, name), forward)
            for name in PACKED
        ),
        *_sharded(digits, forward),
    ]
    for kind in found:
        kind.sound = kind.file_of(kind.arrays)
        other = kind.file_of({name: _inverted(array) for name, array in kind.arrays.items()})
        kind.structure = _alike(kind.sound, other)
    return found


def _sharded(arrays: Arrays, main: Callable[[Sequence[str]], int]) -> list[Kind]:
    """A checkpoint in two shards, of which the index is damaged, or the shard net.safetensors."""
    first = {name: arrays[name] for name in list(arrays)[::2]}
    second = {name: array for name, array in arrays.items() if name not in first}

    def write_index(arrays: Arrays, path: Path) -> None:
        places = {name: "net.safetensors" if name in first else "other.safetensors" for name in arrays}
        path.write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2), encoding="utf-8")

    index = Kind("index of shards", ".index.json", arrays, write_index, read_shards, main)
    shard = Kind("shard", ".safetensors", first, _write_safetensors, read_shards, main, given="net.index.json")
    other = {"other.safetensors": shard.file_of(second)}
    index.beside = {"net.safetensors": shard.file_of(first), **other}
    shard.beside = {"net.index.json": index.file_of(arrays), **other}
    return [index, shard]


def _alike(content: bytes, other: bytes) -> np.ndarray:
    """Positions at which two files are the same; all, where compressed data has made another file of them."""
    if len(content) != len(other):
        return np.arange(len(content))
    return np.nonzero(np.frombuffer(content, "u1") == np.frombuffer(other, "u1"))[0]


def _inverted(array: np.ndarray) -> np.ndarray:
    """An array of which every bit is another."""
    return (~array.reshape(-1).view("u1")).view(array.dtype).reshape(array.shape)


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _write_zip(arrays: Arrays, path: Path) -> None:
    torch.save({"state_dict": _tensors(arrays)}, path)


def _write_old(arrays: Arrays, path: Path) -> None:
    # PyTorch names and orders storages by their addresses here: the same seed hits other places in the next run.
    saved = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in _tensors(arrays).items()}}
    torch.save(saved, path, _use_new_zipfile_serialization=False)


def _write_training(arrays: Arrays, path: Path) -> None:
    tensors = _tensors(arrays)
    plain = {f"module.{name}": 0.5 * value if name.endswith("weight") else value for name, value in tensors.items()}
    momenta = {number: {"momentum_buffer": tensor * 0.1} for number, tensor in enumerate(plain.values())}
    optimizer = {"state": momenta, "param_groups": [{"lr": 0.1, "nesterov": True, "params": list(momenta)}]}
    saved = {"epoch": 120, "arch": "cdnv2", "state_dict": plain, "best_top1": 64.4, "optimizer": optimizer}
    torch.save({**saved, "state_dict_ema": tensors}, path)


def _write_safetensors(arrays: Arrays, path: Path) -> None:
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path, {"format": "pt"})


def _write_pdparams(arrays: Arrays, path: Path) -> None:
    names = {name: f"parameter_{number}" for number, name in enumerate(arrays)}
    path.write_bytes(pickle.dumps({**arrays, "StructuredToParameterName@@": names}, protocol=4))


def _write_packed(kind: str, arrays: Arrays, path: Path) -> None:
    _write_safetensors(arrays, path)
    name, content = "net.safetensors", path.read_bytes()
    for form in PACKED[kind]:
        content = _packed(form, name, content)
        name += form
    path.write_bytes(content)


def _packed(form: str, name: str, content: bytes) -> bytes:
    if form == ".gz":
        return gzip.compress(content, 1, mtime=0)
    file = io.BytesIO()
    if form == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo("net/README"), b"text")
            archive.writestr(zipfile.ZipInfo(f"net/{name}"), content, zipfile.ZIP_DEFLATED, 1)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo(f"net/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _write_module(arrays: Arrays, twin: torch.nn.Module, path: Path) -> None:
    module = pickle.loads(pickle.dumps(twin))  # its own copy
    for name in {**module.state_dict(), **arrays}:
        *owners, leaf = name.split(".")
        owner = module
        for part in owners:
            owner = owner._modules.setdefault(part, torch.nn.Module())
        home = owner._parameters if leaf in owner._parameters else owner._buffers
        home.pop(leaf, None)
        if name in arrays:
            tensor = torch.from_numpy(np.array(arrays[name]))
            home[leaf] = torch.nn.Parameter(tensor, requires_grad=False) if home is owner._parameters else tensor
    torch.save(module, path)


# The independent readers


def read_torch(path: Path) -> Arrays:
    """What PyTorch reads from a checkpoint, averaged weights first, with checksums looked at."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    allowed = [getattr(import_module(module), name) for module, _, name in (n.rpartition(".") for n in names)]
    with torch.serialization.safe_globals([kind for kind in allowed if issubclass(kind, torch.nn.Module)]):
        saved = torch.load(path, weights_only=True, map_location="cpu")
    if isinstance(saved, torch.nn.Module):
        state = saved.state_dict()
    else:
        # A damaged key may still be that of EMA weights, or of the only dict with tensors.
        sets = {key: value for key, value in saved.items() if isinstance(value, dict) and _has_tensors(value)}
        ema = [value for key, value in sets.items() if isinstance(key, str) and key.endswith("_ema")]
        plain = [sets["state_dict"]] if "state_dict" in sets else list(sets.values())
        (state,) = ema or plain or [saved]
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def read_packed(kind: str, path: Path) -> Arrays:
    """What Python's own modules and the safetensors library find in an archive of `PACKED`."""
    content = path.read_bytes()
    for form in reversed(PACKED[kind]):
        content = _unpacked(form, content)
    return load(content)


def _unpacked(form: str, content: bytes) -> bytes:
    if form == ".gz":
        return gzip.decompress(content)
    if form == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = (name for name in archive.namelist() if ".safetensors" in name)
            return archive.read(name)  # with a look at the checksum
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        (entry,) = (entry for entry in archive if ".safetensors" in entry.name)
        file = archive.extractfile(entry)
        return file.read() if file else b""


def read_shards(path: Path) -> Arrays:
    """What the safetensors library finds where an index says that it is."""
    places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    shards = {shard: load_file(path.parent / shard) for shard in set(places.values())}
    return {name: shards[shard][name] for name, shard in places.items()}


def _has_tensors(saved: dict) -> bool:
    return any(isinstance(value, torch.Tensor) for value in saved.values())


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module.partition(".")[0] not in ("numpy", "_codecs") or name not in _PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_pdparams(path: Path) -> Arrays:
    """What Python's own pickle reads from Paddle weights, with nothing imported but numpy's arrays."""
    saved = _NumbersOnly(io.BytesIO(path.read_bytes())).load()
    saved.pop("StructuredToParameterName@@", None)
    return {name: value for name, value in saved.items() if isinstance(value, np.ndarray)}


def _unwrapped(arrays: Arrays) -> Arrays:
    """The names as they are without DataParallel, which may have wrapped the network or a part of it."""
    return {name.removeprefix("module."): array for name, array in arrays.items()}


def is_correct(kind: Kind, path: Path, output: Path) -> bool:
    """Whether an output holds what the independent reader finds in a file; raises whatever that reader raises."""
    read = _unwrapped(kind.read(path))
    if kind.main is paddle2torch.main:
        expected, found = read, to_paddle(read_torch(output))
    else:
        expected, found = to_paddle(read), read_pdparams(output)
        if learned_layers(expected):
            network = recognise(expected)
            expected, _ = condensed_form(check_state(expected, network.outline()), network)
    for name, array in expected.items():
        same = array.astype("f4" if array.dtype.kind == "f" else "i8")
        if name not in found or found[name].shape != same.shape or found[name].tobytes() != same.tobytes():
            return False
    return found.keys() == expected.keys()


# The mutations: of bytes


def _place(kind: Kind, random: np.random.Generator) -> int:
    """A position in the file; every other time one that says where the numbers are instead of being one."""
    if random.random() < 0.5:
        return int(random.integers(len(kind.sound)))
    return int(random.choice(kind.structure))


def _few(random: np.random.Generator) -> int:
    return int(random.choice([1, 1, 1, 2, 3, 8]))


def flip_bits(kind: Kind, random: np.random.Generator) -> bytes:
    """One to eight bits turned over."""
    content = bytearray(kind.sound)
    for _ in range(_few(random)):
        content[_place(kind, random)] ^= 1 << int(random.integers(8))
    return bytes(content)


def flip_bits_and_correct(kind: Kind, random: np.random.Generator) -> bytes:
    """The same inside the entries of a zip archive, whose checksums are then made right; half of them in the pickle."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(kind.sound)) as sound, zipfile.ZipFile(changed, "w") as archive:
        names = [entry.filename for entry in sound.infolist() if entry.file_size]
        pickled = next((name for name in names if name.endswith("data.pkl")), names[0])
        target = pickled if random.random() < 0.5 else str(random.choice(names))
        for entry in sound.infolist():
            content = bytearray(sound.read(entry))
            for _ in range(_few(random) if entry.filename == target else 0):
                content[random.integers(len(content))] ^= 1 << int(random.integers(8))
            archive.writestr(zipfile.ZipInfo(entry.filename), bytes(content))
    return changed.getvalue()


def overwrite(kind: Kind, random: np.random.Generator) -> bytes:
    """A number of 1 to 8 bytes put somewhere: none, all bits, the largest of its sign, or any."""
    size, at = int(random.choice([1, 2, 4, 8])), _place(kind, random)
    numbers = [bytes(size), b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", random.bytes(size)]
    return kind.sound[:at] + numbers[random.integers(len(numbers))] + kind.sound[at + size :]


def truncate(kind: Kind, random: np.random.Generator) -> bytes:
    """The beginning of the file, or nothing."""
    return kind.sound[: _place(kind, random)]


def splice(kind: Kind, random: np.random.Generator) -> bytes:
    """A piece taken out, doubled, moved, or replaced by zeros, random bytes or a piece from elsewhere in the file."""
    sound, at = kind.sound, _place(kind, random)
    length = int(10 ** random.uniform(0, np.log10(len(sound))))
    piece, other = sound[at : at + length], _place(kind, random)
    before, after = sound[:at], sound[at + length :]
    return [
        before + after,
        before + piece + piece + after,
        (before + after)[:other] + piece + (before + after)[other:],
        before + bytes(len(piece)) + after,
        before + random.bytes(len(piece)) + after,
        before + sound[other : other + len(piece)] + after,
    ][random.integers(6)]


# The mutations: of tensors


def _one(arrays: Arrays, random: np.random.Generator) -> str:
    return str(random.choice(list(arrays)))


def edit_keys(kind: Kind, random: np.random.Generator) -> bytes:
    """A tensor missing, renamed, there twice or under another's name; all prefixed, reordered; one too many."""
    names, (one, other) = list(kind.arrays), (_one(kind.arrays, random) for _ in range(2))
    at = int(random.integers(len(one)))
    ways: list[dict[str, str]] = [
        {name: name for name in names if name != one},
        {one[:at] + "x" + one[at + 1 :] if name == one else name: name for name in names},
        {one[:at] + one[at + 1 :] if name == one else name: name for name in names},
        {**{name: name for name in names}, f"{one}.copy": one},
        {**{name: name for name in names}, one: other, other: one},
        {f"module.{name}": name for name in names},
        {f"module.{name}" if name == one else name: name for name in names},
        {name: name for name in random.permutation(names).tolist()},
        {**{name: name for name in names}, f"{one.rpartition('.')[0]}.num_batches_tracked": one},
        {name: name for name in names if name.partition(".")[0] == one.partition(".")[0]},
        {},
    ]
    way = ways[random.integers(len(ways))]
    return kind.file_of({new: kind.arrays[old] for new, old in way.items()})


def edit_shape(kind: Kind, random: np.random.Generator) -> bytes:
    """One tensor transposed, flattened, lengthened, cut, emptied, or with the shape of a giant."""
    name = _one(kind.arrays, random)
    array = kind.arrays[name]
    flat = array.reshape(-1)
    ways = [
        array.T.copy(),
        flat,
        array[None],
        array[..., None],
        flat[:1].reshape(()),
        flat[: flat.size // 2],
        flat[:0],
        np.concatenate([flat, flat]),
        np.repeat(array, 2, axis=0) if array.ndim else array[None],
        array[:-1] if array.ndim else array[None],
        np.empty((10**6, 0, *array.shape[2:]), array.dtype),
    ]
    return kind.file_of({**kind.arrays, name: ways[random.integers(len(ways))]})


def edit_numbers(kind: Kind, random: np.random.Generator) -> bytes:
    """One tensor with a number that is none, or too large, small or odd for what it is; or of another dtype."""
    choosy = [
        name for name in kind.arrays if name.endswith(("index", "_mask", "_count", "_stage", "_var", "_variance"))
    ]
    name = str(random.choice(choosy)) if random.random() < 0.5 else _one(kind.arrays, random)
    array = kind.arrays[name].copy()
    if random.random() < 0.3:
        with np.errstate(over="ignore", invalid="ignore"):
            return kind.file_of({**kind.arrays, name: array.astype(random.choice(["f2", "f8", "i8", "i4", "u1", "?"]))})
    value = random.choice([np.nan, np.inf, -np.inf, -1.0, 0.0, 0.5, 2.0, 1e30, -1e-3, 2**31])
    if array.dtype.kind != "f":
        value = int(np.nan_to_num(value, posinf=2**40, neginf=-(2**40)) % 2**40)
    array.reshape(-1)[random.integers(array.size)] = value
    return kind.file_of({**kind.arrays, name: array})


MUTATIONS: dict[str, Callable[[Kind, np.random.Generator], bytes]] = {
    "bit flips": flip_bits,
    "bit flips, checksums corrected": flip_bits_and_correct,
    "overwritten": overwrite,
    "truncation": truncate,
    "splice": splice,
    "keys": edit_keys,
    "shape": edit_shape,
    "numbers": edit_numbers,
}


# Converting them


@dataclass(frozen=True)
class Run:
    """What a process did: its status, what it printed, the seconds and KB that it took."""

    status: int
    out: str
    err: str
    seconds: float
    memory: int


def in_process(work: Callable[[], int], folder: Path) -> Run:
    """Run something in a process of its own, whose output goes to the folder."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _run_and_exit(work, folder)
    _end_a_hang(child)
    _, status, usage = os.wait4(child, 0)
    out, err, start = ((folder / name).read_text(errors="replace") for name in ("out", "err", "start"))
    return Run(
        os.waitstatus_to_exitcode(status),
        out,
        err,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss - int(start),
    )


def _end_a_hang(child: int) -> None:
    """Wait for a process, and kill it once all of its threads have slept for `SECONDS` on end.

    A process that somebody has stopped, or that others keep from the processor, is not asleep; and while this one is
    stopped, it does not count.
    """
    handle, asleep, before = os.pidfd_open(child), 0, -1
    ends = select.poll()
    ends.register(handle, select.POLLIN)
    while not ends.poll(1000):
        with suppress(OSError):  # a thread that has just ended
            threads = [(task / "stat").read_text() for task in Path(f"/proc/{child}/task").iterdir()]
            fields = [thread.rpartition(")")[2].split() for thread in threads]
            ticks = sum(int(number) for thread in fields for number in thread[11:13])
            sleeps = ticks == before and all(thread[0] == "S" for thread in fields)
            asleep, before = asleep + 1 if sleeps else 0, ticks
        if asleep >= SECONDS:
            os.kill(child, signal.SIGKILL)
            break
    os.close(handle)


def _run_and_exit(work: Callable[[], int], folder: Path) -> None:
    status = 70
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
        (folder / "start").write_text(str(resident))
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


@dataclass
class Verdict:
    """What became of one mutation.

    Attributes:
        ending: "converted" or "refused", or else what was bad about it.
        seconds: the longer of its conversions took.
        excess: memory above that of the sound file, in KB.
        message: what the command said last.
    """

    ending: str
    seconds: float
    excess: int
    message: str


def convert(kind: Kind, content: bytes) -> Verdict:
    """Convert a mutation, unchecked and then checked, and judge how it ended."""
    verdict = Verdict("converted", 0.0, 0, "")
    for options, memory in zip((["--no-verify"], []), kind.memory):
        verdict.ending, run, _ = _attempt(kind, content, options)
        excess, most = run.memory - memory, FILES * kind.size(content)
        if excess * 1024 > most and not options:
            excess = run.memory - kind.memory_in_float64
        if verdict.ending in ("converted", "refused") and excess * 1024 > most:
            verdict.ending = f"{excess / 1024:.1f} MB more memory than the sound file"
        verdict.seconds, verdict.excess = max(verdict.seconds, run.seconds), max(verdict.excess, excess)
        verdict.message = run.err
        if verdict.ending != "converted":
            break
    return verdict


def _attempt(kind: Kind, content: bytes, options: Sequence[str]) -> tuple[str, Run, bytes]:
    """Convert a file once: how it ended, what the process did, and the output."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damaged, output = folder / "in" / f"net{kind.suffix}", folder / "converted" / f"net{kind.output_suffix}"
        path = damaged.with_name(kind.given or damaged.name)
        path.parent.mkdir(), output.parent.mkdir()
        for file, sound in kind.beside.items():
            (path.parent / file).write_bytes(sound)
        damaged.write_bytes(content)
        run = in_process(lambda: kind.main([str(path), "-o", str(output), *options]), folder)
        ending = _ending(kind, path, output, run, numbers="--no-verify" in options)
        return ending, run, output.read_bytes() if output.exists() else b""


def _ending(kind: Kind, path: Path, output: Path, run: Run, numbers: bool) -> str:
    """How a conversion ended; with `numbers`, one that went well is looked into."""
    lines, files = run.err.splitlines(), sorted(file.name for file in output.parent.iterdir())
    if run.status < 0:
        return f"killed by signal {-run.status} after {run.seconds:.1f} s"
    if len(list(path.parent.iterdir())) != 1 + len(kind.beside):
        return "files were left next to the input"
    if run.status == 1:
        said = len(lines) == 1 and lines[0].startswith("error: ") and path.name in lines[0] and not run.out
        if not said:
            return f"status 1 with {len(lines)} lines on stderr: {' | '.join(lines)[-300:]}"
        return f"refused, and yet there is {files[0]}" if files else "refused"
    if run.status:
        return f"status {run.status}: {' | '.join(lines)[-300:]}"
    if not all(line.startswith("warning: ") for line in lines):
        return f"status 0 with words on stderr: {' | '.join(lines)[-300:]}"
    if len(files) != 2 or output.name not in files:
        return f"status 0, and the files are {files}"
    judge = in_process(lambda: 0 if is_correct(kind, path, output) else 1, path.parent) if numbers else None
    if judge and judge.status == 1:
        return "converted to other numbers than those in the file"
    if judge and judge.status and output.read_bytes() != kind.output:
        return (
            f"converted to what an independent reader does not find: {judge.err.strip().rpartition(chr(10))[2][:200]}"
        )
    return "converted"


def measure_sound(kind: Kind) -> None:
    """Convert the sound file, for what it becomes and takes; SystemExit if that is wrong already."""
    ending, unchecked, kind.output = _attempt(kind, kind.sound, ["--no-verify"])
    if ending == "converted":
        ending, checked, _ = _attempt(kind, kind.sound, [])
    if ending != "converted":
        raise SystemExit(f"the sound {kind.name} {ending}: {unchecked.err}")
    kind.memory = (unchecked.memory, checked.memory)


# The table


@dataclass
class Tally:
    """How many mutations of one kind ended how, the longest time and the most memory."""

    count: int = 0
    converted: int = 0
    refused: int = 0
    seconds: float = 0.0
    excess: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count one mutation."""
        self.count += 1
        self.converted += verdict.ending == "converted"
        self.refused += verdict.ending == "refused"
        self.seconds, self.excess = max(self.seconds, verdict.seconds), max(self.excess, verdict.excess)

    def row(self) -> str:
        """Cells of the table."""
        other = self.count - self.converted - self.refused
        return (
            f"{self.count} | {self.converted} | {self.refused} | {other} | {self.seconds:.2f} s "
            f"| {self.excess / 1024:.1f} MB"
        )


def cells(found: Sequence[Kind]) -> list[tuple[Kind, str]]:
    """Every kind with every mutation that it can have."""
    every = [(kind, name) for name in MUTATIONS for kind in found]
    return [(kind, name) for kind, name in every if "checksums" not in name or kind.sound[:2] == b"PK"]


def save_offender(kind: Kind, mutation: str, number: int, content: bytes) -> Path:
    """Put a file that ended badly where it stays."""
    OFFENDERS.mkdir(parents=True, exist_ok=True)
    name = "-".join(f"{number}-{kind.name}-{mutation}".replace(",", "").replace(".", "").split())
    path = OFFENDERS / f"{name}{kind.suffix}"
    path.write_bytes(content)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the status is 1 if a mutation ended badly."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="mutations (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    options = parser.parse_args(arguments)
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # it would be a thread
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = kinds()
    with suppress(WeightsError):  # which names the nearest network, for which all have to be outlined once
        match({"stranger.weight": np.ones(1, "f4")})
    gc.freeze()  # a child that looked for garbage here would copy it all
    for kind in found:
        measure_sound(kind)
    places = cells(found)
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    bad = 0
    for number in tqdm(range(options.count), file=sys.stderr, disable=None):
        kind, mutation = places[number % len(places)]
        content = MUTATIONS[mutation](kind, np.random.default_rng([options.seed, number]))
        verdict = convert(kind, content)
        for key in ((kind.name, mutation), (kind.name, "all"), ("all", "all")):
            tallies[key].add(verdict)
        if verdict.ending not in ("converted", "refused"):
            bad += 1
            path = save_offender(kind, mutation, number, content)
            print(f"error: {path}: {verdict.ending}", file=sys.stderr)
    print("| checkpoint | mutation | mutations | converted correctly | refused | anything else | longest | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = [(kind.name, mutation) for kind in found for mutation in (*MUTATIONS, "all")]
    for key in (*rows, ("all", "all")):
        if key in tallies:
            print(f"| {' | '.join(key)} | {tallies[key].row()} |")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
