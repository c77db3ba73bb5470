"""Exact rewriting for inference: the same numbers up to rounding, in less time."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import paddle
from paddle import nn

from paddle_dense.deploy.fusing_rules import RULES
from paddle_dense.deploy.judging import TOLERANCE, Answers, judge
from paddle_dense.evaluation import (
    as_arrays,
    brought_to_cpu,
    double_precision,
    evaluation,
    on_cpu,
    paddle_in_double_precision,
)
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.surgery import rewrite

RUNTIMES = tuple(RULES)


def fuse(model: nn.Layer, runtime: str = "paddle") -> nn.Layer:
    """A copy of a network for inference only, rewritten into fewer and faster operations, with the same outputs.

    What is fastest depends on what runs it, so each kind of runtime has rules of its own:

    =====================================  ============================  ==================================
    in the network                         for ``"paddle"``              for ``"compiled"``, ``"openvino"``
    =====================================  ============================  ==================================
    SFR: shuffle, groups and scatter       one dense 1x1 convolution     one dense 1x1 convolution
    LGC: gather, groups, shuffle           gather and batched product    dense 1x1 or grouped, by width
    BN after an LGC                        folded, without a bias        folded
    any other BN after a convolution       stays: cheaper than a bias    folded
    grouped 3x3 convolution                product, then spreading       fewer groups that fill the lanes
    3x3 convolution in DenseNet            product, then spreading       stays
    grouped 3x3, 1 or 2 outputs a group    stays                         depthwise, then sums
    1x1 convolution, then average pooling  pooling first                 pooling first
    average pooling of 2x2                 one matrix product            stays
    CondConv: depthwise, in static graphs  grouped by channel            a copy of the channels an expert
    CSPNet: split, concatenation           stay                          a convolution for each part
    dropout                                left out                      left out
    =====================================  ============================  ==================================

    The result is a Paddle network like any other: it can be called with any batch and size, go through
    `paddle.jit.to_static`, and be exported.

    Args:
        model: a network of this package in evaluation mode and, if a CondenseNet, in the condensed form; it stays as
            it is.
        runtime: ``"paddle"`` for Paddle's own kernels on a CPU, called from Python or by Paddle Inference;
            ``"compiled"`` for engines that compile the whole graph: ONNX Runtime, Paddle Inference with oneDNN;
            ``"openvino"`` for OpenVINO, which has the channels of a pixel side by side, so that LGCs are dense up to
            another width and gather there. For both, groups are merged to fill the vector instructions of the processor
            that fuses, AVX-512 or AVX2. The old name ``"onnx"`` of ``"compiled"`` is accepted, too.

    Raises:
        ValueError: the model is in training mode, in the trained form, fused already or of another package, or the
            runtime is unknown.
        RuntimeError: the outputs are not the same on random inputs.
    """
    runtime = "compiled" if runtime == "onnx" else runtime
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    if not hasattr(model, "config"):
        kind = type(model).__name__
        raise ValueError(f"{kind} is no network of this package: fuse one that create_model or load_model returned")
    if hasattr(model, "fused_for"):
        raise ValueError(f"this {type(model).__name__} is fused already: fuse the network that it was made from")
    check_form(model, "fuse")
    with evaluation(model):
        fused = rewrite(copy.deepcopy(model), RULES[runtime])
        fused.fused_for = runtime
        _make_constant(fused)
        _prove(model, fused)
    return fused


def check_form(model: nn.Layer, verb: str) -> None:
    """Refuse a network in the trained form or in training mode; `verb` is what shall be done with it."""
    kind, layers = type(model).__name__, model.sublayers(include_self=True)
    if any(isinstance(layer, LearnedConnections) for layer in layers):
        raise ValueError(f"this {kind} is in the trained form: {verb} paddle_dense.condense(model)")
    if any(layer.training for layer in layers):
        raise ValueError(f"this {kind} is in training mode: call model.eval() first")


def _make_constant(fused: nn.Layer) -> None:
    """Nothing of it learns, not even statistics, should it be put in training mode."""
    for parameter in fused.parameters():
        parameter.stop_gradient = True
    for layer in fused.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._use_global_stats = True
    fused.eval()


def _prove(model: nn.Layer, fused: nn.Layer) -> None:
    """RuntimeError if the outputs for random images differ by more than rounding, or are no numbers.

    On the CPU, where float32 is float32.
    """
    with on_cpu():
        worst, warning = _judged(brought_to_cpu(model), brought_to_cpu(fused))
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"the fused {type(model).__name__} differs by {worst:.1e} of the outputs' scale (allowed: {TOLERANCE:.0e}) "
            f"on random images: check the weights for extreme or undefined numbers"
        )
    if warning:
        warnings.warn(warning, UserWarning, stacklevel=3)


def _judged(model: nn.Layer, fused: nn.Layer) -> tuple[float, str | None]:
    """How far the fused network's answers to random images are from the network's, and what is to be said of it."""
    size = min(model.input_size, 64)  # no rule looks at the size
    images = np.random.default_rng(0).standard_normal([2, model.config["in_channels"], size, size])

    def answers(network: nn.Layer) -> Answers:
        return [as_arrays(network(paddle.to_tensor(images, dtype=network.parameters()[0].dtype)))]

    def exactly() -> tuple[Answers, Answers]:
        with double_precision():
            exact = paddle_in_double_precision(model)
            return answers(rewrite(copy.deepcopy(exact), RULES[fused.fused_for])), answers(exact)

    return judge(answers(fused), answers(model), exactly)
