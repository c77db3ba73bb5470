"""The command ``python -m paddle_dense.training``: train, continue, fine-tune, evaluate, and plot connections."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense.cli import Parser, UsageError, check_least, key_values, program, run
from paddle_dense.commands import plot
from paddle_dense.commands.config_file import read_options, write_options
from paddle_dense.errors import WeightsError, enough_memory, printable
from paddle_dense.process import OK, STOPPED, as_process, load_paddle
from paddle_dense.training import LEAST

_IMAGENET_RECIPES = {
    "CondenseNet": "condensenet-imagenet",
    "CSPDenseNet": "cspnet-imagenet",
    "CSPNet": "cspnet-imagenet",
    "DenseNet": "densenet-imagenet",
    "EfficientNetCondConv": "condconv-imagenet",
}
CONFIG = "config.yaml"
DEFAULT_MODEL = "cdnv2_a"  # of the networks for photographs the one with the fewest operations
DEFAULT_WEIGHTS = "cdnv2_cifar10"  # which ship, and are a better start than none where there are few photographs

if TYPE_CHECKING:
    from paddle_dense.training.resume import Saved
    from paddle_dense.training.run import Result, Run, Settings


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("train", "paddle_dense.training"),
        description="Train a network; CondenseNets lose connections while they learn. "
        "`python -m paddle_dense.training plot CKPT -o FILE.png` draws which layers read which.",
        epilog="Exit status: 0 done, 1 a file is bad, 2 wrong usage, 130 or 143 stopped by a signal.",
    )
    # What is not given must not contradict what a continued run says.
    add = command.add_argument
    add("images", nargs="?", metavar="DATA", help="the same as --data")
    add("--model", help="a preset, or a network with --config (default: that of --pretrained, or cdnv2_a)")
    add("--config", metavar="KEY=VALUE,...", type=key_values, help="arguments of the network, as stages=1-2-3")
    add(
        "--data",
        help="digits, a folder with train/CLASS/ and val/CLASS/ or with CLASS/ alone, PaddleClas' "
        "train_list.txt or its folder, cifar10, cifar100, or a CIFAR archive",
    )
    add(
        "--val-split",
        type=float,
        metavar="SHARE",
        help="of each class to test on, chosen by the seed, where the data "
        "has nothing to test on (default: 0.2 of a folder with CLASS/ alone)",
    )
    add("--image-root", metavar="DIR", help="where the paths in PaddleClas' lists start (default: their folder)")
    add(
        "--max-bad",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the images that may be unreadable: they are named and left out (default: 0.01)",
    )
    add("--recipe", help="how to train (default: by the data; finetune with --pretrained)")
    add(
        "--pretrained",
        metavar="WEIGHTS",
        help="begin with these: a file, or a name as in list --pretrained; the classifier is new unless it has the "
        "classes of the data (default: cdnv2_cifar10 for fewer than 10,000 images without --model, or else none)",
    )
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for checkpoints and weights (default: runs/MODEL, then runs/MODEL-2)",
    )
    add(
        "--resume",
        metavar="DIR",
        nargs="?",
        const="",
        help="continue the run in DIR, or in the output folder; its settings come from there",
    )
    add("--epochs", type=int, help="in place of the recipe's; with --resume, how many a run that has ended shall have")
    add("--batch-size", type=int, help="over all devices; the recipe's learning rate is scaled with it")
    add("--learning-rate", type=float, help="in place of the recipe's, not scaled")
    add("--size", type=int, metavar="PIXELS", help="side of the images that the network sees (default: its own)")
    add("--optimizer", help="sgd, rmsprop, adam or adamw (default: the recipe's); another one needs a --learning-rate")
    add("--weight-decay", type=float, help="in place of the recipe's")
    add("--label-smoothing", type=float, metavar="SHARE", help="in place of the recipe's")
    add(
        "--mixup",
        type=float,
        metavar="ALPHA",
        help="mix images, by a share from Beta(ALPHA, ALPHA); 0 for none",
    )
    add(
        "--cutmix",
        type=float,
        metavar="ALPHA",
        help="the same with rectangles; with --mixup, either for each batch",
    )
    add("--clip-norm", type=float, metavar="NORM", help="scale gradients down whose norm is larger")
    add("--accumulate", type=int, metavar="BATCHES", help="add up the gradients of so many batches for an update")
    add("--freeze", metavar="PATTERN,...", help="parameters that do not learn; backbone for all but the classifier")
    add(
        "--layer-decay",
        type=float,
        metavar="FACTOR",
        help="of a block's learning rate for the block before it, so that the first layers change least; 0.75 is usual",
    )
    add("--patience", type=int, metavar="EPOCHS", help="end after so many epochs without a better one")
    add("--class-weights", metavar="WEIGHTS", help="balanced, or a number for each class as 1,2.5,1")
    add("--seed", type=int, help="of weights, order, augmentation and dropout (default: 0)")
    add("--amp", action="store_true", default=None, help="half precision, on devices that have it")
    add("--ema", action="store_true", default=None, help="keep EMA weights as well")
    add("--condense-at-end", action="store_true", help="also write the condensed network")
    add("--eval-only", action="store_true", help="measure the accuracy of --pretrained or --resume, and end")
    add("--workers", type=int, default=0, help="processes that prepare images (default: 0)")
    add("--log-dir", metavar="DIR", help="write curves for VisualDL")
    add(
        "--config-file",
        metavar="FILE",
        help="options in YAML, as in the config.yaml that every run leaves; those of the command line come first",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["plot"]:
        return plot.main(arguments[1:])
    return run(parser, lambda args: _run(_with_file(args, arguments)), arguments)


def _with_file(args: argparse.Namespace, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, and for what they leave open those of --config-file."""
    if not args.config_file:
        return args
    command = parser()
    options = read_options(args.config_file, command)
    if args.images:
        options = [option for option in options if not option.startswith("--data=")]
    return command.parse_args([*options, *arguments])


@enough_memory("training")
def _run(args: argparse.Namespace) -> int:
    check_least(args, {**LEAST, "workers": 0})
    if args.learning_rate is not None and not 0 < args.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {args.learning_rate} must be above 0")
    for option in ("val_split", "max_bad"):
        share = getattr(args, option)
        if share is not None and not (0 < share < 1 or (share == 0 and option == "max_bad")):
            raise UsageError(f"--{option.replace('_', '-')} {share} is a share: give one between 0 and 1")
    if args.images and args.data not in (None, args.images):
        raise UsageError(f"{args.images} and --data {args.data} are two data: give one of them")
    args.data = args.data or args.images
    load_paddle()
    from paddle_dense.training.run import Run

    saved = _saved(args)
    if args.eval_only and args.seed is None and not saved:
        args.seed = _seed_of_training(args.pretrained)
    settings = _continued(args, saved) if saved else _settings(args)
    folder = saved.path.parent if saved else _folder(args, settings)
    run = Run(settings, folder, saved, args.workers, args.log_dir, args.max_bad)
    if args.eval_only:
        if run.train_data.by_seed and not saved and args.seed is None:
            _say(
                f"note: {settings.data} has no images of its own to test on, and {settings.pretrained} does not say by "
                f"which seed it was trained: if it learned from this data, give the --seed of that run, for seed 0 may "
                f"hold out images that it knows"
            )
        accuracy = run.evaluate()
        _say(f"accuracy {accuracy.top1:.2%} on {accuracy.images} images, loss {accuracy.loss:.4f}")
        return OK
    _introduce(run, args)
    _write_config(settings, folder)
    result = run.train(condense_at_end=args.condense_at_end)
    _conclude(result, folder)
    return STOPPED + result.stopped_by if result.stopped_by else OK


def _saved(args: Any) -> Saved | None:
    """The checkpoint that --resume means."""
    if args.resume is None:
        return None
    from paddle_dense.training.resume import newest

    if args.resume and args.output and Path(args.resume) != Path(args.output):
        raise UsageError(f"--resume {args.resume} continues in that folder: leave out --output {args.output}")
    given = args.resume or args.output
    folder = Path(given) if given else _runs(_default_folder(args))[-1]
    saved = newest(folder)
    if saved is None:
        raise WeightsError(f"{folder} holds no checkpoint to continue from: give the folder of a run, or start one")
    return saved


def _continued(args: Any, saved: Saved) -> Settings:
    """The settings that the run began with; an option that contradicts them is an error."""
    from paddle_dense.training.recipes import recipe
    from paddle_dense.training.resume import OLDER
    from paddle_dense.training.run import Settings

    try:
        settings = Settings(**saved.settings)
        recipe(settings.recipe)
    except ValueError as error:
        raise WeightsError(f"{saved.path} has settings of no run ({error}): {OLDER}") from None
    except TypeError:
        raise WeightsError(
            f"{saved.path} has settings that this version does not know: continue with its own"
        ) from None
    for name, before in vars(settings).items():
        given = getattr(args, name)
        if name == "epochs" and given is not None:
            settings = replace(settings, epochs=given)  # `Run` checks that it has ended
        elif given is not None and given != before:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {given} contradicts the run, which began with {before}: leave {option} out")
    return settings


def _settings(args: Any) -> Settings:
    from paddle_dense.training.parts import has_few_images
    from paddle_dense.training.recipes import recipe
    from paddle_dense.training.run import Settings

    if not args.data:
        raise UsageError("--data is missing: give digits, a folder of images, PaddleClas' lists or a CIFAR archive")
    if not args.model and not args.pretrained:
        if args.recipe in (None, "finetune") and has_few_images(args.data):
            args.pretrained = DEFAULT_WEIGHTS
        else:
            args.model = DEFAULT_MODEL
    args.recipe = args.recipe or _default_recipe(args)
    recipe(args.recipe)
    settings = {setting.name: getattr(args, setting.name) for setting in fields(Settings)}
    return Settings(**{name: value for name, value in settings.items() if value is not None})


def _seed_of_training(weights: str | None) -> int | None:
    """The seed of the run that weights come from, by which they were tested, or None where no sidecar says it."""
    from paddle_dense.files.sidecar import read_sidecar

    try:
        told = read_sidecar(weights) if weights else None
    except ValueError:  # said where the weights are read
        return None
    run = told.get("training") if told else None
    seed = run.get("seed") if isinstance(run, dict) else None
    return seed if type(seed) is int and 0 <= seed < 2**63 else None


def _default_recipe(args: Any) -> str:
    from paddle_dense.models.network import network_class
    from paddle_dense.training.parts import has_few_images

    if args.pretrained:
        return "finetune"
    if args.data == "digits":
        return "digits"
    if has_few_images(args.data):
        return "scratch"
    if "cifar" in Path(args.data).name.lower():
        return "condensenet-cifar"
    return _IMAGENET_RECIPES.get(network_class(args.model).__name__, "condensenetv2-imagenet")


def _default_folder(args: Any) -> str:
    name = args.model or (Path(args.pretrained).stem if args.pretrained else None)
    if name is None:
        raise UsageError("--resume does not say which run: give its folder")
    return f"runs/{name}"


def _folder(args: Any, settings: Settings) -> Path:
    from paddle_dense.training.resume import saved_checkpoints

    if args.eval_only:
        if not settings.pretrained:
            raise UsageError("--eval-only needs weights: give a file with --pretrained, or a run with --resume")
        return Path(args.output or "")
    if not args.output:
        return _next_run(_default_folder(args))
    folder = Path(args.output)
    if saved_checkpoints(folder):
        raise UsageError(f"{folder} holds a run already: --resume continues it, and another --output starts a new one")
    for file in _weights(folder, args, settings):
        if file.is_file():
            raise UsageError(f"the run would replace {file}: another --output starts it elsewhere")
    return folder


def _runs(name: str) -> list[Path]:
    """The folders of the runs of this name: ``runs/NAME``, and ``runs/NAME-2`` and so on, which are there."""
    found = [Path(name)]
    while (following := Path(f"{name}-{len(found) + 1}")).exists():
        found.append(following)
    return found


def _next_run(name: str) -> Path:
    """The first folder of this name that is free."""
    return Path(f"{name}-{len(_runs(name)) + 1}") if Path(name).exists() else Path(name)


def _weights(folder: Path, args: Any, settings: Settings) -> list[Path]:
    """The files that a run leaves next to its checkpoints."""
    from paddle_dense.files.sidecar import with_its_sidecar
    from paddle_dense.training.history import LOG

    ema = settings.ema or settings.resolved_recipe().ema
    names = ["model", *(["model_ema"] if ema else [])]
    names += [f"{name}_last" for name in names] + (["model_condensed"] if args.condense_at_end else [])
    weights = [file for name in names for file in with_its_sidecar(folder / f"{name}.pdparams")]
    return [*weights, folder / LOG, folder / CONFIG]


def _write_config(settings: Settings, folder: Path) -> None:
    """The settings as a file for --config-file, next to what the run leaves."""
    from paddle import distributed

    from paddle_dense.files.atomic import make_folder

    if distributed.get_rank() == 0:
        make_folder(folder)
        given = {name: value for name, value in asdict(settings).items() if value not in (None, {})}
        write_options(folder / CONFIG, given)


def _introduce(run: Run, args: Any) -> None:
    import paddle

    from paddle_dense.profiling import profile

    settings, network = run.settings, run.network
    if settings.amp and paddle.get_device().startswith("cpu"):
        _say("note: Paddle has no half precision on a CPU, so --amp changes nothing here")
    wanted = settings.batch_size or run.recipe.batch_size
    if run.batch_size < wanted:
        _say(f"note: a batch of {wanted} is more than there are images to train on, so a batch has {run.batch_size}")
    side = run.preprocessing.input_size
    found = profile(network, (run.train_data.in_channels, side, side))
    start = f", continued from step {run.saved.step}" if run.saved else ""
    _say(
        f"{network.arch}, {found}, on {settings.data}: {len(run.train_data):,} images of "
        f"{len(run.train_data.classes)} classes, {len(run.test_data):,} to test on, recipe {settings.recipe}{start}"
    )


def _conclude(result: Result, folder: Path) -> None:
    if result.stopped_by:
        _say(f"stopped and saved at step {result.step}: --resume {folder} continues")
        return
    for file, accuracy in result.accuracies.items():
        which = "last" if file.stem.endswith("_last") else "best"
        _say(
            f"{file}: accuracy {accuracy.top1:.2%} on {accuracy.images} images, the {which} epoch's "
            f"({result.epochs[file]})"
        )


def _say(text: str) -> None:
    from paddle import distributed

    if distributed.get_rank() == 0:
        print(printable(text), flush=True)


if __name__ == "__main__":
    as_process(main)
