"""One way to run a network each, as a process of its own: ``python -m benchmarks.runners NAME FOLDER``.

Every runtime gets the environment that is best for it, and no other's threads spin meanwhile. The process
reads lines from its input: ``batch N`` prepares inputs, ``run N`` runs the network until caches and threads are warm,
then so often, and answers with the milliseconds of each of these, ``answer FILE`` saves what the network says to the
seeded input. `benchmarks.latency` has put `network.json` and `weights.npz` into FOLDER.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]
_WARM_UP = 0.15  # seconds
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


def _predictor(model: Any, folder: Path, batch: int, onednn: bool = False) -> Runner:
    from paddle_dense.deploy.exporting import load_paddle

    size = _described(folder)["input_size"]
    pd_ = importlib.import_module("paddle_dense")
    files = pd_.deploy.export(model, folder / f"batch{batch}", format="paddle", input_size=size, batch=batch)
    run = load_paddle(files, THREADS, onednn)
    return lambda x: run(x)[0]


def paddle_inference(folder: Path, batch: int) -> Runner:
    """Paddle Inference, the network as it is."""
    return _predictor(_paddle_model(folder)[1], folder, batch)


def paddle_inference_fused(folder: Path, batch: int) -> Runner:
    """Paddle Inference, the fused network."""
    pd_, model = _paddle_model(folder)
    return _predictor(pd_.deploy.fuse(model), folder, batch)


def paddle_inference_onednn(folder: Path, batch: int) -> Runner:
    """Paddle Inference with oneDNN, the network fused for engines that compile the graph."""
    pd_, model = _paddle_model(folder)
    return _predictor(pd_.deploy.fuse(model, runtime="compiled"), folder, batch, onednn=True)


def _onnx_of_ours(folder: Path, batch: int) -> Path:
    pd_, model = _paddle_model(folder)
    fused = pd_.deploy.fuse(model, runtime="compiled")
    size = _described(folder)["input_size"]
    return pd_.deploy.export(fused, folder / f"batch{batch}", format="onnx", input_size=size, batch=batch)[0]


def _torch_model(folder: Path) -> Any:
    import torch

    from convert.parity.forward import load_torch_state
    from convert.verification import build_twin
    from paddle_dense.files.layout import to_torch
    from paddle_dense.models.network import network_class
    from paddle_dense.models.recognise import Architecture

    described = _described(folder)
    twin = build_twin(Architecture(described["arch"], network_class(described["arch"]), described["config"]))
    load_torch_state(twin, to_torch(dict(np.load(folder / "weights.npz"))))
    torch.set_num_threads(THREADS)
    return torch, twin.eval()


def _torch_runner(torch: Any, model: Any) -> Runner:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def torch_eager(folder: Path, batch: int) -> Runner:
    """The PyTorch twin, which does what the authors' code does."""
    return _torch_runner(*_torch_model(folder))


def torch_compiled(folder: Path, batch: int) -> Runner:
    """The twin after `torch.compile`."""
    torch, model = _torch_model(folder)
    return _torch_runner(torch, torch.compile(model))


def _onnx_of_twin(folder: Path, batch: int) -> Path:
    torch, model = _torch_model(folder)
    size, path = _described(folder)["input_size"], folder / f"batch{batch}.onnx"
    x = torch.zeros(batch, _described(folder)["config"]["in_channels"], size, size)
    torch.onnx.export(model, x, str(path), dynamo=False)
    return path


def _onnxruntime(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def onnxruntime_fused(folder: Path, batch: int) -> Runner:
    """ONNX Runtime, the fused network."""
    return _onnxruntime(_onnx_of_ours(folder, batch))


def onnxruntime_twin(folder: Path, batch: int) -> Runner:
    """ONNX Runtime, the graph that PyTorch exports of the twin."""
    return _onnxruntime(_onnx_of_twin(folder, batch))


def _openvino(path: Path) -> Runner:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda x: compiled([x])[0]


def openvino_fused(folder: Path, batch: int) -> Runner:
    """OpenVINO, the fused network."""
    return _openvino(_onnx_of_ours(folder, batch))


def openvino_twin(folder: Path, batch: int) -> Runner:
    """OpenVINO, the graph that PyTorch exports of the twin."""
    return _openvino(_onnx_of_twin(folder, batch))


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


def timm(folder: Path, batch: int) -> Runner:
    """The network of the same name in timm, with fresh weights."""
    import timm
    import torch

    torch.set_num_threads(THREADS)
    return _torch_runner(torch, timm.create_model(_described(folder)["arch"]).eval())


OURS = (
    paddle_eager,
    paddle_eager_fused,
    paddle_inference,
    paddle_inference_fused,
    paddle_inference_onednn,
    onnxruntime_fused,
    openvino_fused,
)
PEERS = (torch_eager, torch_compiled, onnxruntime_twin, openvino_twin, ppim, paddle_vision, timm)
RUNNERS = {runner.__name__: runner for runner in (*OURS, *PEERS)}
# Of these the weights are not ours, so the answers cannot be compared.
OWN_WEIGHTS = ("paddle_vision", "timm")


def main(name: str, folder: Path) -> None:
    """Serve one runner until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    if name.startswith(("paddle", "ppim")):
        from paddle_dense.environment import set_cpu_environment

        set_cpu_environment()
    (folder / name).mkdir(exist_ok=True)
    for file in ("network.json", "weights.npz"):
        (folder / name / file).symlink_to(folder / file)
    described = _described(folder)
    run, x = None, None
    answers.write("ready\n")
    for line in sys.stdin:
        what, value = line.split()
        if what == "batch":
            shape = (int(value), described["config"]["in_channels"], described["input_size"], described["input_size"])
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            run = RUNNERS[name](folder / name, int(value))
            run(x), run(x)
            answers.write("ready\n")
        elif what == "run":
            warm = time.perf_counter() + _WARM_UP
            while time.perf_counter() < warm:
                run(x)
            times = []
            for _ in range(int(value)):
                start = time.perf_counter()
                run(x)
                times.append(1000 * (time.perf_counter() - start))
            answers.write(json.dumps(times) + "\n")
        elif what == "answer":
            np.save(value, run(x))
            answers.write("ready\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
