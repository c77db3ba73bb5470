"""Hostile files run nothing, whatever carries the attack and whoever reads it; and the attacks are real ones."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Callable

import pytest

from convert import torch2paddle
from paddle_dense import cdnv2_a, load_model, load_weights
from paddle_dense.errors import HostileFileError, WeightsError
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import read_metadata, read_weights
from tests.security import hostile
from tests.security.hostile import ARCHIVES, WEIGHT_FILES, Attack

NOWHERE = Path("/nonexistent")
# What some of the attacks would do, as Python reports it to whoever listens.
ALARMS = {"os.system", "os.exec", "os.posix_spawn", "os.mkdir", "subprocess.Popen", "pickle.find_class"}
ALARMS |= {"socket.connect", "ctypes.dlopen", "ctypes.call_function", "shutil.copyfile"}

# The files from which the loaders of the frameworks themselves run what they carry, and part of the data that is asked
# for. The others hide what nobody runs, neither there nor here.
STOCK = {
    "torch.load": (
        *("zip.pth", "next.pth.tar", "module.pth", "saved_id.pth", "bare.pth"),
        *(f"old{at}.pth" for at in range(5)),
    ),
    "paddle.load": (
        *("bare.pdparams", "state.pdparams", "protocol2.pdparams", "protocol3.pdparams", "protocol5.pdparams"),
        *("names.pdparams", "slices.pdparams", "tuple.pdparams"),
    ),
    "numpy.load": ("npz.pth", "npy.pth"),
    "Cifar10": ("data_batch_1.tar", "test_batch.tar"),
    "Cifar100": ("train.tar", "train.tar.gz", "test.tar"),
}
COMMANDED = ["REDUCE", "STACK_GLOBAL from the memo", "getattr"]

heard: list[str] | None = None


def listen(event: str, arguments: tuple) -> None:
    if heard is not None and event in ALARMS:
        heard.append(event)


sys.addaudithook(listen)


@contextmanager
def nothing_runs(canary: Path) -> Iterator[None]:
    """Fails if the block runs an attack."""
    global heard
    heard = []
    try:
        yield
        assert heard == [] and not canary.exists()
    finally:
        heard = None


def attacks(canary: Path) -> dict[str, Attack]:
    return {**hostile.attacks(canary), **hostile.paddle_attacks(canary), **hostile.torch_attacks(canary)}


NAMES = list(attacks(NOWHERE))


def read(reader: Callable[[Path], object], path: Path) -> WeightsError | None:
    """What a reader says of a file: one sentence that begins with its name, if anything."""
    try:
        reader(path)
    except WeightsError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and len(str(error)) < 1000
        return error
    return None


# The attacks are real

PLAIN = """
import base64, copyreg, json, pickle, sys
try:
    import numpy, torch
except ImportError:
    pass
for setup, program in json.load(sys.stdin):
    try:
        exec(setup)
        pickle.loads(base64.b64decode(program))
    except Exception:
        pass
"""


@pytest.fixture(scope="session")
def ran(tmp_path_factory) -> set[str]:
    """The attacks that the plain pickle.loads runs."""
    folder = tmp_path_factory.mktemp("plain")
    canaries = {name: folder / f"canary{number}" for number, name in enumerate(NAMES)}
    real = {name: attack for name, canary in canaries.items() if (attack := attacks(canary)[name]).real}
    programs = [(attack.setup, base64.b64encode(attack.program).decode()) for attack in real.values()]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN],
        input=json.dumps(programs).encode(),
        cwd=folder,
        capture_output=True,
    )
    return {name for name, canary in canaries.items() if canary.exists()}


@pytest.mark.parametrize("name", [name for name, attack in attacks(NOWHERE).items() if attack.real])
def test_plain_pickle_runs_the_attack(ran, name):
    if name.startswith("torch") and find_spec("torch") is None:
        pytest.skip("needs PyTorch")
    assert name in ran


def test_there_are_fifty_real_ones():
    assert sum(attack.real for attack in attacks(NOWHERE).values()) >= 50


LOADERS = """
import copyreg, json, sys, warnings
import numpy, paddle
from paddle.vision import datasets
try:
    import torch
except ImportError:
    pass
warnings.simplefilter("ignore")

def read_array(path):
    found = numpy.load(path, allow_pickle=True)
    return found["w"] if hasattr(found, "files") else found

def read_images(path):
    part = "test" if path.rpartition("/")[2].startswith("test") else "train"
    return getattr(datasets, loader)(data_file=path, mode=part, backend="pil")

for loader, setup, path in json.load(sys.stdin):
    reader = {
        "torch.load": lambda path: torch.load(path, weights_only=False),
        "paddle.load": lambda path: paddle.load(path),
        "numpy.load": read_array,
    }.get(loader, read_images)
    try:
        exec(setup)
        reader(path)
    except Exception:
        pass
"""


@pytest.mark.parametrize("chosen", [COMMANDED, pytest.param(NAMES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_the_frameworks_own_loaders_run_the_attacks(tmp_path, chosen):
    """Every attack in every file that can carry it: what the tests below read is hostile as it stands."""
    pytest.importorskip("paddle", reason="shows that the files are hostile ones")
    with_torch = find_spec("torch") is not None
    canaries, loads = {}, []
    for loader, files in STOCK.items():
        for file in files if with_torch or loader != "torch.load" else ():
            for number, name in enumerate(chosen):
                folder = tmp_path / f"{number}-{file}"
                folder.mkdir()
                attack = attacks(folder / "canary")[name]
                understood = not (file.startswith("protocol") and name in hostile.OF_ONE_PROTOCOL)
                if attack.real and understood and (with_torch or not name.startswith("torch")):
                    canaries[file, name] = folder / "canary"
                    (folder / file).write_bytes({**WEIGHT_FILES, **ARCHIVES}[file](attack))
                    loads.append((loader, attack.setup, str(folder / file)))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADERS],
        input=json.dumps(loads).encode(),
        cwd=tmp_path,
        capture_output=True,
    )
    assert len(canaries) >= 2 * len(chosen)
    assert [place for place, canary in canaries.items() if not canary.exists()] == []


# And run nothing here


@pytest.mark.parametrize("file", WEIGHT_FILES)
@pytest.mark.parametrize("reader", [read_weights, read_checkpoint, read_metadata])
def test_reading_runs_nothing(tmp_path, file, reader):
    canary, path = tmp_path / "canary", tmp_path / file
    carries = {
        read_weights: ("bare.pth", "old0.pth", *STOCK["paddle.load"]),
        read_checkpoint: ("bare.pdparams", *hostile.PACKED, *STOCK["torch.load"]),
        read_metadata: (),
    }[reader]
    for name, attack in attacks(canary).items():
        path.write_bytes(WEIGHT_FILES[file](attack))
        with nothing_runs(canary):
            said = read(reader, path)
        if attack.named and file in carries:
            assert isinstance(said, HostileFileError), name
            assert "asks to run" in str(said) and "take the weights from a source you trust" in str(said)


def test_what_training_scripts_save_is_left_alone(tmp_path):
    """Beside the weights stands a program without a name that gives it away: it is no reason to refuse the weights."""
    canary, path = tmp_path / "canary", tmp_path / "net.pth.tar"
    inert = [attack for attack in attacks(canary).values() if not attack.named and not attack.setup]
    assert len(inert) >= 8
    for attack in inert:
        path.write_bytes(hostile.zipped_next(attack))
        with nothing_runs(canary):
            checkpoint = read_checkpoint(path)
        assert list(checkpoint.state) == ["w", "b"] and checkpoint.state["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_the_command_says_one_sentence_and_writes_nothing(tmp_path, capsys, file):
    canary, path = tmp_path / "canary", tmp_path / file
    for name in COMMANDED:
        path.write_bytes(WEIGHT_FILES[file](attacks(canary)[name]))
        status = torch2paddle.main([str(path)])
        captured = capsys.readouterr()
        assert status == torch2paddle.FAILED and not canary.exists()
        assert captured.out == "" and captured.err.startswith(f"error: {path}")
        assert [line for line in captured.err.splitlines() if not line.startswith("warning: ")][1:] == []
        assert [entry.name for entry in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_loading_a_model_runs_nothing(tmp_path, file):
    canary, path = tmp_path / "canary", tmp_path / file
    for name in COMMANDED:
        path.write_bytes(WEIGHT_FILES[file](attacks(canary)[name]))
        assert read(load_model, path) is not None and not canary.exists()


def test_released_weights_run_nothing(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "cdnv2_a.pdparams"
    path.write_bytes(hostile.pdparams(attacks(canary)["REDUCE"]))
    with pytest.raises(HostileFileError):
        cdnv2_a(pretrained=path)
    assert not canary.exists()


def test_loading_parts_of_a_file_runs_nothing(tmp_path):
    import paddle

    canary, path = tmp_path / "canary", tmp_path / "net.pdparams"
    for name, attack in attacks(canary).items():
        path.write_bytes(hostile.pdparams(attack))
        with nothing_runs(canary):
            said = read(lambda path: load_weights(paddle.nn.Linear(1, 1), path, strict=False), path)
        assert isinstance(said, HostileFileError) == attack.named, name


@pytest.mark.parametrize("file", ARCHIVES)
def test_archives_of_images_run_nothing(tmp_path, file):
    from paddle_dense.training.data import open_data

    canary, path = tmp_path / "canary", tmp_path / file
    for name, attack in attacks(canary).items():
        path.write_bytes(ARCHIVES[file](attack))
        part = "test" if file.startswith("test") else "train"
        with nothing_runs(canary):
            said = read(lambda path, part=part: open_data(path, part), path)
        assert isinstance(said, HostileFileError) == attack.named, name


def test_training_commands_say_one_sentence(tmp_path, capsys):
    from paddle_dense.commands.train import main

    canary = tmp_path / "canary"
    (tmp_path / "x.tar").write_bytes(ARCHIVES["data_batch_1.tar"](attacks(canary)["REDUCE"]))
    (tmp_path / "checkpoint-00000001.safetensors").write_bytes(hostile.pdparams(attacks(canary)["REDUCE"]))
    (tmp_path / "x.pdparams").write_bytes(hostile.pdparams(attacks(canary)["REDUCE"]))
    for arguments in (
        ["--model", "cdnv2_a", "--data", str(tmp_path / "x.tar"), "-o", str(tmp_path / "run")],
        ["--pretrained", str(tmp_path / "x.pdparams"), "--data", "digits", "-o", str(tmp_path / "run")],
        ["--resume", str(tmp_path)],
        ["plot", str(tmp_path / "x.pdparams"), "-o", str(tmp_path / "x.png")],
    ):
        assert main(arguments) == 1, arguments
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.err.startswith("error: "), captured.err
        assert not canary.exists()


def test_a_file_that_is_both_safetensors_and_a_pickle(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "net.safetensors"
    path.write_bytes(hostile.both(attacks(canary)["REDUCE"]))
    for reader in (read_weights, read_checkpoint):
        with nothing_runs(canary):
            assert "holds a tensor named" in str(read(reader, path))
    with open(path, "rb") as file:
        pickle.load(file)  # it is a real one
    assert canary.exists()


def test_the_tests_would_notice(tmp_path):
    canary = tmp_path / "canary"
    attack = attacks(canary)["REDUCE"]
    with pytest.raises(AssertionError), nothing_runs(canary):
        pickle.loads(attack.program)
