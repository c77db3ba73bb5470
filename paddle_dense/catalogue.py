"""The command ``python -m paddle_dense list``: every preset, its size, and where weights for it are released."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from paddle_dense.command import FAILED, OK, USAGE, Parser, UsageError, complain, program
from paddle_dense.pretrained import manifest

# Parameters, multiply-accumulates as the papers count and as executed, from `profile`, which takes a minute for all:
# the tests measure them again.
SIZES: dict[str, tuple[int, int, int]] = {
    "tf_efficientnet_cc_b0_4e": (13_314_116, 396_513_888, 396_513_888),
    "tf_efficientnet_cc_b0_8e": (24_013_284, 407_213_024, 407_213_024),
    "tf_efficientnet_cc_b1_8e": (39_715_968, 723_282_704, 723_282_704),
    "efficientnet_cc_b0_4e": (13_314_116, 396_513_888, 396_513_888),
    "efficientnet_cc_b0_8e": (24_013_284, 407_213_024, 407_213_024),
    "efficientnet_cc_b1_8e": (39_715_968, 723_282_704, 723_282_704),
    "condensenet74_c4": (4_773_944, 529_327_264, 516_640_576),
    "condensenet74_c8": (2_935_416, 274_232_480, 261_545_792),
    "condensenet50": (214_186, 28_639_504, 27_183_376),
    "condensenet74": (402_026, 51_893_616, 49_204_592),
    "condensenet86": (516_202, 65_812_384, 62_377_888),
    "condensenet98": (643_882, 81_258_960, 76_992_976),
    "condensenet110": (785_066, 98_233_344, 93_049_856),
    "condensenet122": (939_754, 116_735_536, 110_548_528),
    "condensenet182": (4_209_226, 512_658_864, 493_916_592),
    "cdnv2_a": (2_038_444, 45_874_350, 64_568_928),
    "cdnv2_b": (3_592_662, 146_469_057, 203_878_576),
    "cdnv2_c": (6_177_512, 309_740_977, 514_605_088),
    "densenet121": (7_978_856, 2_850_581_760, 2_834_161_664),
    "densenet161": (28_681_000, 7_758_539_520, 7_727_907_072),
    "densenet169": (14_149_480, 3_379_675_392, 3_359_843_328),
    "densenet201": (20_013_928, 4_316_943_104, 4_291_365_888),
    "cspdensenet121": (6_239_336, 17_944_754_176, 17_838_280_704),
    "cspdensenet161": (23_262_088, 69_345_891_456, 69_064_554_624),
    "cspdensenet169": (11_486_184, 33_301_338_624, 33_098_527_232),
    "cspdensenet201": (16_292_584, 47_882_210_816, 47_587_878_400),
    "cspresnet50": (21_616_168, 4_517_306_368, 4_517_240_832),
    "cspresnext50": (20_569_896, 4_015_079_424, 4_014_948_352),
    "cspdarknet53": (27_642_184, 6_533_718_016, 6_533_652_480),
}
# The CondenseNets' papers count activations and pooling with the products; everybody else counts the products.
_COUNT_EVERYTHING = ("CondenseNet", "CondenseNetV2")


def catalogue(pattern: str = "*") -> list[dict[str, Any]]:
    """The presets that match a shell pattern, family by family.

    Args:
        pattern: for example ``"cdnv2*"``.

    Returns:
        One dict for each: `name`, `family` (the network's class), `params`, `macs` (as the family's paper counts),
        `executed_macs`, `input_size` (pixels), `note` (published figures) and `pretrained`: framework, file, source and
        note of every released checkpoint, those in Paddle's format being what ``pretrained=True`` downloads.
    """
    from paddle_dense.models.registry import presets

    return [_entry(preset) for preset in presets() if fnmatchcase(preset.name, pattern)]


def measured(name: str) -> tuple[int, int, int]:
    """Parameters and both counts of multiply-accumulates of a preset, at its own picture size."""
    from paddle_dense.models import create_model
    from paddle_dense.profiling import profile

    size = profile(create_model(name))
    return size.params, size.macs, size.executed_macs


def _entry(preset: Any) -> dict[str, Any]:
    params, macs, executed = SIZES.get(preset.name) or measured(preset.name)
    family = preset.network.__name__
    return {
        "name": preset.name,
        "family": family,
        "params": params,
        "macs": macs if family in _COUNT_EVERYTHING else executed,
        "executed_macs": executed,
        "input_size": preset.preprocessing.input_size,
        "note": preset.note,
        "pretrained": [
            {key: entry[key] for key in ("framework", "file", "source", "note")}
            for entry in manifest()
            if entry["name"] == preset.name
        ],
    }


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("list", "paddle_dense list"),
        description="List the presets: parameters, multiply-accumulates as the family's paper counts them, side of the "
        "pictures, and the frameworks in whose format weights are released.",
        epilog="Exit status: 0 done, 1 no preset matches, 2 wrong usage.",
    )
    add = command.add_argument
    add("pattern", nargs="?", default="*", metavar="PATTERN", help="only names that match, such as 'cdnv2*'")
    add("--json", action="store_true", help="print one JSON object for each preset")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    warnings.filterwarnings("ignore", message="No ccache found")
    try:
        args = parser().parse_args(arguments)
    except UsageError as error:
        complain(error)
        return USAGE
    entries = catalogue(args.pattern)
    if not entries:
        complain(f"no preset matches {args.pattern!r}: leave the pattern out to see all of them")
        return FAILED
    if args.json:
        for entry in entries:
            print(json.dumps(entry))
        return OK
    print(f"{'name':<26}{'family':<22}{'parameters':>12}{'MACs':>12}{'pixels':>8}  released for")
    for entry in entries:
        frameworks = ", ".join(dict.fromkeys(released["framework"] for released in entry["pretrained"]))
        print(
            f"{entry['name']:<26}{entry['family']:<22}{entry['params']:>12,}{entry['macs'] / 1e6:>10,.1f} M"
            f"{entry['input_size']:>8}  {frameworks or '-'}"
        )
    return OK
