"""What README and the documents show runs as it stands there: every block of Python, and every command."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.evaluation import evaluation
from paddle_dense.files.layout import to_torch
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.models import network
from tests.peers import peer

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DATA = Path(__file__).resolve().parent / "data"
# A translation has the same blocks, comments aside, so it is enough to run the original's.
TRANSLATIONS = {
    ROOT / "README_cn.md": ROOT / "README.md",
    **{path: path.with_suffix("").with_suffix(".md") for path in sorted(DOCS.rglob("*.zh.md"))},
}
ORIGINALS = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if path not in TRANSLATIONS)]
SHELL = ("", "bash")  # the README's blocks of commands name no language
LANGUAGES = (*SHELL, "python", "yaml")


class Block(NamedTuple):
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def python(document: Path) -> list[str]:
    return [block.text for block in blocks(document) if block.language == "python"]


def commands(document: Path) -> list[str]:
    """The commands of a document's blocks."""
    return [command for block in blocks(document) if block.language in SHELL for command in typed(block)]


def typed(block: Block) -> list[str]:
    """The commands of a block, without comments; of a transcript, the lines after ``$``."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [line[2:] for line in lines if line.startswith("$ ")] or lines
    return [shlex.join(words) for words in (shlex.split(line, comments=True) for line in lines) if words]


def transcripts(document: Path) -> list[str]:
    return [block.text for block in blocks(document) if block.language in SHELL and block.text.startswith("$ ")]


def test_every_block_is_of_a_kind_that_is_tested():
    for document in [*ORIGINALS, *TRANSLATIONS]:
        found = blocks(document)
        assert {block.language for block in found} <= set(LANGUAGES), document
        assert len(re.findall("```|~~~", document.read_text(encoding="utf-8"))) == 2 * len(found), document


@pytest.mark.parametrize("translation", TRANSLATIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_translations_show_the_same(translation):
    original = TRANSLATIONS[translation]
    assert commands(translation) == commands(original)
    assert [ast.dump(ast.parse(code)) for code in python(translation)] == [
        ast.dump(ast.parse(code)) for code in python(original)
    ]
    assert transcripts(translation) == transcripts(original)
    headings = [re.findall(r"^(#+) ", strip_blocks(path), re.MULTILINE) for path in (translation, original)]
    assert headings[0] == headings[1]


def strip_blocks(document: Path) -> str:
    """The document without its fenced blocks, whose comments look like headings."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "README_cn.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    """Those of the site are checked when it is built."""
    for link in re.findall(r"\]\(([^)#\s]+)", strip_blocks(ROOT / name)):
        assert link.startswith("https://") or (ROOT / link).exists(), link


# The files that the documents take for granted. The digits' small network stands in for the user's.

DIGITS = ROOT / "weights" / "cdnv2_digits.pth"
PHOTOGRAPHS = ROOT / "weights" / "cdnv2_cifar10.pth"
SHIP = ROOT / "weights" / "ship.png"


def _images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, [40, 48, 3], "uint8")
        Image.fromarray(pixels).save(folder / f"{number}.png")


def _image(path: Path) -> None:
    from PIL import Image

    Image.open(SHIP).convert("RGB").save(path)


def _photographs_in_paddle(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".pdparams", ".json"):
        shutil.copy(PHOTOGRAPHS.with_suffix(suffix), path.with_suffix(suffix))


def _digits_in_paddle(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".pdparams", ".json"):
        shutil.copy(DIGITS.with_suffix(suffix), path.with_suffix(suffix))


def _written(path: Path, state: dict[str, np.ndarray]) -> None:
    from paddle_dense.files.torch_archive import write_torch

    with open(path, "wb") as file:
        write_torch(state, file)


def _renamed(path: Path) -> None:
    state = read_checkpoint(DIGITS).state
    _written(path, {name.replace("features.", "encoder."): value for name, value in state.items()})


def _with_a_loss(path: Path) -> None:
    state = {f"net.{name}": value for name, value in read_checkpoint(DIGITS).state.items()}
    _written(path, {**state, "centers.weight": np.ones([10, 4], "float32")})


def _two_networks(path: Path) -> None:
    state = read_checkpoint(DIGITS).state
    _written(path, {f"{part}.{name}": value for part in ("student", "teacher") for name, value in state.items()})


def _two_networks_in_paddle(path: Path) -> None:
    state = read_weights(DIGITS.with_suffix(".pdparams"))
    student = {f"student.{name.replace('features.', 'encoder.')}": value for name, value in state.items()}
    teacher = {f"teacher.{name}": value for name, value in state.items()}
    write_weights({**student, "student.centers.weight": np.ones([10, 4], "float32"), **teacher}, path)


def _best_and_last(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes what torch.save writes")
    best = {name: torch.from_numpy(np.array(value)) for name, value in read_checkpoint(DIGITS).state.items()}
    last = {name: value + 1 if name.endswith("running_mean") else value.clone() for name, value in best.items()}
    torch.save({"model": last, "best_model": best, "epoch": 3}, path)


def _biased_densenet(path: Path) -> None:
    model = pd_.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10)
    state = to_torch({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    _written(path, {**state, "features.conv0.bias": np.linspace(-1, 1, 8, dtype="float32")})


def _safetensors(path: Path) -> None:
    write_weights(read_checkpoint(DIGITS).state, path, {"format": "pt"})


def _shown_module(path: Path) -> None:
    """A module of the documents, which says in its first line what it is called."""
    name = f"{path.name.partition(':')[0]}.py"
    code = next(code for code in python(DOCS / "howto" / "own-fork.md") if code.startswith(f"# {name}"))
    path.with_name(name).write_text(code, encoding="utf-8")


def _of_my_torch(path: Path) -> None:
    """What its network has learned, or nearly: weights and statistics that differ from those of a new one."""
    torch = pytest.importorskip("torch", reason="trains a PyTorch network: pip install torch")
    _shown_module(path.with_name("my_torch:build"))
    from my_torch import build

    network = build()
    network(torch.randn(4, 3, 32, 32) * 2 + 1)
    torch.save({"model": network.state_dict(), "epoch": 3}, path)


def _map(path: Path) -> None:
    pairs = [("fc.weight", "head.weight", "[16, 10]"), ("fc.bias", "head.bias", "[10]")]
    rows = [f'{ours},{theirs},"{shape}",by hand' for ours, theirs, shape in pairs]
    path.write_text("\n".join(["paddle,pytorch,shape,basis", *rows]), encoding="utf-8")


FILES: dict[str, Callable[[Path], Any]] = {
    "cdnv2_a.pth": lambda path: shutil.copy(DIGITS, path),
    "a.pth": lambda path: shutil.copy(DIGITS, path),
    "b.pth.tar": lambda path: shutil.copy(DATA / "cdnv2_tiny_trained_unconverted.pth.tar", path),
    "model_best.pth.tar": lambda path: shutil.copy(DATA / "cdnv2_tiny_ema.pth.tar", path),
    "model.safetensors": _safetensors,
    "my_fork.pth": lambda path: shutil.copy(DIGITS, path),
    "my_renamed_fork.pth": _renamed,
    "my_metric_fork.pth": _with_a_loss,
    "my_two_networks.pth": _two_networks,
    "my_two_networks.pdparams": _two_networks_in_paddle,
    "my_run.pth": _best_and_last,
    "my_biased_densenet.pth": _biased_densenet,
    "my_code:build": _shown_module,
    "my_torch:build": _shown_module,
    "my_paddle:build": _shown_module,
    "my.pth": _of_my_torch,
    "map.csv": _map,
    "photos/": _images,
    "cdnv2_a.pdparams": _digits_in_paddle,
    "my_digits.pdparams": _digits_in_paddle,
    "runs/cdnv2_a/model.pdparams": _digits_in_paddle,
    "runs/cdnv2_cifar10/model.pdparams": _photographs_in_paddle,
    "new.jpg": _image,
}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder to work in, as if it were a checkout: with what ships with the packages."""
    for name in ("weights", "hubconf.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("my_code", "my_torch", "my_paddle"):
        sys.modules.pop(module, None)


# Python

NEEDS = {
    "README.md": ["sklearn"],
    "docs/tutorial.md": ["sklearn"],
    "docs/from-timm.md": ["timm"],
    "docs/from-ppim.md": ["ppim"],
}
WITH_PYTHON = [path for path in ORIGINALS if python(path)]
LONG = {
    "docs/tutorial.md",
    "docs/howto/another-head.md",
    "docs/howto/odd-inputs.md",
    "docs/howto/own-fork.md",
    "docs/from-timm.md",
}


def _five_digits(shown: dict[str, Any], network: Any) -> float:
    digits = shown["digits"]
    few = digits.test_labels < 5
    with evaluation(network):
        answers = network(paddle.to_tensor(digits.test_images[few])).argmax(1).numpy()
    return float((answers == digits.test_labels[few]).mean())


def _readme(shown: dict[str, Any]) -> None:
    assert shown["backbone"].features_only
    assert not shown["trained"].config["condensed"]
    assert shown["condensed"].config["condensed"]
    assert _five_digits(shown, shown["model"].network) >= 0.99
    assert {path.suffix for path in Path().glob("digits.*")} >= {".pdiparams"}
    assert (shown["network"].arch, shown["network"].num_classes) == ("cdnv2_a", 10)


def _tutorial(shown: dict[str, Any]) -> None:
    assert shown["accuracy"] > 0.99
    assert _five_digits(shown, shown["trainer"].network) >= 0.99
    assert shown["condensed"].config["condensed"]
    assert all(path.exists() for path in shown["files"])
    assert pd_.load_model("five_digits.pdparams").num_classes == 5


def _own_fork(shown: dict[str, Any]) -> None:
    assert shown["converted"].result.verified
    assert shown["converted"].result.max_rel_diff < 1e-6
    assert "differ" in shown["compared"].difference
    assert shown["result"].verified == (util.find_spec("torch") is not None)
    assert Path("out/my_fork.pdparams").exists()
    wanted = read_weights(DIGITS.with_suffix(".pdparams"))
    converted = read_weights("out/my_renamed_fork.pdparams")
    for state in (converted, {name: tensor.numpy() for name, tensor in shown["model"].state_dict().items()}):
        assert state.keys() == wanted.keys()
        assert all((state[name] == wanted[name]).all() for name in wanted)


def _add_a_model(shown: dict[str, Any]) -> None:
    assert "cdnv2_pocket" in pd_.list_models("cdnv2*")
    assert shown["found"].arch == "TwoConvolutions"
    assert shown["found"].config == {"width": 4, "num_classes": 3, "in_channels": 3}
    assert shown["again"].config == shown["model"].config


def _another_head(shown: dict[str, Any]) -> None:
    assert list(shown["vector"].shape) == [2, 828]
    assert (list(shown["kind"].shape), list(shown["age"].shape)) == ([2, 5], [2, 1])
    assert all(parameter.stop_gradient for parameter in shown["encoder"].parameters())


def _odd_inputs(shown: dict[str, Any]) -> None:
    assert shown["missing"] == ["features.init_conv.weight"]
    assert shown["same"] < 1e-4
    assert list(shown["image"].size) == [400, 300]


def _detection(shown: dict[str, Any]) -> None:
    assert {tuple(level.shape[:2]) for level in shown["equal_widths"]} == {(1, 256)}
    assert len(shown["levels"]) == 3


def _photographs(shown: dict[str, Any]) -> None:
    assert shown["answers"][0][0][0] == "ship"


def _small(name: str, most: float) -> Callable[[dict[str, Any]], None]:
    def check(shown: dict[str, Any]) -> None:
        assert shown[name] < most

    return check


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": _readme,
    "docs/tutorial.md": _tutorial,
    "docs/howto/own-fork.md": _own_fork,
    "docs/howto/add-a-model.md": _add_a_model,
    "docs/howto/another-head.md": _another_head,
    "docs/howto/odd-inputs.md": _odd_inputs,
    "docs/howto/detection-backbone.md": _detection,
    "docs/exactness.md": _small("difference", 1e-5),
    "docs/from-timm.md": _small("difference", 1e-4),
    "docs/from-ppim.md": _small("difference", 1e-4),
    "docs/models.md": lambda shown: None,
    "docs/howto/photographs.md": _photographs,
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, id=_name(path), marks=[pytest.mark.slow] * (_name(path) in LONG)) for path in WITH_PYTHON],
)
@pytest.mark.filterwarnings("ignore:.*does not have the model's .* classes:UserWarning")
def test_python_blocks(document, workplace, monkeypatch):
    """All blocks of a document, one after the other, and what they leave behind."""
    for package in NEEDS.get(_name(document), []):
        peer(package) if package == "timm" else pytest.importorskip(package)
    for name in ("_PRESETS", "_NETWORKS"):
        monkeypatch.setattr(network, name, dict(getattr(network, name)))
    code = python(document)
    for name, make in FILES.items():
        if f'"{name}"' in "".join(code):
            make(workplace / name)
    for block in code:
        if module := re.match(r"# (\w+\.py)\n", block):
            (workplace / module[1]).write_text(block, encoding="utf-8")
    # Where the documents build a cdnv2_a by its name, the file must be one.
    pd_.save_weights(pd_.cdnv2_a(), workplace / "cdnv2_a.pdparams")
    shown: dict[str, Any] = {"__name__": "shown"}
    for block in code:
        exec(compile(block, _name(document), "exec"), shown)
    CHECKS[_name(document)](shown)


# Commands

SCRIPTS = {
    "torch2paddle": ["convert.torch2paddle"],
    "paddle2torch": ["convert.paddle2torch"],
    "paddle-dense": ["paddle_dense"],
}
# Commands that are not run here but parsed by their own parser, and why.
PARSED = {
    r"(\.training|dense train) photos/": "learns from the user's images; tests/training/test_command.py does",
    r"paddle\.distributed\.launch": "needs several devices; tests/training/test_devices.py runs it",
    r"paddle_dense\.training --model cdnv2_a": "learns from the user's images for days",
    r"paddle_dense\.training --resume": "needs a run that was stopped; tests/training/test_resume.py has one",
    r"paddle_dense\.training --pretrained": "learns from the user's images; tests/training/test_command.py does",
    r"paddle_dense\.adapters": "needs clones of the other packages; tests/adapters runs it",
    r"^paddle-dense app": "serves until it is stopped; tests/test_app.py stops it",
    r"^pip install": "the extras are looked up in setup.py",
    r"^make": "the targets are looked up in the Makefile",
    r"(benchmarks|fuzz)\.": "takes minutes to hours",
}
NEEDED = {
    r"--format (onnx|both)": "paddle2onnx",
    r"--report": "matplotlib",
    r"--report \S+\.html": "jinja2",
    r"completion bash": "shtab",
    r"convert\.parity|--reference|--network": "torch",
    r"--data digits": "sklearn",
    r"training plot": "matplotlib",
}
# Seconds; everything else of the kind has a quick test where it is made.
SLOW = r"^python3 -m venv|--data digits|--benchmark|deploy|parity|--reference|--network|--images|b\.pth|best|--allow"


def _every_command() -> Iterator[Any]:
    where: dict[str, str] = {}
    for document in ORIGINALS:
        for command in commands(document):
            where.setdefault(command, _name(document))
    for command, document in where.items():
        yield pytest.param(
            command, id=f"{document}: {command}", marks=[pytest.mark.slow] * bool(re.search(SLOW, command))
        )


COMMANDS = list(_every_command())


# What the `__main__` of a package runs.
HANDED_OVER = {
    "paddle_dense.training": "paddle_dense.commands.train",
    "paddle_dense.deploy": "paddle_dense.commands.deploy",
}


def _module(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command line runs, and its arguments."""
    if words[0] == "eval":  # of what the command in "$(...)" prints
        words = shlex.split(words[1][2:-1])
    if words[:3] == ["python", "-m", "paddle.distributed.launch"]:
        words = words[words.index("python", 1) :]
    if words[0] in SCRIPTS:
        words = ["python", "-m", *SCRIPTS[words[0]], *words[1:]]
    assert words[:2] == ["python", "-m"], f"no test knows what {words[0]} is"
    name = words[2]
    spec = util.find_spec(name)
    assert spec is not None, f"there is no module {name}"
    main = f"{name}.__main__" if spec.submodule_search_locations else name
    return HANDED_OVER.get(name, main), words[3:]


def _parse(command: str) -> None:
    """Check a command that is not run, as far as it can be."""
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        for extra in re.search(r"\[(.*)\]", command)[1].split(","):
            assert f'    "{extra}": [' in setup
        return
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        known = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE), *re.findall(r"\$\((\w+)\)", makefile)}
        assert {word.partition("=")[0] for word in words[1:]} <= known
        return
    name, arguments = _module(words)
    if name.startswith(("benchmarks.", "fuzz.")):
        source = Path(util.find_spec(name).origin).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in arguments if word.startswith("--"))
        return
    if name == "http.server":
        assert f"site_dir: {arguments[-1]}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        return
    module = importlib.import_module(name)
    if name == "paddle_dense.adapters.__main__":
        assert arguments[0] in module.PACKAGES
        return
    if name == "paddle_dense.__main__" and arguments:
        module, arguments = importlib.import_module(module.COMMANDS[arguments[0]][0]), arguments[1:]
    if arguments[:1] == ["plot"]:
        module, arguments = importlib.import_module("paddle_dense.commands.plot"), arguments[1:]
    if arguments:
        module.parser().parse_args(arguments)


def _run(command: str) -> int:
    words = shlex.split(command)
    if "&&" in words:
        return subprocess.run(["bash", "-c", " ".join(words)], check=False).returncode
    name, arguments = _module(words)
    try:
        return importlib.import_module(name).main(arguments)
    except SystemExit as end:  # argparse, after --help
        return end.code


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, workplace, capsys):
    if any(re.search(pattern, command) for pattern in PARSED) and "--help" not in command:
        _parse(command)
        return
    for pattern, package in NEEDED.items():
        if re.search(pattern, command):
            pytest.importorskip(package)
    words = shlex.split(command)
    for before, word in zip(words, words[1:]):
        if before not in ("-o", "--propose") and word in FILES:
            FILES[word](workplace / word)
    assert _run(command) == 0, capsys.readouterr().err
    if "-o" in words:
        target = words[words.index("-o") + 1]
        assert list(workplace.glob(f"{target.rstrip('/')}*")), f"{target} is not there"


@pytest.mark.parametrize(
    ("document", "count", "said"),
    [(ROOT / "README.md", 1, "ship"), (DOCS / "index.md", 2, "verified: True")],
    ids=["README.md", "index.md"],
)
def test_the_first_block_needs_nothing_but_the_checkout(document, count, said, workplace, capsys):
    """What a newcomer pastes first, one command after the other and without any file of the user's."""
    for package in ("torch", "jinja2", "matplotlib"):
        pytest.importorskip(package)
    first = [command for command in typed(blocks(document)[0]) if not re.search("^pip|^python3 -m venv", command)]
    for command in first:
        assert _run(command) == 0, capsys.readouterr().err
    assert len(first) == count
    assert said in capsys.readouterr().out


def test_the_answers_that_the_readme_shows_are_given(workplace, capsys):
    shown = next(text for text in transcripts(ROOT / "README.md") if "predict" in text)
    call, *answers = shown.splitlines()
    assert _run(call[2:]) == 0
    assert capsys.readouterr().out.splitlines() == answers


def test_the_list_of_what_is_only_parsed_is_of_use():
    every = [case.values[0] for case in COMMANDS] + [command for _, command in INLINE]
    for pattern in PARSED:
        assert any(re.search(pattern, command) for command in every), f"nothing is {pattern}"


INLINE = sorted(
    {
        (_name(document), found)
        for document in [*ORIGINALS, *TRANSLATIONS]
        for found in re.findall(
            r"`((?:python -m|make|paddle-dense|torch2paddle|paddle2torch) [^`]+)`", strip_blocks(document)
        )
    }
)


@pytest.mark.parametrize(("document", "command"), INLINE)
def test_commands_in_the_text_exist(document, command):
    """Their arguments parse, placeholders such as CKPT included."""
    _parse(command)


# Configurations

YAML = [block.text for path in ORIGINALS for block in blocks(path) if block.language == "yaml"]
CONFIGURATIONS = [text for text in YAML if text.startswith("#")]  # what else there is are options of training


@pytest.mark.parametrize("text", CONFIGURATIONS, ids=lambda text: text.partition("\n")[0])
def test_configurations_are_those_of_the_adapters(text):
    """The adapters' own tests build these; their first line says which adapter's docstring has them."""
    first, _, shown = text.partition("\n")
    path = ROOT.joinpath(*first.lstrip("# ").split(".")).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    lines = [line[4:] if line.startswith("    ") else line for line in docstring.splitlines()]
    assert shown.strip() in "\n".join(lines)
