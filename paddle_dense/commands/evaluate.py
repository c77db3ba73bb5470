"""The command ``python -m paddle_dense evaluate``: how often a network is right, beside what is published of it."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense.classes import LANGUAGES
from paddle_dense.cli import Parser, UsageError, check_least, program, run
from paddle_dense.commands.classifying import MODEL_HELP, open_classifier, open_model
from paddle_dense.errors import DataError, enough_memory, printable
from paddle_dense.files.atomic import atomic_write, overlap, refuse_existing
from paddle_dense.process import FAILED, OK, complain, load_paddle
from paddle_dense.training import PLOT_FORMATS

if TYPE_CHECKING:
    from paddle_dense.training.scores import Scores


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("evaluate", "paddle_dense evaluate"),
        description="Measure top-1 and top-5 accuracy. Images are prepared as the weights ask. Folders are named after "
        "the classes, ImageNet's after the synsets. paddle.distributed.launch runs it on many devices.",
        epilog="Exit status: 0 every image was counted, 1 one was skipped or a file is bad, 2 wrong usage.",
    )
    add = command.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("data", metavar="DATA", help="a folder with CLASS/ or val/CLASS/, digits, cifar10, cifar100, a CIFAR archive")
    add("--list", type=Path, metavar="FILE", help="lines of a path in DATA and a class: its number, name or synset")
    add("--labels", type=Path, metavar="FILE", help="name of each class, one a line (default: the weights' own)")
    add("--language", choices=[*LANGUAGES], default="en", help="of ImageNet's class names (default: en)")
    add("--csv", type=Path, metavar="FILE", help="write a table with a line for each class")
    add("--confusion", type=Path, metavar="FILE", help=f"draw the confusion matrix: {', '.join(PLOT_FORMATS)}")
    add("--batch-size", type=int, default=32, metavar="N", help="images at once, on each device (default: 32)")
    add("--workers", type=int, default=0, metavar="N", help="threads that prepare images (default: 0)")
    add("--json", action="store_true", help="print one JSON object")
    add("--force", action="store_true", help="overwrite existing files")
    return command


def _run(args: argparse.Namespace) -> int:
    check_least(args, {"batch_size": 1, "workers": 0})
    _check_targets(args)
    with enough_memory(args.model):
        load_paddle()
        from paddle import distributed

        from paddle_dense.training.scores import labelled_images, plot_confusion

        if distributed.get_world_size() > 1:
            distributed.init_parallel_env()
        model = open_model(args.model)
        classifier = open_classifier(args.model, model, args.labels, args.language)
        data = labelled_images(args.data, classifier.classes, args.list)
        scores = _measured(args, classifier, data)
        if distributed.get_rank() == 0:
            if args.csv:
                _write_table(scores, args.csv)
            if args.confusion:
                plot_confusion(scores, args.confusion)
            result = _result(args, scores, getattr(model, "arch", ""))
            print(json.dumps(result) if args.json else _report(result))
        return FAILED if scores.skipped else OK


main = partial(run, parser, _run)


def _check_targets(args: argparse.Namespace) -> None:
    if args.confusion and args.confusion.suffix.lower() not in PLOT_FORMATS:
        raise UsageError(f"--confusion {args.confusion} must end in {' or '.join(PLOT_FORMATS)}")
    read = [path for path in (args.list, args.labels, Path(args.model)) if path]
    for option, target in (("--csv", args.csv), ("--confusion", args.confusion)):
        if target:
            clash = overlap([target], read)
            if clash:
                raise UsageError(f"{clash} with {option}")
            refuse_existing(target, args.force, option)


def _measured(args: argparse.Namespace, classifier: Any, data: Any) -> Scores:
    from paddle import distributed
    from tqdm import tqdm

    from paddle_dense.training.scores import score

    def skip(error: DataError) -> None:
        complain(error)

    quiet = True if distributed.get_rank() else None
    share = -(-len(data) // distributed.get_world_size())
    with tqdm(total=share, unit="image", file=sys.stderr, disable=quiet) as bar:
        return score(classifier, data, args.batch_size, args.workers, skip, bar.update)


def _result(args: argparse.Namespace, scores: Scores, arch: str) -> dict[str, Any]:
    from paddle_dense.training.scores import published

    return {
        "model": args.model,
        "data": args.data,
        "images": len(scores.labels),
        "skipped": scores.skipped,
        "classes": len(scores.classes),
        "top1": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "published": published(arch, len(scores.classes)) or None,
    }


def _write_table(scores: Scores, path: Path) -> None:
    rows = scores.by_class()
    text = io.StringIO()
    table = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: printable(value) if isinstance(value, str) else value for key, value in row.items()})
    with atomic_write(path) as file:  # with a mark by which spreadsheets know UTF-8
        file.write(text.getvalue().encode("utf-8-sig"))


def _report(result: dict[str, Any]) -> str:
    skipped = f", {result['skipped']:,} skipped" if result["skipped"] else ""
    lines = [f"{result['model']}: {result['images']:,} images of {result['classes']:,} classes{skipped}"]
    told = result["published"] or {}
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        error = told.get(f"{key}_error")
        beside = f", published {error} % on {told['data']}" if error is not None else ""
        lines.append(f"  {name}   {result[key]:8.2%}   error {100 * (1 - result[key]):.2f} %{beside}")
    lines.append(f"  loss    {result['loss']:8.4f}")
    return "\n".join(map(printable, lines))
