"""One way to run a network each, as a process of its own: ``python -m benchmarks.runners NAME FOLDER``.

Every runtime gets the environment that is best for it, and no other's threads spin meanwhile. The process
reads lines from its input: ``batch N`` prepares inputs, ``run N`` runs the network until caches and threads are warm,
then so often, or for a second, and answers with the milliseconds of each of these, ``answer FILE`` saves what the
network says to the seeded input, ``memory`` answers with the most megabytes that the process held since ``batch N``.
`benchmarks.latency` has put `network.json` and `weights.npz` into FOLDER.

A runner that runs an exported file has it written by another process, so that its memory is the engine's alone; runners
of the same file share it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]
# Of this process before Paddle is imported, which sets OMP_NUM_THREADS to 1 for itself and every child.
ENVIRONMENT = dict(os.environ)
_WARM_UP, _TURN = 0.15, 1.0  # seconds
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "network.json").read_text())


def _paddle_model(folder: Path) -> Any:
    import paddle_dense as pd_
    from paddle_dense.models.fitting import set_state
    from paddle_dense.models.network import build_network

    described = _described(folder)
    model = build_network(described["arch"], described["config"])
    set_state(model, dict(np.load(folder / "weights.npz")))
    model.eval()
    return pd_, model


def _eager(model: Any) -> Runner:
    import paddle

    def run(x: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return model(paddle.to_tensor(x)).numpy()

    return run


def paddle_eager(folder: Path, batch: int) -> Runner:
    """This project's network in Paddle, as it is."""
    return _eager(_paddle_model(folder)[1])


def paddle_eager_fused(folder: Path, batch: int) -> Runner:
    """The same after `pd_.deploy.fuse`."""
    pd_, model = _paddle_model(folder)
    return _eager(pd_.deploy.fuse(model))


def _exported(folder: Path, batch: int, format: str, runtime: str | None) -> list[Path]:
    """Files of this project's network, fused for a runtime or not; another process writes them."""
    form = f"{format}_{runtime or 'plain'}_{batch}"
    listing = folder / f"{form}.files"
    _written_once(listing, "write_ours", folder, batch, format, runtime or "")
    return [Path(line) for line in listing.read_text().splitlines()]


def write_ours(folder: Path, batch: str, format: str, runtime: str) -> None:
    """What `_exported` reads."""
    pd_, model = _paddle_model(folder)
    size, form = _described(folder)["input_size"], f"{format}_{runtime or 'plain'}_{batch}"
    model = pd_.deploy.fuse(model, runtime=runtime) if runtime else model
    files = pd_.deploy.export(model, folder / form, format=format, input_size=size, batch=int(batch))
    (folder / f"{form}.files").write_text("\n".join(map(str, files)))


def _written_once(path: Path, function: str, folder: Path, *arguments: Any) -> None:
    """Have another process write a file, unless a runner has done so or is doing so, for which this one waits."""
    from filelock import FileLock  # comes with PyTorch

    with FileLock(f"{path}.lock"):
        if not path.exists():
            _elsewhere(function, folder, *arguments)


def _elsewhere(function: str, folder: Path, *arguments: Any) -> None:
    """Call a function of this module in another process; the last line with an error is the message if it fails."""
    code = f"import sys; from benchmarks import runners; runners.{function}(runners.Path(sys.argv[1]), *sys.argv[2:])"
    done = subprocess.run([sys.executable, "-c", code, str(folder), *map(str, arguments)], stderr=subprocess.PIPE)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(
            next((line for line in reversed(lines) if re.match(r"[\w.]*Error", line)), "no reason given")
        )


def _predictor(folder: Path, batch: int, runtime: str | None, onednn: bool = False) -> Runner:
    from paddle_dense.deploy.exporting import load_paddle

    run = load_paddle(_exported(folder, batch, "paddle", runtime), THREADS, onednn)
    return lambda x: run(x)[0]


def paddle_inference(folder: Path, batch: int) -> Runner:
    """Paddle Inference, the network as it is."""
    return _predictor(folder, batch, None)


def paddle_inference_fused(folder: Path, batch: int) -> Runner:
    """Paddle Inference, the fused network."""
    return _predictor(folder, batch, "paddle")


def paddle_inference_onednn(folder: Path, batch: int) -> Runner:
    """Paddle Inference with oneDNN, the network fused for engines that compile the graph."""
    return _predictor(folder, batch, "compiled", onednn=True)


# torchvision's compiled operators, which no classification network calls.
_POOLS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_OPERATORS = ("nms", "qnms", *_POOLS, *(f"_{name}_backward" for name in _POOLS))


def _peer(name: str) -> Any:
    """timm or torchvision; a torchvision built for another PyTorch imports once its operators are declared."""
    import torch

    try:
        return importlib.import_module(name)
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor x) -> Tensor")
        _KEPT["torchvision's operators"] = library  # its declarations end with it
        return importlib.import_module(name)


_KEPT: dict[str, Any] = {}


def origin(network: str) -> str:
    """Whose PyTorch code of a network is run: that of the library that a user would take it from, or the twin's."""
    if network.startswith(("cspres", "cspdark", "tf_efficientnet")):
        return "timm"
    return "torchvision.models" if re.fullmatch(r"densenet(121|161|169|201)", network) else "twin"


def _torch_model(folder: Path) -> Any:
    """The original's network with our weights, whose names are the original's."""
    import torch

    from convert.parity.forward import load_torch_state
    from convert.verification import build_twin
    from paddle_dense.files.layout import to_torch
    from paddle_dense.models.network import network_class
    from paddle_dense.models.recognise import Architecture

    described = _described(folder)
    name, source = described["arch"], origin(described["arch"])
    if source == "timm":
        model = _peer("timm").create_model(name)
    elif source == "torchvision.models":
        model = getattr(_peer(source), name)(weights=None)
    else:
        model = build_twin(Architecture(name, network_class(name), described["config"]))
    load_torch_state(model, to_torch(dict(np.load(folder / "weights.npz"))))
    torch.set_num_threads(THREADS)
    return torch, model.eval()


def _torch_runner(torch: Any, model: Any) -> Runner:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def torch_eager(folder: Path, batch: int) -> Runner:
    """The original in PyTorch: timm's or torchvision's network, or the twin, which does what the authors' code does."""
    return _torch_runner(*_torch_model(folder))


def torch_compiled(folder: Path, batch: int) -> Runner:
    """The original after `torch.compile`."""
    torch, model = _torch_model(folder)
    return _torch_runner(torch, torch.compile(model))


def _onnx_of_original(folder: Path, batch: int) -> Path:
    path = folder / f"original{batch}.onnx"
    _written_once(path, "write_original", folder, batch, path)
    return path


def write_original(folder: Path, batch: str, path: str) -> None:
    """The original's graph in ONNX, as PyTorch exports it."""
    torch, model = _torch_model(folder)
    size = _described(folder)["input_size"]
    x = torch.zeros(int(batch), _described(folder)["config"]["in_channels"], size, size)
    part = f"{path}.part"
    torch.onnx.export(model, x, part, dynamo=False)
    os.replace(part, path)


def _onnxruntime(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def onnxruntime_fused(folder: Path, batch: int) -> Runner:
    """ONNX Runtime, the fused network."""
    return _onnxruntime(_exported(folder, batch, "onnx", "compiled")[0])


def onnxruntime_plain(folder: Path, batch: int) -> Runner:
    """ONNX Runtime, the network as it is."""
    return _onnxruntime(_exported(folder, batch, "onnx", None)[0])


def onnxruntime_original(folder: Path, batch: int) -> Runner:
    """ONNX Runtime, the original's graph as PyTorch exports it."""
    return _onnxruntime(_onnx_of_original(folder, batch))


def _openvino(path: Path) -> Runner:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda x: compiled([x])[0]


def openvino_fused(folder: Path, batch: int) -> Runner:
    """OpenVINO, the network fused for it."""
    return _openvino(_exported(folder, batch, "onnx", "openvino")[0])


def openvino_plain(folder: Path, batch: int) -> Runner:
    """OpenVINO, the network as it is."""
    return _openvino(_exported(folder, batch, "onnx", None)[0])


def openvino_original(folder: Path, batch: int) -> Runner:
    """OpenVINO, the original's graph as PyTorch exports it."""
    return _openvino(_onnx_of_original(folder, batch))


def ppim(folder: Path, batch: int) -> Runner:
    """The Paddle port that ppim carries."""
    import paddle
    import ppim.models as models

    name = _described(folder)["arch"]
    model = getattr(models, name)()
    model = model[1] if isinstance(model, tuple) else model
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in np.load(folder / "weights.npz").items()})
    model.eval()
    return _eager(model)


def paddle_vision(folder: Path, batch: int) -> Runner:
    """The network of the same name in `paddle.vision.models`, whose state_dict has other names: fresh weights."""
    import paddle

    model = getattr(paddle.vision.models, _described(folder)["arch"])()
    model.eval()
    return _eager(model)


def paddleclas(folder: Path, batch: int) -> Runner:
    """PaddleClas' network of the same kind, where it is installed, with fresh weights."""
    import paddle

    from paddle_dense.adapters.paddleclas import _HOMES

    for home in _HOMES:
        try:
            backbones = importlib.import_module(f"{home}.arch.backbone")
            break
        except ImportError:
            continue
    else:
        raise ImportError("PaddleClas is not installed")
    names = {"cspdarknet53": "CSPDarkNet53"}
    name = _described(folder)["arch"]
    if name not in _KEPT:  # its parameters have names of their own, which exist only once in a process
        paddle.seed(0)
        _KEPT[name] = getattr(backbones, names.get(name, name.replace("densenet", "DenseNet")))()
        _KEPT[name].eval()
    return _eager(_KEPT[name])


OURS = (
    paddle_eager,
    paddle_eager_fused,
    paddle_inference,
    paddle_inference_fused,
    paddle_inference_onednn,
    onnxruntime_plain,
    onnxruntime_fused,
    openvino_plain,
    openvino_fused,
)
PEERS = (torch_eager, torch_compiled, onnxruntime_original, openvino_original, ppim, paddle_vision, paddleclas)
RUNNERS = {runner.__name__: runner for runner in (*OURS, *PEERS)}
# Of these the weights are not ours, so the answers cannot be compared.
OWN_WEIGHTS = ("paddle_vision", "paddleclas")


_STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    """From now on `peak` counts, on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float | None:
    """The most megabytes of memory that this process has held; None where the system does not say."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), None)


def main(name: str, folder: Path) -> None:
    """Serve one runner until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    if name.startswith(("paddle", "ppim")):
        from paddle_dense.environment import set_cpu_environment

        set_cpu_environment()
    described = _described(folder)
    run, x = None, None
    answers.write("ready\n")
    for line in sys.stdin:
        what, value = line.split() if " " in line else (line.strip(), "")
        if what == "batch":
            shape = (int(value), described["config"]["in_channels"], described["input_size"], described["input_size"])
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            forget_peak()
            run = RUNNERS[name](folder, int(value))
            run(x), run(x)
            answers.write("ready\n")
        elif what == "run":
            warm = time.perf_counter() + _WARM_UP
            while time.perf_counter() < warm:
                run(x)
            times, end = [], time.perf_counter() + _TURN
            while len(times) < int(value) and time.perf_counter() < end:
                start = time.perf_counter()
                run(x)
                times.append(1000 * (time.perf_counter() - start))
            answers.write(json.dumps(times) + "\n")
        elif what == "memory":
            answers.write(json.dumps(peak()) + "\n")
        elif what == "answer":
            np.save(value, run(x))
            answers.write("ready\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
