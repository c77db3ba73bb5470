"""Every preset is as large and as costly as its paper says: the table of the README."""

from __future__ import annotations

import pytest

from benchmarks.sizes import row, sizes
from paddle_dense import create_model, profile
from paddle_dense.models import presets

# Parameters; where papers and specification tell them, MACs as the CondenseNets' papers count, and MACs of convolutions
# and linear layers, in millions and rounded as there. Of CondConv and CSPNet, counted on timm's networks; of
# CIFAR's DenseNets, on pytorchcv's, and of densenet40_k12, whose transitions pytorchcv compresses, on andreasveit's.
FIGURES: dict[str, tuple[int, str, str]] = {
    "cdnv2_a": (2_038_444, "45.87", ""),
    "cdnv2_b": (3_592_662, "146.47", ""),
    "cdnv2_c": (6_177_512, "309.74", ""),
    "cdnv2_cifar10": (156_730, "8.7", ""),
    "condensenet74_c4": (4_773_944, "529", "516.6"),
    "condensenet74_c8": (2_935_416, "274", "261.5"),
    "condensenet50": (214_186, "28.6", "27.2"),
    "condensenet74": (402_026, "51.9", "49.2"),
    "condensenet86": (516_202, "65.8", "62.4"),
    "condensenet98": (643_882, "81.3", "77.0"),
    "condensenet110": (785_066, "98.2", "93.0"),
    "condensenet122": (939_754, "116.7", "110.5"),
    "condensenet182": (4_209_226, "513", "493.9"),
    "densenet121": (7_978_856, "", "2834"),
    "densenet161": (28_681_000, "", ""),
    "densenet169": (14_149_480, "", ""),
    "densenet201": (20_013_928, "", ""),
    "densenet40_k12": (1_019_722, "", ""),
    "densenet_bc100_k12": (769_162, "", ""),
    "densenet_bc190_k40": (25_624_430, "", ""),
    "densenet_bc250_k24": (15_324_406, "", ""),
    "cspdensenet121": (6_239_336, "", ""),
    "cspdensenet161": (23_262_088, "", ""),
    "cspdensenet169": (11_486_184, "", ""),
    "cspdensenet201": (16_292_584, "", ""),
    "cspresnet50": (21_616_168, "", ""),
    "cspresnext50": (20_569_896, "", ""),
    "cspdarknet53": (27_642_184, "", ""),
    **{f"{form}efficientnet_cc_b0_4e": (13_314_116, "", "") for form in ("", "tf_")},
    **{f"{form}efficientnet_cc_b0_8e": (24_013_284, "", "") for form in ("", "tf_")},
    **{f"{form}efficientnet_cc_b1_8e": (39_715_968, "", "") for form in ("", "tf_")},
}


def rounds_to(macs: int, millions: str) -> bool:
    """Whether a number is the published one, to the digits that were published; any is where there is none."""
    return not millions or f"{macs / 1e6:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_parameters_and_macs_are_the_published_ones(preset):
    params, macs = sizes(preset)
    print(row(preset))
    assert params == FIGURES[preset.name][0]
    if preset.published.macs:
        assert macs == pytest.approx(preset.published.macs, rel=0.02)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, {}) for name, (_, *macs) in FIGURES.items() if any(macs)),
        *((f"cdnv2_{size}", {"condensed": False}) for size in "abc"),
    ],
)
def test_figures_to_the_published_digit(name, form):
    params, macs, executed = FIGURES[name]
    found = profile(create_model(name, **form))
    assert found.params == params
    assert rounds_to(found.macs, macs)
    assert rounds_to(found.executed_macs, executed)
