"""Names of classes: ImageNet's, which ship in English and Chinese, and those that a file of labels gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import read_bounded

LANGUAGES = {"en": 1, "zh": 2}  # columns of the table
IMAGENET_COUNT = 1000
_MOST_LABELS = 1 << 24  # bytes; the 21 841 classes of the whole ImageNet have one megabyte


class Class(NamedTuple):
    """One of ImageNet's classes: its synset in WordNet, which folders are called by, and its names."""

    synset: str
    english: str
    chinese: str


@cache
def imagenet() -> tuple[Class, ...]:
    """The 1000 classes of ImageNet's challenge, in the order of a classifier's outputs."""
    lines = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Class(*line.split("\t")) for line in lines[1:])


def imagenet_classes(language: str = "en") -> list[str]:
    """ImageNet's 1000 class names, by number.

    Args:
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: there are none in this language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"there are no class names in {language!r}: choose one of {', '.join(LANGUAGES)}")
    return [entry[LANGUAGES[language]] for entry in imagenet()]


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """From a name to the class's number; from ImageNet's synsets and names in every language as well."""
    if any(list(classes) == imagenet_classes(language) for language in LANGUAGES):
        return {name: number for number, entry in enumerate(imagenet()) for name in entry}
    return {name: number for number, name in enumerate(classes)}


def translated(classes: Sequence[str], language: str) -> Sequence[str]:
    """ImageNet's names in another language; names of other classes stay as they are.

    Raises:
        ValueError: there are none in this language.
    """
    names = imagenet_classes(language)
    return names if list(classes) == imagenet_classes() else classes


def read_labels(path: Path) -> list[str]:
    """The lines of a text file, each the name of a class.

    Raises:
        WeightsError: it cannot be read, or is no such file.
    """
    try:
        names = read_bounded(path, _MOST_LABELS).decode("utf-8-sig").splitlines()
    except WeightsError as error:
        reason = str(error).partition(": ")[0]
    except UnicodeDecodeError as error:
        reason = f"cannot be read ({error})"
    else:
        return names
    raise WeightsError(f"{path}: {reason}: give a text file with one class a line")
