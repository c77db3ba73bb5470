"""What the page does with uploaded files: convert weights, and tell what an image shows.

The work is that of the commands ``torch2paddle``, ``info`` and ``predict``. What goes wrong is the sentence that they
print, with the file's name in place of its path.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image

from convert.command import default_target, read_options
from convert.conversion import convert_checkpoint
from convert.options import Options
from convert.report import write_report
from convert.result import Result
from convert.torch2paddle import FORMATS, parser
from paddle_dense.classes import translated
from paddle_dense.cli import UsageError
from paddle_dense.commands.classifying import open_model
from paddle_dense.commands.description import Info, describe_weights
from paddle_dense.commands.info import HASHES
from paddle_dense.data import digit_images
from paddle_dense.errors import WeightsError, enough_memory, listed, printable, shown
from paddle_dense.explanation import grad_cam, overlay
from paddle_dense.files.atomic import PathLike
from paddle_dense.files.opened import open_weights
from paddle_dense.files.sidecar import sidecar_path
from paddle_dense.models.network import Network
from paddle_dense.prediction import Classifier, best
from paddle_dense.pretrained import shipped_folder
from paddle_dense.released import is_cached
from paddle_dense.zoo import create_model, list_models

TOP = 5
_MOST_FILES = 64  # uploaded together: an index and its shards
# Of torch2paddle. The others read or write other files of this machine, or run somebody's code.
_OPTIONS_OF_THE_PAGE = {
    *("arch", "config", "drop", "rename", "part", "atol", "allow_nonfinite", "ema", "key"),
    *("format", "verify", "compact", "keep_trained_form", "condense_classifier", "checkpoints"),
}
EXAMPLES_OF, _DIGITS_SHOWN = "cdnv2_digits", (3, 5, 8)  # the network of the examples, and what they show
_SHOWN_SIDE = 256  # pixels that a small image is enlarged to


@dataclass
class Conversion:
    """What became of an uploaded checkpoint.

    Attributes:
        name: of the file.
        result: of the conversion; without an output if that failed.
        info: what the file is, if that could be found out.
        files: what was written, the weights first.
        report: the last of them, an HTML page.
        error: why it failed, one sentence.
    """

    name: str
    result: Result
    info: Info | None = None
    files: list[Path] = field(default_factory=list)
    report: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What an image shows.

    Attributes:
        answers: number and probability of the most probable classes, the most probable first.
        classes: the name of each class, by number, where they are known.
        heat: where the network looks for the first of them.
        notes: what the user should know of the weights, one sentence each.
        error: why there is no answer, one sentence.
    """

    answers: Sequence[tuple[int, float]] = ()
    classes: Sequence[str] | None = None
    heat: Image.Image | None = None
    notes: Sequence[str] = ()
    error: str | None = None

    def named(self, language: str) -> dict[str, float]:
        """The answers by name; of a name that several classes have, the others' numbers are added."""
        names = translated(self.classes, language) if self.classes else None
        found: dict[str, float] = {}
        for number, probability in self.answers:
            name = printable(names[number]) if names else f"class {number}"
            found[name if name not in found else f"{name} ({number})"] = probability
        return found


def convert_uploads(uploads: Sequence[PathLike], folder: Path, options: str = "") -> Conversion:
    """Convert an uploaded PyTorch checkpoint, and find out what it is.

    Args:
        uploads: the file, or an index and its shards.
        folder: that of the page, in which a new one is made for what is written.
        options: as the command torch2paddle takes them.
    """
    done = Conversion(", ".join(Path(upload).name for upload in uploads), Result(""))
    with _sentences(folder) as errors, gathered(uploads, folder) as path, enough_memory(path):
        done.name, done.result.input = path.name, path.name
        said, suffix = page_options(options, path)
        file = open_weights(path, "pytorch", said.ema, HASHES, said.key)
        done.info = describe_weights(file)
        done.info.file = path.name
        target = _new_folder(folder) / default_target(path, suffix).name
        page = target.with_suffix(".html")
        convert_checkpoint(file, target, replace(said, report=page), done.result)
        done.result.output = target.name
        write_report(page, [done.result])
        done.files = [target, sidecar_path(target), page]
        done.report = page.read_text(encoding="utf-8")
    done.error = next(iter(errors), None)
    done.result.warnings = [_without_folder(warning, folder) for warning in done.result.warnings]
    return done


def page_options(text: str, checkpoint: Path) -> tuple[Options, str]:
    """What a user of the page says with the options of torch2paddle, and the format to write.

    Raises:
        UsageError: there is no such option, it is not for this page, or its value cannot be used.
    """
    command = parser()
    try:
        args = command.parse_args([*shlex.split(text), "--", str(checkpoint)])
    except SystemExit:  # --help
        raise UsageError("--help is not for this page: run torch2paddle --help") from None
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"the options {shown(text)} cannot be read ({error}): close every quotation mark") from None
    if args.checkpoints != [checkpoint]:
        raise UsageError(f"{shown(str(args.checkpoints[0]))} is no option: upload files instead of naming them")
    for name, value in vars(args).items():
        if name not in _OPTIONS_OF_THE_PAGE and value != command.get_default(name):
            raise UsageError(f"--{name} is not for this page: use the command torch2paddle")
    return read_options(args, Options), args.format or FORMATS[0]


def predict_upload(image: PathLike, model: str, folder: Path, weights: Sequence[PathLike] = ()) -> Prediction:
    """Tell what an uploaded image shows.

    Args:
        image: the file.
        model: one of `networks`, which is used unless there are weights.
        folder: that of the page.
        weights: uploaded files: weights of either framework, and their sidecar or shards.
    """
    with _sentences(folder) as errors, enough_memory(Path(image).name):
        network, notes = _uploaded(tuple(map(str, weights)), folder) if weights else _named(model)
        classifier = Classifier.of(network)
        pixels = classifier.preprocessing.transforms()(image).numpy()[None]
        row = classifier.probabilities(pixels)[0]
        numbers = best(row, TOP)
        [heat] = grad_cam(network, pixels, numbers[:1])
        return Prediction(
            [(number, float(row[number])) for number in numbers],
            classifier.classes,
            enlarged(overlay(pixels[0], heat, classifier.preprocessing)),
            notes,
        )
    return Prediction(error=errors[0])


def networks() -> dict[str, str]:
    """The networks that need no upload, those that ship and those in the cache, and what the page calls them."""
    shipped = {path.stem: _called(path.stem) for path in sorted(shipped_folder().glob("*.pdparams"))}
    cached = (
        name for name in list_models(pretrained=True) if is_cached(name) and name.partition(".")[0] not in shipped
    )
    return {**shipped, **{name: name for name in cached}}


def examples(folder: Path) -> list[Path]:
    """Images of the digits that were held out, for the network that ships with them; none without scikit-learn."""
    try:
        images, labels = digit_images("test")
    except ImportError:
        return []
    paths = [folder / f"digit_{digit}.png" for digit in _DIGITS_SHOWN]
    for digit, path in zip(_DIGITS_SHOWN, paths):
        [image, *_] = (image for image, label in zip(images, labels) if label == digit)
        enlarged(image.point(lambda value: 255 * value).convert("L")).save(path)
    return paths


def enlarged(image: Image.Image) -> Image.Image:
    """A small image with each pixel as a square, as a browser would not show it."""
    times = max(1, _SHOWN_SIDE // min(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _called(shipped: str) -> str:
    classes = _named(shipped)[0].classes
    return f"{shipped} ({', '.join(map(printable, classes[:TOP]))} ...)" if classes else shipped


@lru_cache(maxsize=4)
def _named(name: str) -> tuple[Network, Sequence[str]]:
    """One of `networks`."""
    path = shipped_folder() / f"{name}.pdparams"
    if path in shipped_folder().glob("*.pdparams"):
        return _loaded(path)
    if name not in list_models(pretrained=True):
        raise WeightsError(f"there is no network {shown(name)}: choose one of {listed(networks())}")
    return create_model(name, pretrained=True), ()


@lru_cache(maxsize=1)
def _uploaded(uploads: tuple[str, ...], folder: Path) -> tuple[Network, Sequence[str]]:
    with gathered(uploads, folder) as path:
        network, notes = _loaded(path)
        return network, [_without_folder(note, folder) for note in notes]


def _loaded(path: Path) -> tuple[Network, Sequence[str]]:
    """A network from a file of weights, and what its user is warned of."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        network = open_model(str(path))
    if network is None:
        raise WeightsError(f"{path}: is exported, and where an exported network looks cannot be seen: give its weights")
    begin = f"{path}: "
    return network, [str(note.message)[len(begin) :] for note in noted if str(note.message).startswith(begin)]


@contextmanager
def gathered(uploads: Sequence[PathLike], folder: Path) -> Iterator[Path]:
    """Uploaded files in one folder, where a reader finds what belongs to a file next to it; they are gone afterwards.

    Args:
        uploads: a file of weights; with its sidecar, or as an index with its shards.
        folder: that of the page.

    Yields:
        The path of the file to read.

    Raises:
        WeightsError: it is not clear which that is.
    """
    names = [Path(upload).name for upload in uploads]
    indexes = [name for name in names if name.lower().endswith(".index.json")]
    wanted = indexes or [name for name in names if not name.lower().endswith(".json")] or names
    if len(wanted) != 1 or len(set(names)) < len(names) or len(names) > _MOST_FILES:
        raise WeightsError(
            f"{len(names)} files were uploaded ({listed(map(printable, names))}): give one file of weights, with its "
            f"sidecar .json if there is one, or one .index.json and its shards"
        )
    with tempfile.TemporaryDirectory(dir=folder) as together:
        for upload, name in zip(uploads, names):
            try:
                os.link(upload, Path(together, name))
            except OSError:  # not every disk has links
                shutil.copyfile(upload, Path(together, name))
        yield Path(together, wanted[0])


@contextmanager
def _sentences(folder: Path) -> Iterator[list[str]]:
    """A list that gets the sentence of what goes wrong inside."""
    errors: list[str] = []
    try:
        yield errors
    except (OSError, ValueError, ImportError) as error:
        errors.append(_without_folder(" ".join(str(error).split()), folder))


def _without_folder(text: str, folder: Path) -> str:
    """A sentence without the folders of the page, which mean nothing to its users."""
    return printable(re.sub(rf"{re.escape(str(folder))}[/\\](\w+[/\\])?", "", text))


def _new_folder(folder: Path) -> Path:
    """A folder in that of the page whose name nobody can guess: what is in it is served to all who know it."""
    new = folder / secrets.token_hex(16)
    new.mkdir()
    return new
