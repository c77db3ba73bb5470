"""Every preset is as large as its paper says: the table of the README."""

from __future__ import annotations

import pytest

from benchmarks.sizes import row, sizes
from paddle_dense.models import presets

EXACT = {
    "cdnv2_a": 2_038_444,
    "cdnv2_b": 3_592_662,
    "cdnv2_c": 6_177_512,
    "condensenet74_c4": 4_773_944,
    "condensenet74_c8": 2_935_416,
    "condensenet50": 214_186,
    "condensenet74": 402_026,
    "condensenet86": 516_202,
    "condensenet98": 643_882,
    "condensenet110": 785_066,
    "condensenet122": 939_754,
    "condensenet182": 4_209_226,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "cspdensenet121": 6_239_336,
    "cspdensenet161": 23_262_088,
    "cspdensenet169": 11_486_184,
    "cspdensenet201": 16_292_584,
}


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_parameters_and_macs_are_the_published_ones(preset):
    params, macs = sizes(preset)
    print(row(preset))
    if preset.name in EXACT:
        assert params == EXACT[preset.name]
    else:
        assert params / 1e6 == pytest.approx(preset.published.params, rel=0.02)
    if preset.published.macs:
        assert macs == pytest.approx(preset.published.macs, rel=0.02)
