"""Every preset is as large as its paper says: the table of the README."""

from __future__ import annotations

import pytest

from benchmarks.sizes import PUBLISHED, row, sizes
from paddle_dense import list_models

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


@pytest.mark.parametrize("name", list_models())
def test_parameters_and_macs_are_the_published_ones(name):
    params, macs = sizes(name)
    print(row(name))
    published_params, published_macs = PUBLISHED[name]
    if name in EXACT:
        assert params == EXACT[name]
    else:
        assert params / 1e6 == pytest.approx(published_params, rel=0.02)
    if published_macs:
        assert macs == pytest.approx(published_macs, rel=0.02)
