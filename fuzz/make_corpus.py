"""Makes corpus/: small files of every format that the readers know, each by the framework that writes such files."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def arrays() -> dict[str, np.ndarray]:
    """Small tensors of every dtype that files hold; one has no dimensions, one no elements, and one is transposed."""
    numbers = np.arange(6).reshape(2, 3)
    dtypes = {"float": "f4", "half": "f2", "double": "f8", "long": "i8", "int": "i4", "short": "i2", "byte": "u1"}
    return {
        **{f"layer.{name}": (numbers - 1.5).astype(dtype) for name, dtype in dtypes.items() if name != "byte"},
        "layer.byte": numbers.astype("u1"),
        "layer.transposed": numbers.T.astype("f4"),
        "layer.mask": numbers > 2,
        "layer.flag": np.array(True),
        "layer.count": np.array(7),
        "layer.empty": np.empty((0, 3), "f4"),
    }


def write_torch(folder: Path) -> None:
    """What torch.save writes, now and before PyTorch 1.6, with and without what is saved with the weights."""
    import torch

    state = {name: torch.from_numpy(array) for name, array in arrays().items()}
    state["layer.bfloat16"] = torch.arange(6).bfloat16().reshape(2, 3)
    storage = torch.arange(12.0)
    views = {"rows": storage[2:8].reshape(2, 3), "columns": storage[::4], "spread": storage[:1].expand(2, 2)}
    repeated = {"all": torch.ones(1).expand(5, 3), "some": torch.arange(3).bfloat16()[:, None].expand(3, 7).t()}
    kept = {"tensor": torch.ones(3), "parameter": torch.nn.Parameter(torch.ones(2))}
    for tensor in kept.values():
        tensor.tag = {"shape": (1, 2)}
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 1, 2, 2)).sum().backward()
    optimizer.step()
    training = {
        "epoch": 3,
        "arch": "net",
        "state_dict": {f"module.{name}": value for name, value in module.state_dict().items()},
        "state_dict_ema": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, data="pictures"),
    }
    torch.save(state, folder / "state_dict.pth")
    torch.save(views, folder / "views.pth")
    torch.save(repeated, folder / "repeated.pth")
    torch.save(kept, folder / "attributes.pth")
    torch.save(training, folder / "training.pth.tar")
    torch.save(module, folder / "module.pth")
    torch.save({"w": torch.nn.Parameter(torch.ones(3)), "n": np.float64(0.5), "a": arrays()}, folder / "numpy.pth")
    for name, saved in {"old": state, "old_views": views, "old_repeated": repeated, "old_training": training}.items():
        torch.save(saved, folder / f"{name}.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    torch.save({"state_dict": state}, folder / "without_checksums.pth")
    torch.serialization.set_crc32_options(True)


def write_safetensors(folder: Path) -> None:
    """What the safetensors library writes for numpy and for PyTorch."""
    import torch
    from safetensors import numpy as for_numpy
    from safetensors import torch as for_torch

    contiguous = {name: np.array(array, order="C") for name, array in arrays().items()}
    for_numpy.save_file(contiguous, folder / "numpy.safetensors")
    state = {"w": torch.ones(2, 3).bfloat16(), "b": torch.zeros(3), "n": torch.tensor(1)}
    for_torch.save_file(state, folder / "torch.safetensors", {"format": "pt", "title": "two words"})


def write_paddle(folder: Path) -> None:
    """What paddle.save writes, with every protocol, and what is saved next to Paddle's weights."""
    import paddle

    state = {name: paddle.to_tensor(array) for name, array in arrays().items() if array.dtype.kind != "V"}
    state["layer.bfloat16"] = paddle.arange(6, dtype="float32").astype("bfloat16")
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(1, 2, 1), paddle.nn.BatchNorm2D(2))
    adam = paddle.optimizer.Adam(0.1, parameters=layer.parameters())
    layer(paddle.ones([2, 1, 2, 2])).sum().backward()
    adam.step()
    paddle.save(state, str(folder / "every_dtype.pdparams"))
    for protocol in (2, 3, 4):
        paddle.save(layer.state_dict(), str(folder / f"protocol{protocol}.pdparams"), protocol=protocol)
    paddle.save({"model": layer.state_dict(), "epoch": 3}, str(folder / "nested.pdparams"))
    paddle.save(adam.state_dict(), str(folder / "adam.pdopt"))
    # Paddle cuts only what is larger than 1 GB; this is how.
    numbers = np.arange(6, dtype="f4")
    slices = {f"w@@.{number}": part for number, part in enumerate(np.split(numbers, [4]))}
    pieces = {"w": {"OriginShape": (2, 3), "slices": list(slices)}}
    sliced = {**slices, "b": numbers[:2], "UnpackBigParamInfor@@": pieces}
    (folder / "sliced.pdparams").write_bytes(pickle.dumps(sliced, 2))


def write_packed(folder: Path) -> None:
    """A checkpoint in each kind of archive, an archive in another, and the index of two files here as shards."""
    content = (folder / "views.pth").read_bytes()
    (folder / "packed.gz").write_bytes(gzip.compress(content, mtime=0))
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("README"), b"text")
        archive.writestr(zipfile.ZipInfo("net/views.pth"), content, zipfile.ZIP_DEFLATED)
    with tarfile.open(folder / "packed.tar", "w") as archive:
        entry = tarfile.TarInfo("net/views.pth")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    (folder / "nested.gz").write_bytes(gzip.compress((folder / "packed.zip").read_bytes(), mtime=0))
    with zipfile.ZipFile(folder / "nested.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("views.pth.gz"), (folder / "packed.gz").read_bytes())
    shards = {"torch.safetensors": ("w", "b", "n"), "views.pth": ("rows", "columns", "spread")}
    places = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 256}, "weight_map": places}
    (folder / "shards.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_own(folder: Path) -> None:
    """What this project writes: weights with a sidecar, and sidecars from the middle of writing and replacing them.

    The last is somebody else's and only resembles one of these: a page of a list, as servers give them.
    """
    from paddle_dense.files.sidecar import write_with_sidecar

    state = {"w": np.arange(3, dtype="f4")}
    sidecar = {"arch": "condensenet50", "config": {"num_classes": 5, "stages": [1, 2, 3]}, "torch": None}
    write_with_sidecar(state, folder / "own.pdparams", sidecar)
    own = (folder / "own.json").read_text(encoding="utf-8").rstrip()
    (folder / "replaced.json").write_text(f'{own[:-2]},\n  "previous": {own}\n}}\n', encoding="utf-8")
    (folder / "first.json").write_text(f'{own[:-2]},\n  "previous": null\n}}\n', encoding="utf-8")
    page = {"count": 1, "next": None, "previous": None, "results": [{"name": "w"}]}
    (folder / "page.json").write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Writes all of them into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "corpus", help="default: corpus/ next to this")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for write in (write_torch, write_safetensors, write_packed, write_paddle, write_own):
            write(folder)
    for path in sorted(folder.iterdir()):
        print(f"{os.path.getsize(path):6} {path.name}")


if __name__ == "__main__":
    main()
