"""Weights are read in one way: nothing in the project unpickles with what runs pickles."""

from __future__ import annotations

import ast
import functools
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = (
    "read Paddle's and safetensors files with paddle_dense.files.weights.read_weights, PyTorch's with "
    "paddle_dense.files.torch_file.read_checkpoint, any other pickle with paddle_dense.files.unpickle.unpickle"
)
RUNS_PICKLES = {
    *(f"{module}.{name}" for module in ("pickle", "_pickle", "dill", "cloudpickle") for name in ("load", "loads")),
    *("pickle.Unpickler", "_pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("torch.load", "torch.serialization.load", "torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url"),
    *("paddle.load", "paddle.framework.load", "paddle.framework.io.load", "paddle.hub.load_state_dict_from_url"),
    *("pandas.read_pickle", "timm.models.load_checkpoint", "timm.models.load_state_dict"),
    *("safetensors.safe_open", *(f"safetensors.{kind}.load_file" for kind in ("numpy", "torch", "paddle"))),
}
NUMPY = {"numpy.load", "numpy.lib.format.read_array"}  # with allow_pickle
SPOKEN_OF = re.compile(r"import.*\b(load\w*|Unpickler|safe_open|read_\w*|pickle|shelve)\b", re.DOTALL)

# What compares with the frameworks themselves.
ALLOWED = {
    "fuzz/mutations.py": {"pickle.loads", "pickle.Unpickler", "safetensors.numpy.load_file", "torch.load"},
    "tests/test_unpickle.py": {"pickle.loads"},  # what the plain pickle makes of a file, and that attacks are real
    "tests/test_weights.py": {"paddle.load", "safetensors.numpy.load_file"},  # that others read what is written
    "tests/test_checkpoints.py": {"paddle.load"},
    "tests/test_compact.py": {"paddle.load", "safetensors.numpy.load_file"},  # what others find in the file
    "tests/convert/test_checkpoint.py": {"torch.load"},  # that both read the same
    "tests/convert/test_condensenet_conversion.py": {"paddle.load"},
    "tests/convert/test_torch2paddle.py": {"paddle.load", "torch.load"},
    "tests/convert/test_paddle2torch.py": {"torch.load", "safetensors.safe_open"},
    "tests/convert/test_report.py": {"torch.load"},
    "tests/convert/test_own_network.py": {"paddle.load", "torch.load"},
    "tests/training/test_data.py": {"pickle.loads"},
    "tests/security/test_fuzz.py": {"pickle.loads"},
    "tests/security/test_wrong_weights.py": {"torch.load"},
    "tests/security/test_beside_torch_load.py": {"torch.load"},  # that both read the same
    "tests/security/test_hostile_files.py": {"pickle.load", "pickle.loads", "paddle.load", "torch.load", "numpy.load"},
}


def forbidden(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a program that runs pickles, also in programs that it holds as text."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    allowing = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and _allows_pickle(call)}
    for node in ast.walk(tree):
        name = _dotted(node, aliases)
        if name in RUNS_PICKLES or (name in NUMPY and id(node) in allowing):
            yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module and any(alias.name == "*" for alias in node.names):
            if any(name.startswith(f"{node.module}.") for name in RUNS_PICKLES):
                yield node.lineno, f"{node.module}.*"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and SPOKEN_OF.search(node.value):
            try:
                inner = list(forbidden(textwrap.dedent(node.value)))
            except (SyntaxError, ValueError):
                continue
            yield from ((node.lineno + line - 1, name) for line, name in inner)


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What names stand for, as far as importing them says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module = _imported(node.value)
            if module:
                yield node.targets[0].id, module


def _imported(node: ast.AST) -> str | None:
    """The module that a call imports: pytest.importorskip("torch")."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    called = getattr(node.func, "attr", getattr(node.func, "id", None))
    return node.args[0].value if called in ("importorskip", "import_module", "__import__", "peer") else None


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, aliases) or _imported(node.value)
        return f"{owner}.{node.attr}" if owner else None
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr" and len(node.args) > 1:
        owner, name = _dotted(node.args[0], aliases), getattr(node.args[1], "value", None)
        return f"{owner}.{name}" if owner else None
    return None


def _allows_pickle(call: ast.Call) -> bool:
    entries = {keyword.arg: keyword.value for keyword in call.keywords}
    return None in entries or len(call.args) > 2 or getattr(entries.get("allow_pickle"), "value", False) is not False


@functools.cache
def found_in_project() -> dict[str, list[tuple[int, str]]]:
    """What is forbidden in every Python file and in every notebook's cells, by path."""
    return {path: list(forbidden(source)) for path, source in programs() if SPOKEN_OF.search(source)}


def programs() -> Iterator[tuple[str, str]]:
    for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.ipynb")]):
        relative = path.relative_to(ROOT)
        if any(part.startswith(".") or part in ("build", "dist") for part in relative.parts) or path == Path(__file__):
            continue
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
            lines = "\n".join("".join(cell["source"]) for cell in cells).split("\n")
            source = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
        yield relative.as_posix(), source


def test_nothing_unpickles_with_what_runs_pickles():
    wrong = [
        f"{path}:{line} uses {name}: {INSTEAD}"
        for path, found in found_in_project().items()
        for line, name in found
        if name not in ALLOWED.get(path, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_allowed_for_nothing():
    for path, names in ALLOWED.items():
        assert path.startswith(("tests/", "fuzz/"))
        assert names <= {name for _, name in found_in_project()[path]}, path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\nread = p.load",
        "from pickle import loads\nloads(b'')",
        "from pickle import *",
        "import torch\nx = [torch.load(path) for path in paths]",
        "import torch as T\nT.serialization.load('x')",
        "from paddle import load as fetch\nfetch('x')",
        "import paddle.framework\npaddle.load('x')",
        "def test():\n    torch = pytest.importorskip('torch')\n    torch.load('x')",
        "import importlib\nimportlib.import_module('torch').load('x')",
        "import torch\ngetattr(torch, 'load')('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None, True)",
        "import numpy as np\nnp.load('x', **options)",
        "import pickle\nclass Mine(pickle.Unpickler): pass",
        "run('import torch; torch.load(path)')",
    ],
)
def test_what_runs_pickles_is_found(source):
    assert list(forbidden(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.dumps(1)",
        "import numpy as np\nnp.load('x')\nnp.load('x', allow_pickle=False)",
        "import json\njson.loads('1')",
        '"""What torch.load(path) reads."""\nimport torch\ntorch.save(1, 2)',
        "from paddle_dense.files.weights import read_weights\nread_weights('x')",
    ],
)
def test_what_does_not_is_not(source):
    assert not list(forbidden(source))
