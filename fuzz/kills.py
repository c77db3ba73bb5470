"""Power cuts: conversions killed at random moments, and every kind of writing killed before each of its steps.

python -m fuzz.kills --count 200 --seed 0
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from paddle_dense.errors import WeightsError
from paddle_dense.files.atomic import move_together, temporary_folder
from paddle_dense.files.sidecar import is_left_over, read_sidecar, write_with_sidecar
from paddle_dense.files.weights import read_weights, write_weights

OLD, NEW, NONE, BROKEN = "old", "new", "none", "broken"
# What Python does to names of files; the audit hook hears of it beforehand.
_STEPS = {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "shutil.rmtree"}
_STEPS |= {"fcntl.flock"}

Fault = Callable[[], None]


def die() -> None:
    """As a power cut: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """As Ctrl-C at this moment."""
    raise KeyboardInterrupt


def fail() -> None:
    """As a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fault_at(number: int, fault: Fault, folder: Path) -> None:
    """From now on the process has a fault before the step of this number, from 1, that it does on files of a folder."""
    done = 0
    fsync = os.fsync

    def step() -> None:
        nonlocal done
        done += 1
        if done == number:
            fault()

    def heard(event: str, arguments: tuple) -> None:
        if event in _STEPS and (event == "fcntl.flock" or str(arguments[0]).startswith(str(folder))):
            step()

    def synchronised(handle: int) -> None:
        step()
        fsync(handle)

    sys.addaudithook(heard)
    os.fsync = synchronised


def in_a_fork(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; the signal that ended it, or its exit status as a negative number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return _ended(os.waitpid(pid, 0)[1])
    try:
        work()
        os._exit(0)
    except (WeightsError, OSError, KeyboardInterrupt):  # what the faults lead to
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _ended(status: int) -> int:
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def at_every_step(work: Callable[[], object], folder: Path, fault: Fault = die) -> Iterator[int]:
    """Begin `work` again and again in a copy of this process, with the fault one step later each time.

    Args:
        work: what writes into the folder.
        folder: whose files count.
        fault: `die`, `interrupt` or `fail`.

    Yields:
        The number of the step, when the copy has ended.
    """
    number = 0
    while True:
        number += 1
        hears, says = os.pipe()

        def reached(says: int = says) -> None:
            os.write(says, b"!")
            fault()

        ended = in_a_fork(lambda number=number, reached=reached: (fault_at(number, reached, folder), work()))
        os.close(says)
        with open(hears, "rb") as said:
            if not said.read():
                return
        if ended == -1:
            raise RuntimeError(f"an unexpected error at step {number}")
        yield number


def at_every_size(work: Callable[[], object], sizes: Sequence[int]) -> Iterator[int]:
    """The same with a process that the system kills while it writes, when a file grows beyond each of the sizes."""

    def limited(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    for size in sizes:
        if in_a_fork(lambda size=size: limited(size)) == signal.SIGXFSZ:
            yield size


# What is written, and what is found afterwards


class Pair:
    """Weights and their sidecar, of a version that both tell."""

    suffix = ".pdparams"

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"net{self.suffix}"
        self.names = {self.path.name, "net.json"}

    def write(self, version: int) -> None:
        """Put a version there."""
        write_with_sidecar({"w": np.full((50, 100), version, "f4")}, self.path, {"version": version})

    def found(self) -> str:
        """Which version is there."""
        if not self.path.exists():
            sidecar = self.path.with_suffix(".json")
            return NONE if not sidecar.exists() or is_left_over(sidecar) else BROKEN
        versions = set(read_weights(self.path)["w"].ravel()) | {(read_sidecar(self.path) or {}).get("version")}
        return {1: OLD, 2: NEW}.get(versions.pop(), BROKEN) if len(versions) == 1 else BROKEN


class Single(Pair):
    """A checkpoint of a training run: one file."""

    suffix = ".safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names = {self.path.name}

    def write(self, version: int) -> None:
        write_weights({"w": np.full((50, 100), version, "f4")}, self.path, {"step": str(version)})

    def found(self) -> str:
        versions = set(read_weights(self.path)["w"].ravel()) if self.path.exists() else set()
        return {(): NONE, (1,): OLD, (2,): NEW}.get(tuple(versions), BROKEN)


class Export:
    """Program, weights and metadata: without the program, which is the first, the others are nothing."""

    same: tuple[str, ...] = ()  # files whose content does not depend on the version

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = {"net.json", "net.pdiparams", "net.meta.json"}

    def write(self, version: int) -> None:
        """Put a version there."""
        with temporary_folder(self.folder / "net") as folder:
            files = [folder / name for name in ("net.json", "net.pdiparams", "net.meta.json")]
            for file in files:
                file.write_bytes(b"0" if file.name in self.same else b"%d" % version * 1000)
            move_together(files, self.folder)

    def found(self) -> str:
        """Which version is there."""
        if not (self.folder / "net.json").exists():
            return NONE
        if set(os.listdir(self.folder)) & self.names != self.names:
            return BROKEN
        versions = {(self.folder / name).read_bytes()[:1] for name in self.names.difference(self.same)}
        return {b"1": OLD, b"2": NEW}.get(versions.pop(), BROKEN) if len(versions) == 1 else BROKEN


class SameProgram(Export):
    """The same network with other weights."""

    same = ("net.json", "net.meta.json")


KINDS: dict[str, Callable[[Path], Any]] = {
    "weights and sidecar": Pair,
    "checkpoint of a training run": Single,
    "export of a network": Export,
    "export of the network's other weights": SameProgram,
}
# An older result is never lost, except that an export which changes several files has a moment without its program.
HAS_A_GAP = "export of a network"
FAULTS = {"killed": die, "interrupted": interrupt, "on a full disk": fail}


def cut(kind: str, replacing: bool, fault: Fault = die) -> Counter:
    """Have the fault at each step of writing version 2 over version 1, or where nothing is, and look what is there.

    Returns:
        How often `OLD`, `NEW` and `NONE` were found, how often anything else (`BROKEN`), how often the next run left
        anything but its own files (``"strays"``), and how many steps there were (``"steps"``).
    """
    tally: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "folder"
        folder.mkdir()
        files = KINDS[kind](folder)

        def again() -> None:
            shutil.rmtree(folder)
            folder.mkdir()
            if replacing:
                files.write(1)

        def judged() -> None:
            tally["steps"] += 1
            tally[_judged(files)] += 1
            files.write(2)
            tally["strays"] += _judged(files) != NEW or set(os.listdir(folder)) != files.names
            again()

        again()
        for _ in at_every_step(lambda: files.write(2), folder, fault):
            judged()
        for _ in at_every_size(lambda: files.write(2), range(0, 20_000, 4_000) if fault is die else ()):
            judged()
    return tally


def _judged(files: Any) -> str:
    try:
        return files.found()
    except WeightsError:
        return BROKEN


# Conversions at random moments


class Conversions:
    """A conversion that is killed: the command on one checkpoint, over another's result or where nothing is."""

    def __init__(self, folder: Path, random: np.random.Generator) -> None:
        from paddle_dense.files.torch_archive import write_torch
        from paddle_dense.files.torch_file import read_checkpoint
        from paddle_dense.pretrained import shipped_folder

        self.random = random
        self.target = folder / "out" / "net.pdparams"
        self.target.parent.mkdir()
        state = read_checkpoint(shipped_folder() / "cdnv2_digits.pth").state
        self.sources = {}
        for name, scale in ((OLD, 1.0), (NEW, 1.25)):
            self.sources[name] = folder / f"{name}.pth"
            changed = {key: value * np.float32(scale) for key, value in state.items() if key.endswith("running_mean")}
            with open(self.sources[name], "wb") as file:
                write_torch({**state, **changed}, file)
        self.expected = {}
        self.kept = {}
        for name in (OLD, NEW):
            start = time.perf_counter()
            self.convert(name)
            self.seconds = time.perf_counter() - start
            self.expected[name] = read_weights(self.target)
            self.kept[name] = {path.name: path.read_bytes() for path in self.target.parent.iterdir()}

    def convert(self, name: str, *options: str) -> None:
        """Convert a checkpoint to the end."""
        ended = in_a_fork(lambda: self._command(name, *options))
        if ended:
            raise RuntimeError(f"the conversion ended with {ended}")

    def _command(self, name: str, *options: str) -> None:
        from convert.torch2paddle import main

        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        os._exit(main([str(self.sources[name]), "-o", str(self.target), "--force", *options]))

    def begin_with(self, files: dict[str, bytes]) -> None:
        """Have these files and no others at the target."""
        for path in self.target.parent.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.target.parent / name).write_bytes(content)

    def kill(self, while_writing: bool) -> bool:
        """Kill a conversion at a random moment, of all its time or once it writes; False if it ended before."""
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            self._command(NEW)
        before, start = set(os.listdir(self.target.parent)), time.perf_counter()
        if while_writing:
            # Not for ever: a conversion may be done between two looks.
            while set(os.listdir(self.target.parent)) == before and time.perf_counter() - start < 10 * self.seconds:
                pass
            time.sleep(self.random.uniform(0, 0.05))
        else:
            time.sleep(self.random.uniform(0, self.seconds))
        os.kill(pid, signal.SIGKILL)  # it cannot be another process yet, as nobody has waited for this one
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def found(self) -> str:
        """Whose result is at the target."""
        names = set(os.listdir(self.target.parent))
        if self.target.name not in names:
            return NONE if "net.json" not in names or is_left_over(self.target.with_suffix(".json")) else BROKEN
        state, written = read_weights(self.target), read_sidecar(self.target)
        for name, expected in self.expected.items():
            kept = json.loads(self.kept[name]["net.json"])
            same = all(np.array_equal(state[key], expected[key]) for key in expected)
            if same and written and written["source"] == kept["source"] and written["config"] == kept["config"]:
                return name
        return BROKEN

    def judged(self) -> str:
        """As `found`; what cannot be read is broken."""
        try:
            return self.found()
        except (WeightsError, KeyError, TypeError):
            return BROKEN


def kill_conversions(count: int, seed: int) -> dict[str, Counter]:
    """Kill conversions at random moments; tallies as those of `cut`, by where the kill fell and what was there."""
    import paddle  # noqa: F401  in this process once instead of in each conversion
    import torch  # noqa: F401

    tallies: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        conversions = Conversions(Path(folder), np.random.default_rng(seed))
        number = 0
        while number < count:
            while_writing, replacing = bool(number % 2), bool(number // 2 % 2)
            conversions.begin_with(conversions.kept[OLD] if replacing else {})
            if not conversions.kill(while_writing):
                continue  # it was done before
            number += 1
            when = "while it writes" if while_writing else "at any moment"
            name = f"conversion, {'over an older' if replacing else 'first'}, killed {when}"
            tally = tallies.setdefault(name, Counter())
            tally["steps"] += 1
            found = conversions.judged()
            tally[BROKEN if replacing and found == NONE else found] += 1
            conversions.convert(NEW, "--no-verify")
            names = set(os.listdir(conversions.target.parent))
            tally["strays"] += conversions.judged() != NEW or names != set(conversions.kept[NEW])
    return tallies


def main() -> int:
    """Kill, look, and print the tables; 1 if anything is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz.kills", description="Kill conversions and other writing, and look what is left."
    )
    parser.add_argument("--count", type=int, default=200, help="conversions to kill at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    tallies, lost = {}, 0
    fsync, os.fsync = os.fsync, lambda handle: None  # a process that is killed loses nothing that the system has
    for kind in KINDS:
        for replacing in (False, True):
            for what, fault in FAULTS.items():
                tally = cut(kind, replacing, fault)
                tallies[f"{kind}, {'over an older' if replacing else 'first'}, {what} at every step"] = tally
                lost += tally[NONE] if replacing and not (kind == HAS_A_GAP and fault is die) else 0
    os.fsync = fsync
    if options.count:
        tallies.update(kill_conversions(options.count, options.seed))
    columns = ("steps", NONE, OLD, NEW, BROKEN, "strays")
    print(
        "| what is written, and how it ends | times | nothing there | old | new | broken | strays after the next run |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, tally in tallies.items():
        print(f"| {name} | {' | '.join(str(tally[column]) for column in columns)} |")
    wrong = lost + sum(tally[BROKEN] + tally["strays"] for tally in tallies.values())
    print(f"{sum(tally['steps'] for tally in tallies.values())} times, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
