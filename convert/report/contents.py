"""What stands in a report, in order: the same for HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from convert.report.plots import Bars, Dots, bars, dots
from convert.result import OWN_TWIN, Result

if TYPE_CHECKING:
    from convert.parity.forward import LayerPrecision, Parity
    from convert.parity.training import StepParity, TrainingParity
    from convert.report.weights import Weights

LARGEST = 8  # layers that are named without unfolding the list


@dataclass(frozen=True)
class Label:
    """Words of the report itself, in Chinese and in English."""

    zh: str
    en: str


Cell = Union[Label, str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; without columns, each row is a label and its value."""

    title: Label
    rows: tuple[tuple[Cell, ...], ...]
    columns: tuple[Label, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """A heading with a plot, or several, and tables."""

    title: Label
    tables: tuple[Table, ...]
    note: Label | None = None
    dots: Dots | None = None
    bars: tuple[Bars, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One file; its verdict is a key of `VERDICTS`, and `said` what that is called."""

    anchor: str
    name: str
    verdict: str
    said: Label
    error: str | None
    warnings: tuple[str, ...]
    parts: tuple[Part, ...]


VERDICTS = {
    "good": Label("一致", "verified"),
    "assumed": Label("一致，但含假设", "verified with assumptions"),
    "unchecked": Label("未验证", "not checked"),
    "bad": Label("失败", "failed"),
}


def entry(result: Result, number: int) -> Entry:
    """What a report says of one file."""
    verdict = _verdict(result)
    parts = [_facts(result)]
    if result.parity:
        parts.append(_parity(result.parity, result.atol))
    if result.layers:
        parts.append(_layers(result.layers, result.atol))
    if result.training:
        parts.append(_training(result.training))
    if result.weights:
        parts.append(_weights(result.weights))
    return Entry(
        f"file-{number + 1}",
        Path(result.input).name,
        verdict,
        VERDICTS[verdict],
        result.error,
        tuple(result.warnings),
        tuple(parts),
    )


def _verdict(result: Result) -> str:
    if result.error:
        return "bad"
    if not result.verified:
        return "unchecked"
    return "assumed" if result.assumed else "good"


def summary(entries: Sequence[Entry], results: Sequence[Result]) -> Table:
    """One line for each file."""
    rows = (
        (entry.name, entry.said, result.arch or "", scientific(result.max_rel_diff))
        for entry, result in zip(entries, results)
    )
    columns = (Label("文件", "file"), Label("结果", "result"), Label("网络", "network"), Label("相对差", "difference"))
    return Table(Label("概要", "Summary"), tuple(rows), columns)


def scientific(number: float | None) -> str:
    """A figure as tables show it: three digits, and nothing for what is not known."""
    return "" if number is None else f"{number:.2e}" if math.isfinite(number) else str(number)


def short(number: float | None) -> str:
    """A weight as tables show it."""
    return "" if number is None else f"{number:.3g}"


def _facts(result: Result) -> Part:
    config = ", ".join(f"{key}={_value(value)}" for key, value in result.config.items())
    assumed = ", ".join(f"{key}={_value(value)}" for key, value in result.assumed.items())
    against = {OWN_TWIN: Label("本项目的同名 PyTorch 网络", "this package's network of the same name in PyTorch")}
    facts: dict[Label, Cell | None] = {
        Label("输入", "input"): result.input,
        Label("输出", "output"): result.output,
        Label("网络", "network"): result.arch,
        Label("参数量", "parameters"): f"{result.params:,}" if result.params is not None else None,
        Label("构造参数", "arguments"): config,
        Label("假设", "assumed"): assumed,
        Label("对照网络", "checked against"): against.get(result.checked_against or "", result.checked_against),
        Label("权重位置", "tensors under"): result.container,
        Label("SHA-256", "of the input"): result.sha256,
        Label("用时", "time"): f"{result.seconds:.1f} s" if result.seconds is not None else None,
    }
    rows = tuple((label, value) for label, value in facts.items() if value)
    return Part(Label("来源与结果", "Source and result"), (Table(Label("", ""), rows),))


def _value(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _parity(figures: Parity, atol: float | None) -> Part:
    rows = (
        (Label("最大绝对差", "largest difference of a logit"), scientific(figures.max_abs_diff)),
        (Label("最大相对差", "relative to the logits' scale"), scientific(figures.max_rel_diff)),
        (Label("允许的相对差", "allowed"), scientific(atol)),
        (Label("首选类别相同", "same first choice"), f"{figures.top1_agreement:.2%}"),
        (Label("比较的图片数", "images compared"), str(figures.inputs)),
    )
    return Part(Label("两个框架的一致性", "PyTorch against Paddle"), (Table(Label("", ""), rows),))


def _layers(layers: Sequence[LayerPrecision], atol: float | None) -> Part:
    columns = (Label("层", "layer"), Label("单精度", "float32"), Label("双精度", "float64"))

    def rows(chosen: Iterable[LayerPrecision]) -> tuple[tuple[str, ...], ...]:
        return tuple((layer.name, scientific(layer.float32), scientific(layer.float64)) for layer in chosen)

    largest = sorted(layers, key=lambda layer: -layer.float32 if math.isfinite(layer.float32) else -math.inf)
    tables = (
        Table(Label("差异最大的层", "largest in float32"), rows(largest[:LARGEST]), columns),
        Table(Label(f"全部 {len(layers)} 层", "every layer, in the order of computation"), rows(layers), columns, True),
    )
    return Part(
        Label("逐层差异", "Layer by layer"),
        tables,
        Label(
            "每层输出的最大差异，相对于该层输出的幅度；双精度下只有权重错误才会留下差异。",
            "Largest difference of each layer's output, relative to its scale. In float64 only wrong weights differ.",
        ),
        dots(layers, atol),
    )


def _training(training: TrainingParity) -> Part:
    columns = (
        Label("步", "step"),
        Label("PyTorch 损失", "loss"),
        Label("Paddle 损失", "loss"),
        Label("梯度差", "gradients apart"),
        Label("更新差", "updates apart"),
    )

    def row(step: StepParity) -> tuple[str, ...]:
        losses = (f"{loss:.6f}" for loss in (step.torch_loss, step.paddle_loss))
        return (str(step.step), *losses, scientific(step.gradient.size), scientific(step.update.size))

    both = ((Label("单精度", "float32"), training.steps), (Label("双精度", "float64"), training.exact))
    tables = (Table(title, tuple(map(row, steps)), columns) for title, steps in both if steps)
    return Part(Label("训练", "Training"), tuple(tables))


def _weights(weights: Weights) -> Part:
    moments = (Label("最小", "min"), Label("最大", "max"), Label("均值", "mean"), Label("标准差", "std"))
    by_kind = tuple(
        (h.kind, f"{sum(h.counts):,}", *map(short, (h.min, h.max, h.mean, h.std))) for h in weights.histograms
    )
    by_tensor = tuple(
        (t.name, "x".join(map(str, t.shape)) or "1", t.dtype, *map(short, (t.min, t.max, t.mean, t.std)))
        for t in weights.tensors
    )
    nonfinite = sum(t.nonfinite for t in weights.tensors)
    broken = Label(f"另有 {nonfinite:,} 个 NaN 或无穷。", f"{nonfinite:,} more are NaN or infinite.")
    return Part(
        Label("权重分布", "Distribution of the weights"),
        (
            Table(Label("按种类", "by kind"), by_kind, (Label("种类", "kind"), Label("个数", "numbers"), *moments)),
            Table(
                Label(f"全部 {len(by_tensor)} 个张量", "every tensor"),
                by_tensor,
                (Label("张量", "tensor"), Label("形状", "shape"), Label("类型", "dtype"), *moments),
                folded=True,
            ),
        ),
        Label(
            "纵轴为个数的对数，虚线为零。" + (broken.zh if nonfinite else ""),
            "Heights are logarithms of counts, the dashed line is zero. " + (broken.en if nonfinite else ""),
        ),
        bars=tuple(bars(histogram) for histogram in weights.histograms),
    )
