"""The main job on real data: ``make demo`` converts the shipped digits checkpoint and tests both frameworks on it."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from convert.conversion import convert_checkpoint
from convert.verification import build_twin
from paddle_dense.data import load_digits
from paddle_dense.files.atomic import temporary_folder
from paddle_dense.pretrained import shipped_folder
from paddle_dense.process import FAILED, as_process, complain, stoppable

NEEDS = {"torch": "torch", "scikit-learn": "sklearn"}


@stoppable
def main() -> int:
    """Convert, evaluate in both frameworks on the held-out digits, and print what was seen; 0 if they agree."""
    missing = [name for name, module in NEEDS.items() if find_spec(module) is None]
    if missing:
        complain(f"the demo compares with PyTorch on scikit-learn's digits: pip install {' '.join(missing)}")
        return FAILED
    start = time.perf_counter()
    source = shipped_folder() / "cdnv2_digits.pth"
    shown = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source
    with temporary_folder(Path(tempfile.gettempdir()) / "cdnv2_digits.pdparams") as folder:
        target = folder / "cdnv2_digits.pdparams"
        print(f"$ python -m convert.torch2paddle {shown} -o {target.name}")
        result = convert_checkpoint(source, target)
        print(f"  recognised {result.arch} with {result.params:,} parameters")
        print(f"  PyTorch and Paddle agree to {result.max_rel_diff:.1e} of the logits' scale on random inputs")
        digits = load_digits()
        images, labels = digits.test_images, digits.test_labels
        ours, theirs = _paddle_logits(target, images), _torch_logits(source, images)
    print(f"{len(labels)} handwritten digits that training never saw:")
    for name, logits in (("PyTorch", theirs), ("Paddle", ours)):
        print(f"  {name:8}{np.mean(logits.argmax(1) == labels):7.2%} correct")
    agree = np.mean(ours.argmax(1) == theirs.argmax(1))
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"  same answer on {agree:.1%}, logits equal to {difference:.1e} of their scale")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0 if agree == 1 else 1


def _paddle_logits(path: Path, images: np.ndarray) -> np.ndarray:
    import paddle

    from paddle_dense import load_model

    model = load_model(path)
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def _torch_logits(path: Path, images: np.ndarray) -> np.ndarray:
    import torch

    from convert.parity.forward import load_torch_state
    from paddle_dense.files.layout import to_paddle
    from paddle_dense.files.torch_file import read_checkpoint
    from paddle_dense.models.recognise import recognise

    state = read_checkpoint(path).state
    twin = build_twin(recognise(to_paddle(state))).eval()
    load_torch_state(twin, state)
    with torch.no_grad():
        return twin(torch.from_numpy(images)).numpy()


if __name__ == "__main__":
    as_process(main)
