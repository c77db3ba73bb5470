"""The command ``python -m paddle_dense predict``: what images show, by any network or exported file."""

from __future__ import annotations

import argparse
import csv
import glob
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense.classes import LANGUAGES
from paddle_dense.cli import Parser, UsageError, check_least, program, run
from paddle_dense.commands.classifying import MODEL_HELP, open_classifier, open_model
from paddle_dense.errors import DataError, enough_memory, printable
from paddle_dense.files.atomic import atomic_write, make_folder, refuse_existing
from paddle_dense.process import FAILED, OK, complain, load_paddle, stop_if_asked

if TYPE_CHECKING:
    import numpy as np

    from paddle_dense.models.network import Network
    from paddle_dense.prediction import Classifier

_LONGEST_STEM = 100  # characters of the name of an image that its heat map's has
_COLUMNS = ("image", "rank", "number", "class", "probability")


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("predict", "paddle_dense predict"),
        description="Tell what images show: the most probable classes of each. Images are prepared as the weights ask. "
        "An image that cannot be read is named and skipped.",
        epilog="Exit status: 0 every image was answered, 1 one was skipped or the model cannot be used, 2 wrong usage.",
    )
    add = command.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("images", nargs="+", metavar="IMAGE", help="files, folders, patterns such as 'photos/*.jpg', http(s) addresses")
    add("--top", type=int, default=5, metavar="N", help="classes for each image (default: 5)")
    add("--labels", type=Path, metavar="FILE", help="name of each class, one a line (default: the weights' own)")
    add("--language", choices=[*LANGUAGES], default="en", help="of ImageNet's class names (default: en)")
    add("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    add("--explain", type=Path, metavar="DIR", help="draw where the network looks for its first answer (Grad-CAM)")
    add("--embed", type=Path, metavar="FILE", help="write the features that the classifier reads: .npz")
    add("--force", action="store_true", help="overwrite existing files")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object for each image")
    how.add_argument("--csv", action="store_true", help="print a table, one line for each image and class")
    return command


def _run(args: argparse.Namespace) -> int:
    check_least(args, {"top": 1, "batch_size": 1})
    if args.embed:
        if args.embed.suffix.lower() != ".npz":
            raise UsageError(f"--embed {args.embed} must end in .npz")
        refuse_existing(args.embed, args.force, "--embed")
    with enough_memory(args.model):
        load_paddle()
        model = open_model(args.model)
        if model is None and (args.explain or args.embed):
            option = "--explain" if args.explain else "--embed"
            raise UsageError(f"{option} looks into the network, and {args.model} is exported: give its weights")
        classifier = open_classifier(args.model, model, args.labels, args.language)
        return _Prediction(args, classifier, model).run()


main = partial(run, parser, _run)


class _Prediction:
    """One call of the command: which images were skipped, and how answers are printed."""

    def __init__(self, args: argparse.Namespace, classifier: Classifier, model: Network | None) -> None:
        self.args, self.classifier, self.model = args, classifier, model
        self.drawn: set[Path] = set()
        self.embedded: dict[str, list[Any]] = {"images": [], "features": []}
        self.table = csv.writer(sys.stdout, lineterminator="\n") if args.csv else None
        self.status = OK

    def run(self) -> int:
        from tqdm import tqdm

        from paddle_dense.prediction import in_batches

        if self.args.explain:
            make_folder(self.args.explain)
        if self.table:
            self.table.writerow(_COLUMNS)
        sources = list(self._sources())
        # On a terminal the answers themselves show how far it is.
        quiet = True if sys.stdout.isatty() else None
        with tqdm(total=len(sources), unit="image", file=sys.stderr, disable=quiet) as bar:
            for batch in in_batches(sources, self.classifier.batch or self.args.batch_size):
                self._answer(batch)
                bar.update(len(batch))
        if self.args.embed and self.embedded["images"]:
            self._write_features()
        return self.status

    def _sources(self) -> Iterator[str]:
        """Files and addresses of the images that the command line means."""
        for image in self.args.images:
            try:
                yield from expanded(image)
            except DataError as error:
                self._skip(image, error)

    def _answer(self, batch: Sequence[str]) -> None:
        import numpy as np

        transforms = self.classifier.preprocessing.transforms()
        names, pixels = [], []
        for image in batch:
            stop_if_asked()
            try:
                pixels.append(transforms(image).numpy())
                names.append(image)
            except DataError as error:
                self._skip(image, error)
        if names:
            stacked = np.stack(pixels)
            probabilities = self.classifier.probabilities(stacked)
            for name, row in zip(names, probabilities):
                self._print(name, row)
            if self.args.explain:
                self._explain(names, stacked, probabilities.argmax(1))
            if self.args.embed:
                self._embed(names, stacked)

    def _explain(self, names: Sequence[str], pixels: np.ndarray, classes: np.ndarray) -> None:
        from paddle_dense.explanation import grad_cam, overlay

        assert self.model is not None
        for name, image, heat in zip(names, pixels, grad_cam(self.model, pixels, classes.tolist())):
            path = self._target(name)
            refuse_existing(path, self.args.force, "--explain")
            with atomic_write(path) as file:
                overlay(image, heat, self.classifier.preprocessing).save(file, "PNG")

    def _target(self, image: str) -> Path:
        """A name in the folder for the heat map of an image, one that no other image of this call has."""
        stem = re.sub(r"[^\w.-]", "_", Path(image).stem)[:_LONGEST_STEM] or "image"
        numbered = (f"{stem}-{number}" if number > 1 else stem for number in itertools.count(1))
        path = next(path for name in numbered if (path := self.args.explain / f"{name}.png") not in self.drawn)
        self.drawn.add(path)
        return path

    def _embed(self, names: Sequence[str], pixels: np.ndarray) -> None:
        from paddle_dense.explanation import pooled_features

        assert self.model is not None
        self.embedded["images"] += map(printable, names)
        self.embedded["features"].append(pooled_features(self.model, pixels)[0])

    def _write_features(self) -> None:
        import numpy as np

        features = np.concatenate(self.embedded["features"])
        with atomic_write(self.args.embed) as file:
            np.savez(file, images=np.array(self.embedded["images"]), features=features)

    def _skip(self, image: str, error: DataError) -> None:
        self.status = FAILED
        if self.args.json:
            print(json.dumps({"image": image, "error": str(error)}))
        complain(error)

    def _print(self, image: str, row: np.ndarray) -> None:
        from paddle_dense.prediction import best

        answers: list[dict[str, Any]] = [
            {"number": number, "class": self.classifier.class_name(number), "probability": float(row[number])}
            for number in best(row, self.args.top)
        ]
        if self.args.json:  # in ASCII, since a terminal would obey some of what stands beyond it
            print(json.dumps({"image": image, "top": answers}))
        elif self.table:
            for rank, told in enumerate(answers, 1):
                name = printable(told["class"])
                self.table.writerow([printable(image), rank, told["number"], name, f"{told['probability']:.6f}"])
        else:
            lines = [f"{told['probability']:8.2%}  {told['class']}" for told in answers]
            print("\n".join(map(printable, [image, *lines])), flush=True)


def expanded(image: str) -> list[str]:
    """The files that a file, folder or pattern means; an address means itself.

    Raises:
        DataError: it means none.
    """
    from paddle_dense.images import images_below, is_url

    if is_url(image) or os.path.isfile(image):
        return [image]
    if os.path.isdir(image):
        found = list(images_below(image))
        if not found:
            raise DataError(f"{image}: holds no images: give a folder that does")
        return found
    found = sorted(path for path in glob.glob(image, recursive=True) if os.path.isfile(path))
    if not found:
        raise DataError(f"{image}: there is no such image: check the path")
    return found
