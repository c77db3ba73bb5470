"""Write the tables of the documents from what the project itself says: ``python docs/tables.py``.

They stand between ``<!-- table: NAME -->`` and ``<!-- end -->``. Continuous integration compares them with what this
writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Callable

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

COMMANDS = {
    "python -m convert.torch2paddle": "convert.torch2paddle",
    "python -m convert.paddle2torch": "convert.paddle2torch",
    "python -m convert.parity": "convert.parity.__main__",
    "python -m paddle_dense info": "paddle_dense.commands.info",
    "python -m paddle_dense list": "paddle_dense.commands.list",
    "python -m paddle_dense pull": "paddle_dense.commands.pull",
    "python -m paddle_dense.training": "paddle_dense.commands.train",
    "python -m paddle_dense.training plot": "paddle_dense.commands.plot",
    "python -m paddle_dense predict": "paddle_dense.commands.predict",
    "python -m paddle_dense evaluate": "paddle_dense.commands.evaluate",
    "python -m paddle_dense.deploy": "paddle_dense.commands.deploy",
    "python -m paddle_dense app": "paddle_dense.commands.app",
    "python -m paddle_dense completion": "paddle_dense.commands.completion",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the columns of these numbers are set to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def commands() -> str:
    """What every command does, and its arguments."""
    return "\n\n".join(f"## {name}\n\n{_command(import_module(module).parser())}" for name, module in COMMANDS.items())


def _command(parser: argparse.ArgumentParser) -> str:
    rows = [(_call(action), _escaped(_help(action))) for action in parser._actions if action.dest != "help"]
    return f"{parser.description}\n\n{table(('argument', 'meaning'), rows)}"


def _call(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else None)
    if not action.option_strings:
        return f"`{value or action.dest}`" + (" ..." if action.nargs == "+" else "")
    takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    call = f"`{', '.join(action.option_strings)}{takes}`"
    # A bar would end the cell on GitHub, and its escape would show in the site.
    return f"<code>{call[1:-1].replace('|', '&#124;')}</code>" if "|" in call else call


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default}


def _escaped(text: str) -> str:
    return re.sub(r"([|<>*])", r"\\\1", text)


# The networks by their papers, in the order of README.md.
PAPERS = {
    "CondenseNet V2": ("CondenseNetV2",),
    "CondenseNet": ("CondenseNet",),
    "DenseNet": ("DenseNet",),
    "CSPNet": ("CSPDenseNet", "CSPNet"),
    "CondConv": ("EfficientNetCondConv",),
}


def presets() -> str:
    """Every preset, paper by paper: size, image, published figures."""
    from paddle_dense.commands.list import catalogue

    rows = [
        (
            f"`{entry['name']}`",
            f"{entry['params']:,}",
            f"{entry['macs'] / 1e6:,.1f} M",
            str(entry["input_size"]),
            entry["note"],
        )
        for entry in catalogue()
    ]
    return _by_paper(("name", "parameters", "MACs", "pixels", "published"), rows, right=(1, 2, 3))


def checkpoints() -> str:
    """Every released checkpoint, paper by paper: file, published errors, source, and what else is to be known of it."""
    entries = json.loads((DOCS.parent / "weights" / "manifest.json").read_text(encoding="utf-8"))["entries"]
    rows = [
        (
            f"`{entry['name']}`",
            {"pytorch": "PyTorch", "paddle": "Paddle"}[entry["framework"]],
            _link(entry["file"], entry["url"] or entry["page"]),
            _percent(entry["top1_error"]),
            _percent(entry["top5_error"]),
            f"{_source(entry['source'])}: {entry['note']}",
        )
        for entry in entries
    ]
    return _by_paper(("name", "for", "file", "top-1 error", "top-5 error", "source"), rows, right=(3, 4))


def _link(text: str, address: str | None) -> str:
    """What ships with the package has no address."""
    return f"[{text}]({address})" if address else f"`{text}`"


def _source(source: str) -> str:
    return _link("/".join(source.split("/")[3:]), source) if source.startswith("https://") else _link(source, None)


def _by_paper(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """A table for each paper, of the rows whose first cell is one of its presets."""
    from paddle_dense.commands.list import catalogue

    family = {f"`{entry['name']}`": entry["family"] for entry in catalogue()}
    return "\n\n".join(
        f"### {paper}\n\n{table(columns, [row for row in rows if family[row[0]] in networks], right)}"
        for paper, networks in PAPERS.items()
    )


def spellings() -> str:
    """Whose names of tensors are known for each network, and what they call those by which it is found."""
    from paddle_dense.files.spelling import Spelling
    from paddle_dense.models.network import networks

    rows = [
        (f"`{network.__name__}`", spelling.source, ", ".join(f"`{spelling.theirs(name)}`" for name in network.anchors))
        for network in networks()
        for spelling in (Spelling("this package and the original code"), *network.spellings)
    ]
    return table(("network", "names of", "found by one of"), rows)


def layouts() -> str:
    """What the tensors of each layer of Paddle are made of; layers without a row differ in nothing."""
    from paddle_dense.files.layout import LAYOUTS

    kinds: dict[tuple, list[str]] = {}
    for kind, rows in LAYOUTS.items():
        kinds.setdefault(rows, []).append(f"`{kind}`")
    rows = [
        (
            ", ".join(kinds[of]) if number == 0 else "",
            f"`{row.name}`",
            " and ".join(f"`{name}`" for name in row.theirs),
            row.formula.text,
        )
        for of in kinds
        for number, row in enumerate(of)
    ]
    return table(("Paddle's layer", "its tensor", "PyTorch's", "how"), rows)


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:g}"


# The headings of the tables, and the cells that are words.
_CHINESE = {
    "network": "网络",
    "parameters": "参数量",
    "trained": "训练形态",
    "condensed": "精简形态",
    "same answer": "答案相同",
    "largest difference of logits": "logits 最大差异",
    "minutes": "分钟",
    "milliseconds": "毫秒",
    "the best against the best peer": "本项目最快者相对其他方案最快者",
    "the best in Paddle against ppim, `paddle.vision`": "Paddle 中最快者相对 ppim、`paddle.vision`",
    "file": "文件",
    "read": "读取",
    "import paddle": "导入 Paddle",
    "unchecked": "不检查",
    "memory": "内存",
    "of which Paddle": "其中 Paddle",
    "checked": "检查",
    "ratio": "比值",
    "published": "公布值",
    "MACs": "乘加次数",
    "name": "名称",
    "pixels": "图像边长",
    "for": "框架",
    "top-1 error": "top-1 错误率",
    "top-5 error": "top-5 错误率",
    "source": "来源",
    "argument": "参数",
    "meaning": "说明",
}


def measured(section: str) -> str:
    """The tables of a marked section of README.md, their words in Chinese."""
    text = README.read_text(encoding="utf-8")
    text = text.partition(f"[start:{section}] -->")[2].partition(f"[end:{section}] -->")[0]
    return _in_chinese("\n".join(line for line in text.splitlines() if line.startswith("|")))


def in_chinese(make: Callable[[], str]) -> Callable[[], str]:
    """The same tables, with the words of their cells in Chinese."""
    return lambda: _in_chinese(make())


def _in_chinese(text: str) -> str:
    def row(line: str) -> str:
        return f"| {' | '.join(_CHINESE.get(cell, cell) for cell in line[2:-2].split(' | '))} |"

    return "\n".join(row(line) if line.startswith("| ") else line for line in text.splitlines())


README = DOCS.parent / "README.md"
README_CN = DOCS.parent / "README_cn.md"
MEASURED = ("latency", "conversion", "training", "digits", "sizes")
TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    DOCS / "reference" / "commands.md": {"commands": commands},
    DOCS / "reference" / "commands.zh.md": {"commands": in_chinese(commands)},
    DOCS / "reference" / "converter.md": {"spellings": spellings, "layouts": layouts},
    DOCS / "models.md": {"presets": presets, "checkpoints": checkpoints},
    DOCS / "models.zh.md": {"presets": in_chinese(presets), "checkpoints": in_chinese(checkpoints)},
    README_CN: {section: partial(measured, section) for section in MEASURED},
}


def written(path: Path) -> str:
    """A document with its tables written again."""
    text = path.read_text(encoding="utf-8")
    for name, make in TABLES[path].items():
        begin = f"<!-- table: {name} -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{make()}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


if __name__ == "__main__":
    for document in TABLES:
        document.write_text(written(document), encoding="utf-8")
