"""Why `pd_.deploy.fuse` chooses as it does: the cost of every equal form of a layer, in every runtime.

    python -m benchmarks.fused_forms cdnv2_c                      # the last dense layer of each block
    python -m benchmarks.fused_forms cdnv2_c --batch 8

Each figure is the least of many runs in microseconds, forms taking turns. In ONNX Runtime and OpenVINO every figure
includes the 1x1 convolution that makes the layer's input of three channels.
"""

# ruff: noqa: E402  Paddle has to load after its environment is set.

from __future__ import annotations

from paddle_dense.environment import set_cpu_environment

set_cpu_environment()

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import paddle
from paddle import nn

from benchmarks.runners import THREADS
from paddle_dense.deploy.exporting import export, load_onnx
from paddle_dense.deploy.fused_layers import (
    DepthwiseSums,
    GatheredConvolution,
    GatheredProduct,
    PoolingProduct,
    SpreadConvolution,
    convolution,
    dense_lgc,
    fold_norm,
    merged_groups,
    scale_and_shift,
    to_array,
)
from paddle_dense.errors import WeightsError
from paddle_dense.zoo import create_model, list_models

Forms = dict[str, nn.Layer]
_ROUNDS, _RUNS = 8, 12


def lgc_forms(layer: nn.Layer) -> Forms:
    """The equals of a condensed LGC and the BN after it."""
    lgc, norm = layer.conv_1, layer.conv_2.norm
    forms = {
        "as it is": nn.Sequential(lgc, norm),
        "product": GatheredProduct(lgc, norm),
        "grouped": GatheredConvolution(lgc, norm),
        "grouped, channels last": GatheredConvolution(lgc, norm, channels_last=True),
        "dense": dense_lgc(lgc, norm),
    }
    return {name: form for name, form in forms.items() if form is not None}


def convolution_forms(layer: nn.Layer) -> Forms:
    """The equals of a grouped 3x3 convolution."""
    conv = layer.conv_2.conv
    forms: Forms = {
        "as it is": conv,
        "product, then spread": SpreadConvolution(conv),
        "depthwise, then sums": DepthwiseSums(conv),
    }
    for merge in range(2, conv._groups + 1):
        if conv._groups % merge == 0:
            weight = merged_groups(to_array(conv.weight), conv._groups, merge)
            groups = conv._groups // merge
            forms[f"{groups} groups"] = convolution(weight, conv.weight, padding=1, groups=groups)
    return forms


def bn_forms(layer: nn.Layer) -> Forms:
    """The equals of a BN after a convolution, here a dense one of the same shape as the LGC's result."""
    norm = layer.conv_2.norm
    conv = nn.Conv2D(norm._num_features, norm._num_features, 1, bias_attr=False)
    return {"as it is": nn.Sequential(conv, norm), "bias": fold_norm(copy.deepcopy(conv), norm)}


def activation_forms(layer: nn.Layer) -> Forms:
    """The equals of the BN before an activation."""
    norm, activation = layer.conv_1.norm, layer.conv_1.activation
    scale, shift = scale_and_shift(norm)
    single = convolution(scale[:, None, None, None], norm.weight, shift, groups=scale.size)
    return {
        "as it is": nn.Sequential(norm, activation),
        "depthwise 1x1": nn.Sequential(single, activation),
    }


def pooling_forms(layer: nn.Layer) -> Forms:
    """The equals of an average pooling of 2x2."""
    return {"as it is": nn.AvgPool2D(2, 2), "product": PoolingProduct()}


def least(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least time of each in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            run()
            for _ in range(_RUNS):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: min(found) * 1e6 for name, found in times.items()}


def in_paddle(forms: Forms, x: paddle.Tensor) -> dict[str, float]:
    """Paddle's own kernels."""
    return least({name: lambda form=form: form(x) for name, form in forms.items()})


def in_engines(forms: Forms, x: paddle.Tensor) -> dict[str, dict[str, float]]:
    """ONNX Runtime, and OpenVINO where it is installed."""
    batch, channels, size, _ = x.shape
    image = paddle.randn([batch, 3, size, size]).numpy()
    runs: dict[str, dict[str, Callable[[], object]]] = {"ONNX Runtime": {}, "OpenVINO": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, form) in enumerate(forms.items()):
            network = nn.Sequential(nn.Conv2D(3, channels, 1), form)
            network.eval()
            try:
                files = export(network, Path(folder) / str(number), format="onnx", input_size=size, batch=batch)
            except WeightsError:  # of an operator that is Paddle's alone
                continue
            run = load_onnx(files, THREADS)
            runs["ONNX Runtime"][name] = lambda run=run: run(image)
            run_openvino = _openvino(files[0])
            if run_openvino is not None:
                runs["OpenVINO"][name] = lambda run=run_openvino: run([image])
        return {engine: least(of_engine) for engine, of_engine in runs.items() if of_engine}


def _openvino(path: Path) -> Callable | None:
    try:
        import openvino
    except ImportError:
        return None
    return openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": THREADS})


def layers_of(model: nn.Layer, batch: int) -> Iterator[tuple[str, nn.Layer, paddle.Tensor]]:
    """The last dense layer of each block, its name and an input for it."""
    x = paddle.randn([batch, 3, model.input_size, model.input_size])
    for name, part in model.features.named_children():
        if name.startswith("denseblock"):
            for _, layer in part.named_children():
                before, x = x, layer(x)
            yield name, layer, before
        elif name.startswith(("init_conv", "transition")):
            x = part(x)


def main(preset: str, batch: int) -> None:
    """Print the table of one preset."""
    model = create_model(preset)
    model.eval()
    for name, layer, x in layers_of(model, batch):
        hidden = paddle.randn([batch, layer.conv_2.conv._in_channels, *x.shape[2:]])
        gathered = paddle.randn([batch, layer.conv_1.norm._num_features, *x.shape[2:]])
        kinds = [
            ("LGC and BN", lgc_forms(layer), x),
            ("3x3", convolution_forms(layer), hidden),
            ("1x1 and BN", bn_forms(layer), hidden),
            ("BN and activation", activation_forms(layer), gathered),
            ("pooling of 2x2", pooling_forms(layer), x),
        ]
        for kind, forms, given in kinds:
            print(f"\n{preset} {name}, {kind}, input {list(given.shape)}, microseconds")
            for form in forms.values():
                form.eval()
            tables = {"Paddle": in_paddle(forms, given), **in_engines(forms, given)}
            for form in forms:
                figures = "   ".join(
                    f"{runtime} {f'{table[form]:.0f}' if form in table else '-':>7}"
                    for runtime, table in tables.items()
                )
                print(f"  {form:24s} {figures}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=list_models("c*densenet*") + list_models("cdnv2*"))
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    with paddle.no_grad():
        main(arguments.preset, arguments.batch)
