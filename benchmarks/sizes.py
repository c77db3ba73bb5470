"""Print the size of every preset, measured now, next to the published figures: ``python -m benchmarks.sizes``."""

from __future__ import annotations

from paddle_dense.commands.list import COUNT_EVERYTHING, measured
from paddle_dense.models import presets
from paddle_dense.models.network import Preset


def sizes(preset: Preset) -> tuple[int, float]:
    """Parameters, and MACs in millions as the family's paper counts them, of a preset at its own image size."""
    found = measured(preset)
    macs = found.macs if preset.network.__name__ in COUNT_EVERYTHING else found.executed_macs
    return found.params, macs / 1e6


def row(preset: Preset) -> str:
    """One line of the table, in Markdown."""
    params, macs = sizes(preset)
    figures = (preset.published.params, preset.published.macs)
    published = ["" if figure is None else f"{figure:g} M" for figure in figures]
    return f"| `{preset.name}` | {params:,} | {published[0]} | {macs:,.1f} M | {published[1]} |"


def main() -> None:
    """Print the table."""
    print("| network | parameters | published | MACs | published |\n| --- | ---: | ---: | ---: | ---: |")
    for preset in presets():
        print(row(preset), flush=True)


if __name__ == "__main__":
    main()
