"""Every file whole or not at all: killed, interrupted, on a full disk, and with others that write there too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fcntl", reason="locks of Unix")

import paddle_dense as pd_
from fuzz.kills import BROKEN, NEW, OLD, Export, Pair, die, in_a_fork
from paddle_dense.errors import WeightsError
from paddle_dense.files import atomic as writing
from paddle_dense.files.atomic import atomic_write, move_together, new_file, temporary_folder
from paddle_dense.files.sidecar import is_left_over, network_in, read_sidecar, write_with_sidecar
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.process import FAILED, OK

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "weights" / "cdnv2_digits.pth"
SMALL = "stages=1-1,growth=4-4,group_1x1=1,group_3x3=1,condense_factor=1"
TRAIN = ["--data", "digits", "--model", "CondenseNet", "--config", SMALL]
LEFT = ".paddle_dense-0123456789abcdef.tmp"  # what a dead run's file is called


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Killed before every step


@pytest.mark.parametrize("count", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_every_step_and_at_random_moments(count):
    """In a process of its own, which forks: threads of the tests before would not survive that."""
    if count:
        pytest.importorskip("torch", reason="the check compares with PyTorch")
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.kills", "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" at every step |") == 24 and done.stdout.endswith(" 0 wrong\n")


@pytest.mark.parametrize("kind", [Pair, Export])
def test_mixed_files_are_found_out(tmp_path, kind):
    """The check of the checks: files of two versions are broken."""
    files = kind(tmp_path)
    files.write(1)
    assert files.found() == OLD
    kept = {name: (tmp_path / name).read_bytes() for name in files.names}
    files.write(2)
    assert files.found() == NEW
    for name, content in kept.items():
        new = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError) if kind is Pair else nullcontext():
            assert files.found() == BROKEN
        (tmp_path / name).write_bytes(new)


# Weights and the sidecar that tells of them


def describe(path: Path, version: int) -> None:
    write_with_sidecar({"w": np.full(3, version, "f4")}, path, {"arch": "net", "config": {"version": version}})


def described(path: Path, state: dict | None = None) -> tuple:
    return network_in(read_sidecar(path, state) or {})


def test_a_sidecar_of_other_tensors_is_not_believed(tmp_path):
    path = tmp_path / "net.pdparams"
    describe(path, 1)
    assert described(path) == ("net", {"version": 1})
    write_weights({"w": np.zeros(3, "f4")}, path)
    with pytest.raises(WeightsError, match=r"net.json describes other tensors than .*net.pdparams holds: delete it"):
        described(path)


def test_a_model_is_not_rebuilt_from_a_sidecar_of_others(tmp_path):
    shutil.copy(DIGITS.with_suffix(".json"), tmp_path / "net.json")
    entries = json.loads((tmp_path / "net.json").read_text())
    entries["tensors_sha256"] = "0" * 64
    (tmp_path / "net.json").write_text(json.dumps(entries))
    shutil.copy(DIGITS.with_suffix(".pdparams"), tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match="describes other tensors"):
        pd_.load_model(tmp_path / "net.pdparams")


def test_the_same_tensors_in_another_format_share_a_sidecar(tmp_path):
    for suffix in (".pdparams", ".safetensors"):
        describe(tmp_path / f"net{suffix}", 1)
    assert described(tmp_path / "net.pdparams") == described(tmp_path / "net.safetensors") == ("net", {"version": 1})


def test_what_a_first_conversion_left_is_in_nobodys_way(tmp_path):
    """Its sidecar came first; neither `--force` nor a hand is needed to convert again."""
    pytest.importorskip("torch", reason="the check compares with PyTorch")
    from convert.conversion import convert_checkpoint
    from convert.options import Options

    pair = Pair(tmp_path)
    replace = os.replace

    def dies_before_the_weights() -> None:
        os.replace = lambda old, new: die() if str(new) == str(pair.path) else replace(old, new)
        pair.write(1)

    assert in_a_fork(dies_before_the_weights) == signal.SIGKILL
    assert not pair.path.exists() and is_left_over(pair.path.with_suffix(".json"))
    convert_checkpoint(DIGITS, pair.path, Options(verify=False))
    assert read_sidecar(pair.path)["arch"] == "CondenseNetV2" and names(tmp_path) == ["net.json", "net.pdparams"]
    with pytest.raises(WeightsError, match="exists already"):
        convert_checkpoint(DIGITS, pair.path, Options(verify=False))


# What dead runs left


def test_only_what_dead_runs_left_is_swept(tmp_path):
    users = {"notes.tmp", ".paddle_dense.tmp", ".paddle_dense-notes.tmp", f"{LEFT}.txt"}
    for name in (LEFT, *users):
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("text")
    (tmp_path / LEFT.replace("0", "a")).symlink_to(tmp_path / "precious")
    (tmp_path / LEFT.replace("0", "b")).symlink_to(tmp_path / "notes.tmp")
    os.mkfifo(tmp_path / LEFT.replace("0", "c"))
    (tmp_path / LEFT.replace("0", "d")).mkdir()
    (tmp_path / LEFT.replace("0", "d") / "half").write_text("text")
    (tmp_path / LEFT.replace("0", "d") / "link").symlink_to(tmp_path / "precious", target_is_directory=True)
    with atomic_write(tmp_path / "new"):
        pass
    links = {LEFT.replace("0", letter) for letter in "abc"}
    assert set(names(tmp_path)) == {"new", "precious", *users, *links}
    assert (tmp_path / "precious" / "data").exists()


def test_what_a_living_run_writes_is_not_swept(tmp_path):
    with temporary_folder(tmp_path / "net") as folder, new_file(tmp_path / "slow.bin") as slow:
        slow.file.write(b"half")
        assert in_a_fork(lambda: write_weights({}, tmp_path / "quick.pdparams")) == 0
        write_weights({}, tmp_path / "another.pdparams")
        assert folder.is_dir() and os.path.exists(slow.temporary)
        slow.complete()
        slow.put_in_place()
    assert names(tmp_path) == ["another.pdparams", "quick.pdparams", "slow.bin"]


def test_a_temporary_folder_is_written_to_at_once(tmp_path, monkeypatch):
    """Its writer holds the lock on it, and had waited for itself."""

    def wait(seconds: float) -> None:
        raise AssertionError("waited for a lock")

    monkeypatch.setattr(writing.time, "sleep", wait)
    with temporary_folder(tmp_path / "net") as folder:
        write_with_sidecar({"w": np.ones(3, np.float32)}, folder / "net.pdparams", {"arch": "CondenseNet"})
        assert names(folder) == ["net.json", "net.pdparams"]
        move_together([folder / "net.pdparams", folder / "net.json"], tmp_path)
    assert names(tmp_path) == ["net.json", "net.pdparams"]


def test_two_writers_at_once_never_mix(tmp_path):
    """The last one's weights have the last one's sidecar, and no reader takes two writers' files for one."""
    path = tmp_path / "net.pdparams"
    describe(path, 0)

    def writer(number: int) -> None:
        for _ in range(15):
            describe(path, number)

    pids = []
    for number in range(1, 4):
        pids.append(os.fork())
        if not pids[-1]:
            os._exit(-in_a_fork(lambda number=number: writer(number)))
    ended, matches = [], 0
    while len(ended) < len(pids):
        ended += [status for pid, status in (os.waitpid(pid, os.WNOHANG) for pid in pids[len(ended) :][:1]) if pid]
        state = read_weights(path)
        try:
            network = described(path, state)
        except WeightsError:  # replaced between the two readings
            continue
        matches += 1
        assert network == ("net", {"version": state["w"][0]})
    assert ended == [0, 0, 0] and matches
    assert described(path)[1]["version"] == read_weights(path)["w"][0] > 0
    assert names(tmp_path) == ["net.json", "net.pdparams"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["convert.torch2paddle", "paddle_dense.deploy"])
def test_two_commands_at_once_into_one_target(tmp_path, module):
    """Each in a process of its own, from the same moment on; whoever was last has all of the files."""
    pytest.importorskip("torch", reason="the check compares with PyTorch")
    converts = module == "convert.torch2paddle"
    target = tmp_path / ("net.pdparams" if converts else "net")
    command = [sys.executable, "-m", module, str(DIGITS if converts else DIGITS.with_suffix(".pdparams"))]
    command += ["-o", str(target), "--force"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    if converts:
        assert pd_.load_model(target).config["num_classes"] == 10
        assert names(tmp_path) == ["net.json", "net.pdparams"]
    else:
        from paddle_dense.deploy.exporting import PROGRAM_SUFFIX, load_paddle

        files = [tmp_path / f"net{PROGRAM_SUFFIX}", tmp_path / "net.pdiparams"]
        assert load_paddle(files, threads=1)(np.zeros((1, 1, 32, 32), "f4"))[0].shape == (1, 10)
        assert len(names(tmp_path)) == 3


# Exports of several files


@pytest.mark.parametrize("occupied", ["net.json", "net.pdiparams", "net.meta.json"])
def test_a_folder_in_the_way_of_an_export_changes_nothing(tmp_path, occupied):
    files = ["net.json", "net.pdiparams", "net.meta.json"]
    for name in files:
        (tmp_path / name).mkdir() if name == occupied else (tmp_path / name).write_text("old")
    message = rf"{occupied}: cannot be written \(Is a directory\): give the name of a file"
    with pytest.raises(WeightsError, match=message), temporary_folder(tmp_path / "net") as folder:
        for name in files:
            (folder / name).write_text("new")
        move_together([folder / name for name in files], tmp_path)
    assert names(tmp_path) == sorted(files) and (tmp_path / occupied).is_dir()
    assert {(tmp_path / name).read_text() for name in files if name != occupied} == {"old"}


# Signals: one line, and the status that shells give


def asks_to_be_stopped(tmp_path: Path, number: int) -> str:
    """``--reference`` with code that sends this process a signal during a conversion."""
    (tmp_path / f"stops{number}.py").write_text(f"import os\ndef build(): os.kill(os.getpid(), {number})\n")
    return f"stops{number}:build"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["convert.torch2paddle", "convert.parity.__main__"])
def test_signals_end_a_conversion_in_one_line(tmp_path, monkeypatch, capfd, module, number):
    pytest.importorskip("torch", reason="the check compares with PyTorch")
    main = __import__(module, fromlist=["main"]).main
    monkeypatch.chdir(tmp_path)
    reference = asks_to_be_stopped(tmp_path, int(number))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    shutil.copy(DIGITS, "a.pth")
    before = names(tmp_path)
    assert main(["a.pth", "--reference", reference]) == 128 + number
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"error: stopped by {number.name}: ")
    assert "Traceback" not in captured.err and captured.out == ""
    assert [name for name in names(tmp_path) if name != "__pycache__"] == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


WITH_LABELS = """
import os, sys

def stop(event, arguments):
    if event == "open" and arguments[0] == {labels!r}:
        os.kill(os.getpid(), {number})

sys.addaudithook(stop)
from paddle_dense.process import as_process
from paddle_dense.commands.deploy import main
as_process(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_an_export_although_paddle_wants_one(tmp_path, number):
    """A process of its own, as Paddle takes SIGTERM when it is imported; it stops itself once it reads the labels."""
    (tmp_path / "labels").write_text("a\n")
    program = WITH_LABELS.format(labels=str(tmp_path / "labels"), number=int(number))
    command = [sys.executable, "-c", program, str(DIGITS.with_suffix(".pdparams"))]
    command += ["-o", str(tmp_path / "net"), "--labels", str(tmp_path / "labels")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.startswith(f"error: stopped by {number.name}: ") and done.stderr.count("\n") == 1
    assert names(tmp_path) == ["labels"]


AMID_IMPORTS = """
import os, sys

def stop(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), {number})

sys.addaudithook(stop)
from convert.torch2paddle import main
from paddle_dense.process import as_process
as_process(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["paddle.base.libpaddle", "paddle.hapi", "torch._C"])
def test_signals_amid_the_imports_of_the_frameworks(tmp_path, module, number):
    """Paddle's C++ had made an ImportError of the exception, or had ended without a word; PyTorch's had its own say.

    At ``paddle.hapi`` SIGTERM is Paddle's already, and a thread of NumPy's had taken it.
    """
    pytest.importorskip("torch", reason="the check compares with PyTorch")
    program = AMID_IMPORTS.format(module=module, number=int(number))
    command = [sys.executable, "-W", "ignore", "-c", program, str(DIGITS), "-o", str(tmp_path / "net.pdparams")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, names(tmp_path)) == (128 + number, "", [])
    assert done.stderr.startswith(f"error: stopped by {number.name}: ") and done.stderr.count("\n") == 1


def started(arguments: list[str], folder: Path) -> subprocess.Popen:
    """A command of this package in a process of its own, its output kept."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def listens(process: subprocess.Popen) -> bool:
    """Whether a process has a handler of its own for SIGTERM, once it has."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["convert", "deploy", "train"])
def test_signals_at_any_moment_of_a_command(tmp_path, command, number):
    """Tracing a network runs Python inside of C++, which made crashes and other errors of the exception."""
    for needed in ("torch", "sklearn"):
        pytest.importorskip(needed)
    arguments = {
        "convert": ["convert.torch2paddle", str(DIGITS), "-o", "net.pdparams"],
        "deploy": ["paddle_dense.deploy", str(DIGITS.with_suffix(".pdparams")), "-o", "net", "--size", "32"],
        "train": ["paddle_dense.training", *TRAIN, "--epochs", "2", "-o", "."],
    }[command]
    seconds, stopped = 0.0, 0
    for part in (None, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        folder = tmp_path / f"{part}"
        folder.mkdir()
        process = started(arguments, folder)
        assert listens(process)
        start = time.monotonic()
        if part is not None:
            time.sleep(part * seconds)
            process.send_signal(number)
        _, err = process.communicate()
        said = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert process.returncode in (0, 128 + number), err
        if part is None:
            assert process.returncode == 0, err
            seconds = time.monotonic() - start
        elif process.returncode:
            stopped += 1
            if command != "train" or said:
                assert len(said) == 1 and said[0].startswith(f"error: stopped by {number.name}: "), err
            assert all(name.startswith("checkpoint-") for name in names(folder))
    assert stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_training_with_a_checkpoint(tmp_path, capfd, number):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install paddle_dense[train]")
    from paddle_dense.commands.train import main

    done = threading.Event()

    def stop_it() -> None:
        while not list(tmp_path.glob("checkpoint-*")) and not done.wait(0.01):
            pass
        if not done.is_set():
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop_it)
    thread.start()
    try:
        status = main([*TRAIN, "--epochs", "1000", "-o", str(tmp_path)])
    finally:
        done.set()
        thread.join()
    captured = capfd.readouterr()
    assert status == 128 + number, captured.err
    assert "stopped and saved at step" in captured.out and "Traceback" not in captured.err
    assert all(name.startswith("checkpoint-") for name in names(tmp_path) if name not in ("config.yaml", "log.csv"))


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory) -> Path:
    """Images that take a quarter of a second each: 300 of them to train with in one batch, and 300 to test with."""
    from tests.test_images import empty_png

    root = tmp_path_factory.mktemp("slow")
    (root / "large.png").write_bytes(empty_png(6000, 6000))
    for part in ("train", "val"):
        (root / part / "black").mkdir(parents=True)
        for number in range(300):
            (root / part / "black" / f"{number}.png").symlink_to(root / "large.png")
    return root


def reads(process: subprocess.Popen, file: Path) -> bool:
    """Whether the process, or one that it started, has this file open, once one has; False if it ends before."""
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *children):
            with suppress(OSError):
                if any(os.path.realpath(link) == str(file) for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return True
        time.sleep(0.01)
    return False


def stopped_while_reading(arguments: list[str], folder: Path, file: Path) -> tuple[float, int, str, str]:
    """Send SIGTERM to a command once it has a file open: seconds from then to its end, status, stdout, stderr."""
    process = started(arguments, folder)
    reading = reads(process, file)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait()
    seconds = time.monotonic() - start
    out, err = process.communicate()
    assert reading, err
    return seconds, process.returncode, out, err


SOON = 5  # seconds: what is promised
ATTEMPTS = 3  # another process may have had the machine meanwhile
ALL_AT_ONCE = ["paddle_dense.training", "--data", "{images}", "--batch-size", "300"]
READING = {
    "training": [*ALL_AT_ONCE, *TRAIN[2:], "-o", "run"],
    "training, workers": [*ALL_AT_ONCE, *TRAIN[2:], "-o", "run", "--workers", "2"],
    "evaluation": [*ALL_AT_ONCE, "--eval-only", "--pretrained", "{net}"],
    "evaluation, workers": [*ALL_AT_ONCE, "--eval-only", "--pretrained", "{net}", "--workers", "2"],
    "conversion": ["convert.torch2paddle", str(DIGITS), "--images", "{images}/train", "-o", "new.pdparams"],
}


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks into /proc")
@pytest.mark.parametrize(
    "command", [name if name == "training" else pytest.param(name, marks=pytest.mark.slow) for name in READING]
)
def test_a_command_that_reads_images_ends_soon(tmp_path, slow_images, command):
    """Training had read its batch to the end first; with other processes, whatever the command did had to wait."""
    if command == "conversion":
        pytest.importorskip("torch", reason="the check compares with PyTorch")
    net = pd_.CondenseNet(stages=[1, 1], growth=[4, 4], num_classes=1)
    pd_.save_weights(net, tmp_path / "net.safetensors")
    before = names(tmp_path)
    arguments = [argument.format(images=slow_images, net=tmp_path / "net.safetensors") for argument in READING[command]]
    for _ in range(ATTEMPTS):
        seconds, status, out, err = stopped_while_reading(arguments, tmp_path, slow_images / "large.png")
        assert status == 128 + signal.SIGTERM, err
        if "training" in command:
            assert out.splitlines()[-1] == "stopped and saved at step 0: --resume run continues"
            assert err == ""
            assert names(tmp_path / "run") == ["checkpoint-00000000.safetensors", "config.yaml"]
            shutil.rmtree(tmp_path / "run")
        else:
            assert err.startswith("error: stopped by SIGTERM: ")
            assert err.count("\n") == 1
            assert out == ""
        assert names(tmp_path) == before
        if seconds <= SOON:
            return
    pytest.fail(f"took more than {SOON} s in each of {ATTEMPTS} attempts, {seconds:.1f} s in the last")


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], stderr=subprocess.DEVNULL
        ).returncode
    ):
        pytest.skip("needs the right to mount a small disk; tests/test_weights.py limits the size of files instead")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_leaves_the_old_pair(small_disk):
    path = small_disk / "net.pdparams"
    describe(path, 1)
    before = {name: (small_disk / name).read_bytes() for name in names(small_disk)}
    message = r"net.pdparams: cannot be written \(No space left on device\): free some space or choose another disk"
    with pytest.raises(WeightsError, match=message):
        write_with_sidecar({"w": np.zeros(40_000, "f4")}, path, {"arch": "net", "config": {}})
    assert {name: (small_disk / name).read_bytes() for name in names(small_disk)} == before


@pytest.mark.parametrize("format", ["paddle", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk_is_reported_though_paddle_says_nothing(small_disk, request, format):
    if format == "onnx":
        request.getfixturevalue("onnxruntime")
    model = pd_.load_model(DIGITS.with_suffix(".pdparams"))
    model.eval()
    with pytest.raises(WeightsError, match=r"net: cannot be written \(No space left on device\): free some space"):
        pd_.deploy.export(model, small_disk / "net", format, input_size=32)
    assert names(small_disk) == []


COMMANDS = {
    "convert.torch2paddle": [str(DIGITS), "--no-verify", "-o", "{disk}/net.pdparams"],
    "convert.torch2paddle into a new folder": [str(DIGITS), "--no-verify", "-o", "{disk}/new/net.pdparams"],
    "convert.paddle2torch": [str(DIGITS.with_suffix(".pdparams")), "--no-verify", "-o", "{disk}/new/net.pth"],
    "paddle_dense.commands.deploy": [str(DIGITS.with_suffix(".pdparams")), "-o", "{disk}/net", "--size", "32"],
    "paddle_dense.commands.train": [*TRAIN, "--epochs", "1", "-o", "{disk}/run"],
}


def fails(command: str, disk: Path, capsys) -> str:
    """The one line with which a command ends."""
    module, arguments = command.partition(" ")[0], COMMANDS[command]
    if "training" in module:
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install paddle_dense[train]")
    main = __import__(module, fromlist=["main"]).main
    assert main([argument.format(disk=disk) for argument in arguments]) == FAILED
    captured = capsys.readouterr()
    [error] = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert error.startswith("error: ") and "Errno" not in error
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_a_disk_that_is_read_only(small_disk, capsys, command):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    error = fails(command, small_disk, capsys)
    assert error.endswith("(Read-only file system): choose a folder that you may write to")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_a_disk_that_is_full(small_disk, capsys, command):
    with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while file.write(bytes(1000)):
            pass
    error = fails(command, small_disk, capsys)
    assert error.endswith("(No space left on device): free some space or choose another disk")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filler"]


def test_a_folder_in_the_way_of_a_trainings_weights(tmp_path, capsys):
    (tmp_path / "run" / "model.pdparams").mkdir(parents=True)
    error = fails("paddle_dense.commands.train", tmp_path, capsys)
    assert error.endswith("model.pdparams: cannot be written (Is a directory): give the name of a file")
    assert len([name for name in names(tmp_path / "run") if name.startswith("checkpoint-")]) == 2  # nothing is lost


@pytest.mark.parametrize("occupied", ["net.pdparams", "net.json"])
def test_a_folder_in_the_way_of_a_conversion(tmp_path, capsys, occupied):
    from convert.torch2paddle import main

    other = tmp_path / ("net.json" if occupied == "net.pdparams" else "net.pdparams")
    other.write_text("{}")
    (tmp_path / occupied).mkdir()
    status = main([str(DIGITS), "-o", str(tmp_path / "net.safetensors"), "--force", "--no-verify"])
    assert status == (OK if occupied == "net.pdparams" else FAILED)
    write = [str(DIGITS), "--force", "--no-verify", "--format", "pdparams"]
    shutil.copy(DIGITS, tmp_path / "net.pth")
    capsys.readouterr()
    assert main([str(tmp_path / "net.pth"), *write[1:]]) == FAILED
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and err.endswith(
        f"{occupied}: cannot be written (Is a directory): give the name of a file"
    )


def test_a_lock_that_nobody_gives_back_is_not_waited_for_forever(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("paddle_dense.files.atomic._PATIENCE", 0.1)
    (tmp_path / LEFT).write_text("half")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    describe(tmp_path / "net.pdparams", 1)  # comes to an end
    os.close(handle)
    assert names(tmp_path) == [LEFT, "net.json", "net.pdparams"]  # nothing is swept without the lock
