"""Files that appear whole or not at all, whenever the process or the machine stops, and never mixed with another's.

A file grows under a temporary name in the folder of its target and takes the target's name in one step, once the disk
has all of it. Its writer holds a lock on it meanwhile (flock, which ends with the process), so that the next writer in
the folder knows what dead runs left there and removes it. Where a disk has no locks, nothing is removed.
"""

from __future__ import annotations

import errno
import filecmp
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from paddle_dense.errors import WeightsError
from paddle_dense.process import removed_afterwards, uninterrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = Union[str, os.PathLike[str]]

_TEMPORARY = re.compile(r"\.paddle_dense-[0-9a-f]{16}\.tmp")
_PATIENCE = 10.0  # seconds that one waits for others, who need milliseconds
_FIXES: dict[int | None, str] = {
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "give a path inside an existing folder",
    errno.EISDIR: "give the name of a file",
    errno.ENXIO: "give the name of a file",
    errno.EEXIST: "give another name, since a file has this one",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
}


def unwritable(path: PathLike, error: OSError) -> WeightsError:
    """The one sentence that says why a file cannot be written, and what to do."""
    fix = _FIXES.get(error.errno, "choose another place")
    return WeightsError(f"{os.fspath(path)}: cannot be written ({error.strerror or error}): {fix}")


def make_folder(path: PathLike) -> None:
    """Make a folder, and those that it is in, unless they are there.

    Raises:
        WeightsError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


# What must not be replaced


def check_target(path: PathLike) -> None:
    """See that a file can take this name: nothing but a file is replaced by one, no folder, pipe or device.

    Raises:
        WeightsError: something else stands there.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing is there, or opening says why
    if stat.S_ISDIR(mode):
        raise unwritable(path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not stat.S_ISREG(mode):
        raise unwritable(path, OSError(errno.ENXIO, "Not a regular file"))


def refuse_existing(path: PathLike, force: bool, option: str = "-o") -> None:
    """See that a file can be written there, and replaces none unless the user said so.

    Args:
        path: the file to be written.
        force: the user said --force.
        option: the one that gives it another name.

    Raises:
        WeightsError: a file stands there already, or something that no file replaces.
    """
    check_target(path)
    if not force and os.path.exists(path):
        raise WeightsError(
            f"{os.fspath(path)} exists already: give another name with {option}, or --force to overwrite it"
        )


def file_key(path: PathLike) -> Hashable:
    """The same for two paths of one file: links of either kind, spellings, and names on disks without case."""
    with suppress(OSError):
        status = os.stat(path)
        if status.st_ino:  # some network disks give none
            return status.st_dev, status.st_ino
    return os.path.normcase(os.path.realpath(path))


def overlap(written: Iterable[PathLike], read: Iterable[PathLike]) -> str | None:
    """The sentence that says which file to be written is one of those that are read; None if none of them is."""
    kept = {file_key(path): path for path in read}
    for path in written:
        other = kept.get(file_key(path))
        if other is not None:
            return f"{os.fspath(path)} would replace {os.fspath(other)}, which is read here: give another name"
    return None


# One file


@contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and leaves no trace when it does not.

    Raises:
        WeightsError: the file cannot be written there; what stood there is unchanged.
    """
    with new_file(path) as new:
        yield new.file
        new.complete()
        new.put_in_place()


@dataclass(frozen=True)
class NewFile:
    """What shall become a file: open for writing under a temporary name, and the name that it gets."""

    file: BinaryIO
    temporary: str
    target: str

    @property
    def in_place(self) -> bool:
        """Whether it has got its name."""
        return not os.path.lexists(self.temporary)

    def write(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Make this its content, in place of any that it had, and wait until the disk has it."""
        self.file.seek(0)
        self.file.truncate()
        self.file.writelines(chunks)
        self.complete()

    def complete(self) -> None:
        """Wait until the disk has what was written."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def put_in_place(self) -> None:
        """Replace what stands under the target's name."""
        if fcntl is None:  # Windows renames closed files only
            self.file.close()
        os.replace(self.temporary, self.target)
        sync_folder(os.path.dirname(self.target))


@contextmanager
def new_file(path: PathLike) -> Iterator[NewFile]:
    """A file next to `path` that can take its name by `put_in_place`, and is gone afterwards if it has not.

    Raises:
        WeightsError: the file cannot be written there.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    temporary = _temporary_name(folder)
    with removed_afterwards(lambda: os.unlink(temporary)):
        try:
            check_target(path)
            with turn(folder) as alone:
                if alone:
                    _sweep(folder)
                file = open(temporary, "xb")  # noqa: SIM115  closed below, and still open when it gets its name
                _claim(file.fileno(), alone)
            with file:
                yield NewFile(file, temporary, target)
        except OSError as error:
            if error.filename not in (None, temporary):
                raise  # some other file, which the block used
            raise unwritable(path, error) from error


def sync_folder(folder: PathLike) -> None:
    """Wait until the disk has the names of the files in a folder."""
    # They are there for every process already; not every system can also wait.
    with suppress(OSError), ExitStack() as closing:
        os.fsync(_opened(folder, closing))


# Several files


@contextmanager
def temporary_folder(target: PathLike) -> Iterator[Path]:
    """A folder for files that are not finished, gone afterwards; what a dead run left is swept like its files.

    Args:
        target: a file to come; the folder is made where it shall be.

    Raises:
        WeightsError: it cannot be made there.
    """
    inside = Path(target).absolute().parent
    missing = [folder for folder in (inside, *inside.parents) if not folder.exists()]
    path = _temporary_name(inside)

    def remove() -> None:
        shutil.rmtree(path, ignore_errors=True)
        for folder in missing:
            folder.rmdir()

    with removed_afterwards(remove), ExitStack() as closing:
        try:
            inside.mkdir(parents=True, exist_ok=True)
            with turn(inside) as alone:
                if alone:
                    _sweep(inside)
                os.mkdir(path, 0o700)
                if alone:
                    _claim(_opened(path, closing), alone)
        except OSError as error:
            raise unwritable(target, error) from error
        yield Path(path)


def move_together(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move the files of a temporary folder to where they belong: all of them or, after an error, none.

    No system replaces several files in one step. The first file, without which the others are nothing, is therefore
    gone for the moment in which the others change, so that a reader finds old ones, new ones, or none, and never both.
    A file that stands there already with the same content is left alone, which may spare that moment.

    Args:
        files: of a `temporary_folder`; what is replaced is kept there meanwhile.
        folder: on the same disk.

    Raises:
        WeightsError: they cannot be moved; what stood there stands there again.
    """
    targets = tuple(folder / file.name for file in files)
    try:
        for file in files:
            with open(file, "rb+") as content:
                os.fsync(content.fileno())
        for target in targets:
            check_target(target)
        with turn(folder):
            changed = [
                (file, target)
                for file, target in zip(files, targets)
                if not target.is_file() or not filecmp.cmp(file, target, shallow=False)
            ]
            if changed:
                _exchange(changed, files[0].parent / "replaced")
    except OSError as error:
        raise unwritable(targets[0], error) from error
    return targets


def _exchange(pairs: Sequence[tuple[Path, Path]], replaced: Path) -> None:
    folder = pairs[0][1].parent
    if len(pairs) == 1:
        os.replace(*pairs[0])
        sync_folder(folder)
        return
    replaced.mkdir()
    try:
        for _, target in pairs:
            if target.exists():
                os.replace(target, replaced / target.name)
            sync_folder(folder)
        for file, target in reversed(pairs):
            os.replace(file, target)
            sync_folder(folder)
    except BaseException:
        for file, target in pairs:
            if not file.exists():
                target.unlink(missing_ok=True)
        for _, target in reversed(pairs):
            with suppress(FileNotFoundError):
                os.replace(replaced / target.name, target)
        raise


# Locks, and what dead runs left


@contextmanager
def turn(folder: PathLike) -> Iterator[bool]:
    """Wait until no other process makes, sweeps or exchanges files in a folder; False if that cannot be had.

    In a temporary folder nobody takes turns: its one writer holds the lock on it, and would wait for itself.
    """
    alone = False
    with uninterrupted(), ExitStack() as closing:
        with suppress(OSError):
            if not _TEMPORARY.fullmatch(os.path.basename(folder)):
                alone = _lock(_opened(folder, closing), _PATIENCE)
        yield alone


@contextmanager
def locked(folder: PathLike, patience: float) -> Iterator[bool]:
    """Hold a folder's lock; False where it cannot be had within so many seconds. Signals come through meanwhile."""
    with ExitStack() as closing:
        held = False
        with suppress(OSError):
            held = _lock(_opened(folder, closing), patience)
        yield held


def _opened(path: PathLike, closing: ExitStack, flags: int = 0) -> int:
    handle = os.open(path, os.O_RDONLY | flags)
    closing.callback(os.close, handle)
    return handle


def _claim(handle: int, sweeping: bool) -> None:
    """Lock what this process has made, where others would remove it otherwise."""
    if not _lock(handle) and sweeping:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _lock(handle: int, patience: float = 0.0) -> bool:
    """Whether a lock was had within so many seconds."""
    deadline = time.monotonic() + patience
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:
            return False
    return False


def _temporary_name(folder: PathLike) -> str:
    return os.path.join(folder, f".paddle_dense-{secrets.token_hex(8)}.tmp")


def _sweep(folder: PathLike) -> None:
    """Remove temporary files and folders that nobody holds a lock on; call it in a `turn`."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [entry for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_dead(entry)


def _remove_dead(entry: os.DirEntry) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder and not entry.is_file(follow_symlinks=False):
        return
    with ExitStack() as closing:
        if _lock(_opened(entry.path, closing, os.O_NOFOLLOW | os.O_NONBLOCK)):
            shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
