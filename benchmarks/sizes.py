"""Print the size of every preset beside the published figures: ``python -m benchmarks.sizes``."""

from __future__ import annotations

from paddle_dense import create_model, list_models, profile

# Published parameters and multiply-accumulates in millions; None where nobody has published them for the same picture
# size. Sources: the papers' tables, torchvision's and timm's model lists, the authors' page of EfficientNet-CondConv.
PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "tf_efficientnet_cc_b0_4e": (13.3, 402),
    "tf_efficientnet_cc_b0_8e": (24.0, 413),
    "tf_efficientnet_cc_b1_8e": (39.7, None),
    "efficientnet_cc_b0_4e": (13.3, 402),
    "efficientnet_cc_b0_8e": (24.0, 413),
    "efficientnet_cc_b1_8e": (39.7, None),
    "condensenet74_c4": (4.8, 529),
    "condensenet74_c8": (2.9, 274),
    "condensenet50": (0.22, 28.6),
    "condensenet74": (0.41, 51.9),
    "condensenet86": (0.52, 65.8),
    "condensenet98": (0.65, 81.3),
    "condensenet110": (0.79, 98.2),
    "condensenet122": (0.95, 116.7),
    "condensenet182": (4.2, 513),
    "cdnv2_a": (2.0, 46),
    "cdnv2_b": (3.6, 146),
    "cdnv2_c": (6.1, 309),
    "densenet121": (8.0, 2834),
    "densenet161": (28.7, 7728),
    "densenet169": (14.1, 3360),
    "densenet201": (20.0, 4291),
    "cspdensenet121": (None, None),
    "cspdensenet161": (None, None),
    "cspdensenet169": (None, None),
    "cspdensenet201": (None, None),
    "cspresnet50": (21.6, None),
    "cspresnext50": (20.6, None),
    "cspdarknet53": (27.6, None),
}


def sizes(name: str) -> tuple[int, float]:
    """Parameters, and MACs in millions, of a preset at its own picture size.

    The CondenseNets' papers count activations and pooling with the products; everybody else counts the products.
    """
    found = profile(create_model(name))
    counted = found.macs if name.startswith(("cdnv2", "condensenet")) else found.executed_macs
    return found.params, counted / 1e6


def row(name: str) -> str:
    """One line of the table, in Markdown."""
    params, macs = sizes(name)
    published = ["" if figure is None else f"{figure:g} M" for figure in PUBLISHED[name]]
    return f"| `{name}` | {params:,} | {published[0]} | {macs:,.1f} M | {published[1]} |"


def main() -> None:
    """Print the table."""
    print("| network | parameters | published | MACs | published |\n| --- | ---: | ---: | ---: | ---: |")
    for name in list_models():
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
