"""The mapping file: a CSV file of which of PyTorch's tensors each tensor of a Paddle network is made of.

`write_proposal` writes all pairs for a user to read and complete, and `read_mapping` reads what the user made of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from convert.mapping import AND, Given, Pairing
from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.atomic import PathLike, atomic_write, refuse_existing

COLUMNS = ("paddle", "pytorch", "shape", "basis")
UNDECIDED = "?"  # stands where a user has to say something
_MAX_BYTES, _MAX_ROWS = 64 << 20, 500_000
_MAX_NEAREST = 200  # rows of either side that name the nearest
_COMPUTED = ("=", "+", "-", "@")  # begin what spreadsheets compute


def write_proposal(pairing: Pairing, path: PathLike, force: bool = False) -> None:
    """Write all pairs, and what has no counterpart, as a CSV file for a user to read and complete.

    Args:
        pairing: what `pair` found.
        path: the file.
        force: overwrite what stands there.

    Raises:
        WeightsError: it cannot be written, or exists.
    """
    refuse_existing(path, force, "--propose")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(pairing))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _rows(pairing: Pairing) -> Iterator[tuple[str, str, str, str]]:
    """The cells of a mapping file, in the order of the network's tensors, then of the file's."""
    for ours, shape in pairing.shapes.items():
        source = pairing.chosen.get(ours) or pairing.proposed.get(ours)
        if source:
            basis = f"{pairing.basis[ours]}; {source.formula.text}"
            yield _as_cell(ours), _as_cell(AND.join(source.names)), str(list(shape)), _as_cell(basis)
        elif ours in pairing.untouched:
            yield _as_cell(ours), "", str(list(shape)), "stays as the network was built"
        else:
            place = pairing.missing.index(ours)
            near = map(pairing.theirs_with_shape, pairing.nearest(ours) if place < _MAX_NEAREST else ())
            yield _as_cell(ours), UNDECIDED, str(list(shape)), _undecided(near)
    for place, theirs in enumerate(pairing.unplaced):
        near = map(pairing.ours_with_shape, pairing.nearest_place(theirs) if place < _MAX_NEAREST else ())
        yield UNDECIDED, _as_cell(theirs), str(list(pairing.file_shapes[theirs])), _undecided(near)
    for theirs in pairing.left_out:
        yield "", _as_cell(theirs), str(list(pairing.file_shapes[theirs])), "left out"


def _undecided(nearest: Iterable[str]) -> str:
    near = ", ".join(nearest)
    return f"no counterpart: name one in place of {UNDECIDED}, or leave the cell empty{near and f'; nearest: {near}'}"


def _as_cell(text: str) -> str:
    """A text as it stands in a cell: escaped, after a ', where a program could take it for something else."""
    is_plain = text.isprintable() and text.strip() == text and not text.startswith((*_COMPUTED, "'"))
    return text if is_plain and text != UNDECIDED else _escaped(text)


def _escaped(text: str) -> str:
    return "'" + text.encode("unicode_escape").decode("ascii")


def _of_cell(cell: str) -> str:
    return cell[1:].encode("ascii").decode("unicode_escape") if cell.startswith("'") else cell.strip()


def read_mapping(path: PathLike) -> Given:
    """Read a mapping file, as `write_proposal` writes it and a user completes it.

    Raises:
        WeightsError: it cannot be read, leaves something open or contradicts itself.
    """
    pairs: dict[str, str] = {}
    lines: dict[str, int] = {}
    left_out: dict[str, int] = {}
    with naming(path):
        for line, ours, theirs in _read_rows(Path(path)):
            if ours in pairs:
                raise WeightsError(f"lines {lines[ours]} and {line} both pair {shown(ours)}: delete one of them")
            if ours:
                pairs[ours], lines[ours] = theirs, line
            else:
                left_out[theirs] = line
        for ours, theirs in pairs.items():
            for name in (theirs, *theirs.split(AND)):
                if name in left_out:
                    raise WeightsError(
                        f"line {left_out[name]} leaves {shown(name)} out, and line {lines[ours]} pairs it with "
                        f"{shown(ours)}: delete one of them"
                    )
    return Given(pairs, tuple(left_out))


def _read_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line of each row, and Paddle's and PyTorch's name, "" where the cell is empty."""
    reader = csv.reader(io.StringIO(_content(path), newline=""), strict=True)
    try:
        if tuple(cell.strip() for cell in next(reader, [])) != COLUMNS:
            raise WeightsError(f"line 1 is not {','.join(COLUMNS)}: give a CSV file as --propose writes it")
        for number, row in enumerate(reader):
            if number >= _MAX_ROWS:
                raise WeightsError(f"has more than {_MAX_ROWS} lines: give the file that --propose wrote")
            if row:
                yield (reader.line_num, *_names(row, reader.line_num))
    except csv.Error as error:
        raise WeightsError(f"line {reader.line_num} is no CSV ({error}): fix the quotes there") from None


def _names(row: Sequence[str], line: int) -> tuple[str, str]:
    """The two names of a row.

    Raises:
        WeightsError: it has none, or leaves one open.
    """
    if len(row) != len(COLUMNS):
        raise WeightsError(
            f"line {line} has {len(row)} cells instead of {len(COLUMNS)}: put names that hold a comma in double quotes"
        )
    try:
        ours, theirs = (_of_cell(cell) for cell in row[:2])
    except UnicodeError:
        raise WeightsError(
            f"line {line} has a name after ' with an escape that is none: copy it as --propose wrote it"
        ) from None
    if UNDECIDED in (row[0].strip(), row[1].strip()):
        raise WeightsError(
            f"line {line} leaves {shown(theirs if ours == UNDECIDED else ours)} open: put its counterpart in place of "
            f"{UNDECIDED}, or leave the cell empty if it has none on purpose"
        )
    if not ours and not theirs:
        raise WeightsError(f"line {line} names no tensor: delete it")
    return ours, theirs


def _content(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror or error}): give the file that --propose wrote") from error
    if len(content) > _MAX_BYTES:
        raise WeightsError(f"is larger than {_MAX_BYTES >> 20} MiB, and no mapping file is: give what --propose wrote")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise WeightsError(f"line {line} is not UTF-8: save the file as CSV in UTF-8") from None
