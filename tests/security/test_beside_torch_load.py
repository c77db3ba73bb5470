"""Files for PyTorch are read with the numbers of torch.load(weights_only=True), or refused; never with other numbers.

torch.load runs in one process for all files of a test: on what is not sound it may read arbitrary memory or die.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import torch2paddle
from paddle_dense.errors import WeightsError
from paddle_dense.files.torch_file import _MOVING, Checkpoint, read_checkpoint
from tests.security import hostile
from tests.security.hostile import (
    call,
    name,
    of_type,
    old_pth,
    parameter,
    program,
    pth,
    saved_id,
    tensor,
    text,
    value,
)

torch = pytest.importorskip("torch", reason="the loader to compare with: pip install torch")
nn = torch.nn
FILES = 300

# Reads the files whose names it is given and says of each when it is done, so that one more process can go on after a
# file that ended this one. Tensors go into an archive of numpy's: those of the dict itself under "", and those of each
# dict in it under its key.
LOADER = """
import json, sys, warnings
import numpy, torch
warnings.simplefilter("ignore")

def array(tensor):
    try:
        if tensor.dtype == torch.bool:
            return (tensor.detach().view(torch.uint8) != 0).numpy()
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous().numpy()
    except Exception:  # sparse, quantized
        return numpy.array("no numbers")

for path in sys.stdin.read().splitlines():
    arrays, names = {}, {}
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        inner = {key: value for key, value in saved.items() if isinstance(value, dict) and isinstance(key, str)}
        for container, state in {"": saved, **inner}.items():
            tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
            names[container] = [key if isinstance(key, str) else None for key in tensors]
            for number, tensor in enumerate(tensors.values()):
                arrays[f"{len(names)}-{number}"] = array(tensor)
        numpy.savez(path + ".npz", json.dumps(names), **arrays)
    except Exception:
        pass
    print(path, flush=True)
"""


def load_with_torch(paths: list[Path]) -> dict[Path, dict[str, dict[str, np.ndarray]] | None]:
    """What torch.load reads: tensors by container and name, or None where it reads nothing."""
    waiting = [str(path) for path in paths]
    while waiting:
        command = [sys.executable, "-c", LOADER]
        done = subprocess.run(command, input="\n".join(waiting), capture_output=True, text=True, timeout=300)
        finished = len(done.stdout.splitlines())
        assert done.returncode == 0 or finished < len(waiting), done.stderr
        waiting = waiting[finished + (done.returncode != 0) :]
    return {path: _loaded(path.with_name(path.name + ".npz")) for path in paths}


def _loaded(path: Path) -> dict[str, dict[str, np.ndarray]] | None:
    if not path.exists():
        return None
    with np.load(path) as archive:
        names = json.loads(str(archive["arr_0"]))
        return {
            container: {key: archive[f"{place}-{number}"] for number, key in enumerate(keys)}
            for place, (container, keys) in enumerate(names.items(), 1)
        }


def read(path: Path) -> Checkpoint | str:
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        assert "\n" not in str(error)
        return str(error)


def differs(checkpoint: Checkpoint, loaded: dict[str, dict[str, np.ndarray]]) -> bool:
    expected = loaded.get("" if checkpoint.container == "bare" else checkpoint.container, {})
    if list(expected) != list(checkpoint.state):
        return True
    pairs = [(array, expected[key]) for key, array in checkpoint.state.items()]
    return any(
        (ours.dtype, ours.shape, ours.tobytes()) != (theirs.dtype, theirs.shape, theirs.tobytes())
        for ours, theirs in pairs
        if not (ours.dtype.kind == "f" and ours.shape == theirs.shape and np.array_equal(ours, theirs, equal_nan=True))
    )


def compare(paths: list[Path]) -> Counter:
    """How many files both read, and equally; a file that both read, with different numbers, is what is looked for."""
    counted: Counter = Counter()
    wrong = []
    for path, loaded in load_with_torch(paths).items():
        found = read(path)
        if isinstance(found, Checkpoint) and loaded is not None and differs(found, loaded):
            wrong.append(path.name)
        counted[isinstance(found, Checkpoint), loaded is not None] += 1
    assert wrong == []
    return counted


# Sound files

PLAIN = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
UNSIGNED = ["uint16", "uint32", "uint64"]


def numbers(dice: random.Random, dtype: str) -> torch.Tensor:
    """A row of numbers, NaN and infinities among them."""
    row = [
        dice.choice([0, 1, -1, 2.5, 127, 3e-5, 1e300, float("nan"), float("inf")]) for _ in range(dice.randint(1, 40))
    ]
    if not getattr(torch, dtype).is_floating_point:
        row = [dice.randint(0, 100) for _ in row]
    return torch.tensor(row, dtype=torch.float64 if "float" in dtype else torch.int64).to(getattr(torch, dtype))


def sound_tensor(dice: random.Random, storages: list[torch.Tensor]) -> torch.Tensor:
    """A tensor as a training script could have it, on one of the storages."""
    row = dice.choice(storages)
    kind = dice.randrange(8)
    if kind == 0:
        return row
    if kind == 1:
        return row[: len(row) // 2 * 2].view(2, -1).t()
    if kind == 2:
        return row[dice.randrange(len(row)) :][:1].expand(dice.randint(1, 5), dice.randint(1, 5))
    if kind == 3:
        return row[: min(len(row), 3)][:, None].expand(-1, 4) if dice.random() < 0.5 else row[:0].view(0, 3)
    if kind == 4 and row.is_floating_point():
        made = nn.Parameter(row)
        if dice.random() < 0.5:
            made.tag, made.scale = "x", torch.ones(2)
        return made
    if kind == 5:
        made = row[:]
        made.tag = {"shape": (1, 2)}
        return made
    if kind == 6:
        return row[:1].clone().view(1, 1, 1, 1).expand(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    size = [dice.randint(0, 4) for _ in range(dice.randint(0, 3))]
    stride = [dice.randint(0, 5) for _ in size]
    reach = sum((n - 1) * step for n, step in zip(size, stride)) if 0 not in size else 0
    if reach >= len(row):
        return row[dice.randrange(len(row))]
    return row.as_strided(size, stride, dice.randrange(len(row) - reach))


def strange_tensor(dice: random.Random) -> torch.Tensor:
    """What networks do not have, and what is documented as refused."""
    kinds = [
        lambda: torch.ones(3).cfloat(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch._neg_view(torch.ones(3)),
        lambda: torch.ones(3).to(torch.float8_e4m3fn),
        lambda: torch.ones(2, device="meta"),
    ]
    return dice.choice(kinds)()


def sound_file(seed: int, path: Path) -> bool:
    """Saves a state_dict, and says whether it is one that networks have."""
    dice = random.Random(seed)
    is_zip = dice.random() < 0.6
    dtypes = dice.choices(PLAIN + (UNSIGNED if is_zip else []), k=3)
    storages = [numbers(dice, dtype) for dtype in dtypes]
    state = {f"layer{index}.weight": sound_tensor(dice, storages) for index in range(dice.randint(1, 6))}
    is_sound = dice.random() > 0.05
    if not is_sound:
        state["strange"] = strange_tensor(dice)
    saved: dict[str, Any] = state
    if dice.random() < 0.4:
        saved = {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1, "momentum": [storages[0]]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    return is_sound


@pytest.mark.filterwarnings("ignore")
def test_sound_files_are_read_with_the_numbers_of_torch_load(tmp_path):
    paths = [tmp_path / f"{seed}.pth" for seed in range(FILES)]
    sound = [path for seed, path in enumerate(paths) if sound_file(seed, path)]
    counted = compare(paths)
    assert counted[True, True] > 0.85 * FILES and not counted[True, False]
    refused = {path.name: said for path in sound if isinstance(said := read(path), str)}
    assert refused == {}


# Adversarial ones: what a program says of its tensors, said otherwise

KINDS = ["FloatStorage", "IntStorage", "HalfStorage", "LongStorage", "ByteStorage", "BoolStorage", "DoubleStorage"]


def some_id(dice: random.Random, is_zip: bool) -> bytes:
    key = "A" if dice.random() < 0.03 else dice.choice("001")
    kind, count = ("FloatStorage", 3) if dice.random() < 0.93 else (dice.choice(KINDS), dice.choice([0, 1, 3, 6, 12]))
    view: tuple | None = None if is_zip else ()
    if dice.random() < (0.01 if is_zip else 0.2):
        view = (dice.choice("0189"), dice.choice([0, 0, 1, 2]), dice.choice([1, 2, 3, 3]))
    return saved_id(key, kind, count, view)


def some_tensor(dice: random.Random, is_zip: bool) -> bytes:
    shape, stride, offset = dice.choice(
        [
            *(((3,), (1,), 0), ((3,), (1,), 0), ((2,), (1,), 1), ((2,), (2,), 0), ((), (), 2), ((0,), (1,), 0)),
            *(((5, 3), (0, 1), 0), ((2, 2), (1, 1), 0), ((1,), (9,), 1), ((4,), (1,), 0), ((2,), (1,), 2)),
        ]
    )
    sizes = value(shape)
    if dice.random() < 0.05:
        sizes = b"h\xc8"  # the list that every program keeps
    return tensor(some_id(dice, is_zip), offset, sizes, value(stride))


def some_state(dice: random.Random, is_zip: bool) -> bytes:
    far = some_tensor(dice, is_zip)
    attributes = b"}" + text(dice.choice(["data", "real", "tag", "grad", "imag", "shape", "T"])) + far + b"s"
    return dice.choice(
        [
            b"(" + some_id(dice, is_zip) + value(0) + value((3,)) + value((1,)) + b"t",
            some_id(dice, is_zip) + b"\x85",
            *(b")", b"}", b"N", far + b"\x85", b"\x89N" + hostile.EMPTY + b"\x87", b"(" + far + b"NN\x89Nt"),
            *(attributes, attributes, b"}" + attributes + b"\x86", attributes + b"}\x86", b"N" + attributes + b"\x86"),
        ]
    )


def some_value(dice: random.Random, is_zip: bool) -> bytes:
    made = some_tensor(dice, is_zip)
    kind = dice.randrange(9)
    if kind == 0:
        made = parameter(made)
    if kind == 1:
        made = parameter(made, some_state(dice, is_zip))
    if kind == 2:
        made = of_type(some_id(dice, is_zip), some_state(dice, is_zip))
    if kind == 3:
        made = call(name("torch.nn.parameter", "Parameter"), made, b"\x89")
    if kind == 4:
        dtype = name("torch", dice.choice(["float32", "int32", "uint16", "float16", "uint8"]))
        geometry = value(0) + value((dice.choice([1, 2, 3]),)) + value((1,))
        made = call(
            name("torch._utils", "_rebuild_tensor_v3"), some_id(dice, is_zip), geometry, b"\x89", hostile.EMPTY, dtype
        )
    if dice.random() < 0.1:
        made += some_state(dice, is_zip) + b"b"
    return made


def some_program(dice: random.Random, is_zip: bool) -> bytes:
    made = {key: some_value(dice, is_zip) for key in "vwx"[: dice.randint(1, 3)]}
    if dice.random() < 0.1:
        made["y"] = b"h\xc8" + value(1) + b"a"  # grows the list
    body = b"".join(text(key) + item for key, item in made.items())
    start = name("collections", "OrderedDict") + dice.choice([b")R", b")R", b")\x81", b"}\x85\x81"])
    return value([3]) + b"q\xc8" + (start if dice.random() < 0.5 else b"}") + b"(" + body + b"u"


def crafted_file(seed: int) -> bytes:
    """A program of an attacker's, in an archive of his or in the old format."""
    dice = random.Random(seed)
    is_zip = dice.random() < 0.6
    body = some_program(dice, is_zip)
    if not is_zip:
        return old_pth(body, dice.choice([None] * 8 + [{"0": 4}, {"1": 4, "0": 4}, {"0": 4, "1": 8}]))
    extra = {
        "net/DATA/0": hostile.NUMBERS["1"],
        "net/Data.pkl": program(body),
        "net/BYTEORDER": b"big",
        "net/byteorder": dice.choice([b"little", b"big"]),
        "net/data/a": hostile.NUMBERS["1"],
        "net/data/A": hostile.NUMBERS["0"],
        "NET/data/2": hostile.NUMBERS["1"],
        "other/data.pkl": program(body),
    }
    return pth(body, **{key: content for key, content in extra.items() if dice.random() < 0.04})


def edited_program(dice: random.Random, content: bytes, start: int) -> bytes:
    """The pickle at `start` with one or two of its instructions changed."""
    steps = list(pickletools.genops(io.BytesIO(content[start:])))
    ends = [at for *_, at in steps[1:]] + [steps[-1][2] + 1]
    pieces = [content[start + step[2] : start + end] for step, end in zip(steps, ends)]
    for _ in range(dice.randint(1, 2)):
        at = dice.randrange(1, len(pieces) - 1)
        code = steps[at][0].name
        if code in ("BININT1", "BINGET", "BINPUT"):
            pieces[at] = pieces[at][:1] + bytes([dice.randrange(8)])
        elif code in ("BINUNICODE", "GLOBAL"):
            same = [piece for step, piece in zip(steps, pieces) if step[0].name == code]
            storage = b"ctorch\n" + dice.choice(KINDS).encode() + b"\n"
            pieces[at] = storage if b"Storage" in pieces[at] and code == "GLOBAL" else dice.choice(same)
        elif code == "REDUCE":
            pieces[at] += dice.choice([b")b", b"}b", b"}" + text("data") + b"Nsb"])
        else:
            pieces[at] = dice.choice([b"", pieces[at] * 2, dice.choice(pieces[1:-1])])
    return b"".join(pieces) + content[start + ends[-1] :]


def edited_file(seed: int, sound: bytes) -> bytes:
    """A file of torch.save's with its program, an entry of its archive or some bytes changed."""
    dice = random.Random(seed)
    if dice.random() < 0.2:
        damaged = bytearray(sound)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        return bytes(damaged)
    if sound[:4] != hostile.archive({"x": b""})[:4]:
        start = 0
        for _ in range(3):
            start += list(pickletools.genops(io.BytesIO(sound[start:])))[-1][2] + 1
        return edited_program(dice, sound, start)
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        records = {key: archive.read(key) for key in archive.namelist()}
    if dice.random() < 0.8:
        records = {
            key: edited_program(dice, content, 0) if key.endswith("/data.pkl") else content
            for key, content in records.items()
        }
    else:
        key = dice.choice(list(records))
        content = records.pop(key) if dice.random() < 0.5 else records[key]
        records[key.replace("data", "DATA") if dice.random() < 0.5 else key.title()] = content[::-1]
    return hostile.archive(records)


@pytest.mark.filterwarnings("ignore")
def test_adversarial_files_are_read_with_the_numbers_of_torch_load_or_refused(tmp_path):
    paths = [tmp_path / f"{seed}.pth" for seed in range(FILES)]
    for seed, path in enumerate(paths):
        if seed % 2:
            path.write_bytes(crafted_file(seed))
        else:
            sound_file(seed, path)
            path.write_bytes(edited_file(seed, path.read_bytes()))
    counted = compare(paths)
    assert counted[True, True] > FILES / 10 and counted[False, True] > FILES / 20


# Attacks, one by one

READINGS = hostile.two_readings()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, dict[str, dict[str, np.ndarray]] | None]:
    """What torch.load reads from each of the attacks."""
    folder = tmp_path_factory.mktemp("attacks")
    paths = {attack: folder / f"{number}.pth" for number, attack in enumerate(READINGS)}
    for attack, path in paths.items():
        path.write_bytes(READINGS[attack])
    found = load_with_torch(list(paths.values()))
    return {attack: found[path] for attack, path in paths.items()}


# Where PyTorch's own choice between two entries of one name falls on the one that the program names.
SAME = {"numbers twice, in capitals first", "programs twice, in capitals", "programs twice, in capitals first"}
# The numbers are copied into a storage that the old format fills later, so that they do not stay.
SAME |= {"real of a Parameter, old", "real of a type, old"}


@pytest.mark.parametrize("attack", READINGS)
def test_what_torch_load_reads_otherwise_is_refused(tmp_path, capsys, attack):
    path = tmp_path / "net.pth"
    path.write_bytes(READINGS[attack])
    said = read(path)
    assert isinstance(said, str) and said.startswith(f"{path}: ") and len(said) < 500
    assert any(fix in said for fix in ("copy it again", "do not use this file", "save it again with torch.save"))
    assert torch2paddle.main([str(path)]) == torch2paddle.FAILED
    captured = capsys.readouterr()
    assert captured.out == "" and f"error: {said}" in captured.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pth"]


def test_the_attacks_are_real_ones(loaded):
    """PyTorch reads them all, and "w" not as the program and the archive by themselves say."""
    named_by_themselves = [[1.0, 2.0, 3.0], [1.0]]
    assert [attack for attack, found in loaded.items() if found is None] == []
    same = {
        attack
        for attack, found in loaded.items()
        if "w" in found[""] and found[""]["w"].tolist() in named_by_themselves
    }
    assert same <= SAME and len(loaded) - len(same) > 35


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [lambda: torch.arange(3.0), lambda: nn.Parameter(torch.arange(3.0))], ids=["Tensor", "Parameter"]
)
def test_no_other_attribute_moves_a_tensor(make):
    """Whatever an attribute takes it is set to; only those that are refused in a file change the numbers."""
    moving = set()
    others = [
        torch.full((3,), 7.0),
        torch.ones(2),
        torch.ones(3).double(),
        True,
        None,
        3,
        "x",
        {},
        ("N",),
        torch.float64,
    ]
    for attribute in dir(torch.Tensor):
        for other in others:
            tensor = make()
            try:
                setattr(tensor, attribute, other)
            except Exception:
                continue
            inside = torch.Tensor.detach(tensor)
            if inside.dtype != torch.float32 or inside.tolist() != [0, 1, 2]:
                moving.add(attribute)
    assert "data" in moving and moving <= set(_MOVING)
