"""What the commands that look at images share: the model that they are given, and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paddle_dense.classes import read_labels, translated
from paddle_dense.errors import WeightsError, naming, shown

if TYPE_CHECKING:
    from paddle_dense.models.network import Network
    from paddle_dense.prediction import Classifier

MODEL_HELP = "a preset, a weight file, or what deploy wrote: NAME.onnx, or NAME of NAME.pdiparams"


def open_model(name: str) -> Network | None:
    """The network of a preset, with its released weights, or of a weight file; None for what `deploy` wrote.

    Raises:
        WeightsError: no weights are released, or the file cannot be used.
    """
    from paddle_dense.checkpoints import load_model
    from paddle_dense.cost import check_cost
    from paddle_dense.deploy.exporting import is_exported
    from paddle_dense.zoo import create_model, list_models

    if name in list_models():
        return create_model(name, pretrained=True)
    if is_exported(name):
        return None
    if not Path(name).suffix and not Path(name).exists():
        raise WeightsError(f"there is no preset or file {shown(name)}: paddle-dense list shows the presets")
    model = load_model(name)
    with naming(name):
        check_cost(model, "take another file", model.preprocessing.input_size)
    return model


def open_classifier(name: str, model: Network | None, labels: Path | None, language: str) -> Classifier:
    """What `open_model` gave, or the exported file, as what tells classes apart.

    Args:
        name: what the command was given.
        model: what `open_model` made of it.
        labels: a file with other names of the classes.
        language: of ImageNet's names.

    Raises:
        WeightsError: an exported file cannot be used, or the network has no classes.
    """
    from paddle_dense.deploy.exporting import load_exported
    from paddle_dense.prediction import Classifier

    try:
        classifier = load_exported(name) if model is None else Classifier.of(model)
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from None if not isinstance(error, WeightsError) else error
    if labels:
        return classifier.named(read_labels(labels))
    return classifier.named(translated(classifier.classes, language)) if classifier.classes else classifier
