"""The commands ``paddle-dense info`` and ``list``, the dispatch between all commands, and their completion."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.__main__ import main
from paddle_dense.commands import COMMANDS, description
from paddle_dense.commands import list as catalogue
from paddle_dense.files.weights import write_weights
from paddle_dense.models import preset

ROOT = Path(__file__).resolve().parents[1]


def described(path: Path, capsys: pytest.CaptureFixture) -> dict:
    """What ``info --json`` says of a file."""
    assert main(["info", "--json", str(path)]) == 0
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


# info


def test_a_condensed_pytorch_file(data, capsys):
    found = described(data / "cdnv2_tiny_converted.pth", capsys)
    assert (found["arch"], found["condensed"], found["container"]) == ("CondenseNetV2", True, "state_dict")
    assert found["config"]["stages"] == [2, 2, 2] and found["config"]["num_classes"] == 10
    assert (found["params"], found["averaged"], found["connections"]) == (50_010, False, None)
    assert any("HS_start_block=2 is assumed" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("name", "averaged", "condensable", "left"),
    [
        ("cdnv2_tiny_ema.pth.tar", True, True, 0.25),
        ("cdnv2_tiny_trained_unconverted.pth.tar", False, True, 0.25),
        ("cdnv2_tiny_init.pth", False, False, 1.0),
        ("condensenet_tiny_trained_unconverted.pth.tar", False, True, 0.25),
    ],
)
def test_the_trained_form(data, name, averaged, condensable, left, capsys):
    found = described(data / name, capsys)
    assert (found["condensed"], found["averaged"], found["condensable"]) == (False, averaged, condensable)
    assert found["connections"] == pytest.approx(left)
    assert condensable or any("not condensed yet" in warning for warning in found["warnings"])


def test_macs_and_params_are_those_of_profile(data, tiny, capsys):
    size = pd_.profile(pd_.CondenseNetV2(**tiny))
    found = described(data / "cdnv2_tiny_converted.pth", capsys)
    assert (found["params"], found["executed_macs"]) == (size.params, size.executed_macs)


def test_a_paddle_file_with_its_sidecar(capsys):
    found = described(ROOT / "weights" / "cdnv2_digits.pdparams", capsys)
    assert (found["format"], found["container"]) == ("pdparams", None)
    assert found["sidecar"]["source"]["file"] == "cdnv2_digits.pth"
    assert found["sidecar"]["verified"] is True
    assert found["warnings"] == []


def test_a_preset_is_named_and_the_sidecar_fills_in_what_tensors_hide(tiny, tmp_path, capsys):
    pd_.save_weights(pd_.condensenet50(num_classes=5), tmp_path / "preset.safetensors")
    found = described(tmp_path / "preset.safetensors", capsys)
    assert (found["arch"], found["network"], found["input_size"]) == ("condensenet50", "CondenseNet", 32)

    pd_.save_weights(pd_.CondenseNetV2(**tiny), tmp_path / "tiny.pdparams")
    found = described(tmp_path / "tiny.pdparams", capsys)
    assert (found["config"]["HS_start_block"], found["warnings"]) == (1, [])


def test_a_sidecar_of_another_network_is_not_believed(tiny, tmp_path, capsys):
    pd_.save_weights(pd_.CondenseNetV2(**tiny), tmp_path / "tiny.pdparams")
    claim = {"arch": "CondenseNetV2", "config": {**tiny, "stages": [1_000_000, 2, 2]}}
    (tmp_path / "tiny.json").write_text(json.dumps(claim))
    found = described(tmp_path / "tiny.pdparams", capsys)
    assert found["config"]["stages"] == [2, 2, 2]
    assert any("the sidecar .json describes" in warning for warning in found["warnings"])


@pytest.mark.parametrize("stride", [-1, 2**40, True])
def test_a_sidecar_with_numbers_that_no_tensor_contradicts_and_no_network_has(stride, tiny, tmp_path, capsys):
    pd_.save_weights(pd_.CondenseNetV2(**tiny), tmp_path / "tiny.pdparams")
    claim = json.loads((tmp_path / "tiny.json").read_text())
    claim["config"]["init_stride"] = stride
    (tmp_path / "tiny.json").write_text(json.dumps(claim))
    found = described(tmp_path / "tiny.pdparams", capsys)
    assert (found["params"], found["config"]["init_stride"]) == (50_010, 1)
    fault = "(init_stride=.* must be|CondenseNetV2 would leave nothing)"
    said = f"the sidecar .json describes no network of this package: {fault}"
    assert any(re.match(said, warning) for warning in found["warnings"])


def test_safetensors_from_pytorch_are_read_as_such(data, tmp_path, capsys):
    from paddle_dense.files.torch_file import read_checkpoint

    state = read_checkpoint(data / "cdnv2_tiny_converted.pth").state
    write_weights(state, tmp_path / "net.safetensors", {"format": "pt", "title": "a\x1b[31mred"})
    found = described(tmp_path / "net.safetensors", capsys)
    assert (found["format"], found["params"]) == ("safetensors, from PyTorch", 50_010)
    assert found["metadata"]["title"] == "a\x1b[31mred"
    assert main(["info", str(tmp_path / "net.safetensors")]) == 0
    assert "'a\\x1b[31mred'" in capsys.readouterr().out


def test_another_packages_network_is_described_without_a_network(tmp_path, capsys):
    write_weights({"encoder.weight": np.ones((2, 3), "f4")}, tmp_path / "other.pdparams")
    found = described(tmp_path / "other.pdparams", capsys)
    assert (found["arch"], found["tensors"], found["numbers"]) == (None, 1, 6)
    assert "none of the known networks" in found["warnings"][0]


def test_a_released_file_is_known_by_its_hash(data, monkeypatch, capsys):
    entry = {"name": "cdnv2_x", "source": "an address", "note": "a test's", "sha256": None}
    prefix = described(data / "cdnv2_tiny_init.pth", capsys)["sha256"][:8]
    monkeypatch.setattr(description, "manifest", lambda: [{**entry, "sha256_prefix": prefix}, {**entry, "md5": "0"}])
    assert main(["info", str(data / "cdnv2_tiny_init.pth")]) == 0
    assert re.findall("released .*", capsys.readouterr().out) == ["released    cdnv2_x from an address: a test's"]


def test_files_that_cannot_be_read_are_one_line_each(data, tmp_path, capsys):
    class Attack:
        def __reduce__(self):
            return os.system, ("echo attacked",)

    (tmp_path / "hostile.pdparams").write_bytes(pickle.dumps({"w": Attack()}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.pth").write_bytes((data / "cdnv2_tiny_init.pth").read_bytes()[:5000])
    os.mkfifo(tmp_path / "pipe.pth")
    bad = [tmp_path / name for name in ("hostile.pdparams", "empty.pth", "cut.pth", "pipe.pth", "nowhere.pth")]
    assert main(["info", *map(str, bad), str(data / "cdnv2_tiny_init.pth")]) == 1
    said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.err.splitlines()] == ["error"] * len(bad)
    assert "attacked" not in said.out and "trained form" in said.out


def test_nothing_that_a_file_says_reaches_the_terminal_unescaped(data, tmp_path, capsys):
    path = tmp_path / "evil\x1b]0;title\x07.pdparams"
    write_weights({"x\x1b[2J\u202e": np.ones(3, "f4")}, path)
    escape = "\x9b2J\nnetwork     cdnv2_a"
    path.with_suffix(".json").write_text(json.dumps({"source": {escape: escape}, "warnings": [escape], escape: 1}))
    assert main(["info", str(path), str(tmp_path / "no\x1b[2Jfile")]) == 1
    said = capsys.readouterr()
    for line in (said.out + said.err).splitlines():
        assert line.isprintable()
        assert not line.startswith("network")
    assert "\\x9b2J" in said.out


def test_info_needs_no_pytorch(data):
    script = f"""
        import sys
        from paddle_dense.__main__ import main
        status = main(["info", {str(data / "cdnv2_tiny_ema.pth.tar")!r}])
        print(status, "torch" in sys.modules)
    """
    done = _python("\n".join(line.strip() for line in script.splitlines()))
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr[-2000:]


# list


def test_list_has_every_preset(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == pd_.list_models()
    [line] = [line for line in lines if line.startswith("cdnv2_a ")]
    assert line.split()[1:] == ["CondenseNetV2", "2,038,444", "45.9", "M", "224", "pytorch,", "paddle"]


def test_list_takes_a_pattern_and_gives_json(capsys):
    assert main(["list", "--json", "cdnv2_?"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in entries] == ["cdnv2_a", "cdnv2_b", "cdnv2_c"]
    assert [entry["input_size"] for entry in entries] == [224, 224, 224]
    assert {source["framework"] for source in entries[0]["pretrained"]} == {"pytorch", "paddle"}
    assert main(["list", "nothing*"]) == 1
    assert capsys.readouterr().err == "error: no preset matches 'nothing*': leave the pattern out to see all of them\n"


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("condensenet50", "cdnv2_a") else pytest.param(name, marks=pytest.mark.slow)
        for name in pd_.list_models()
    ],
)
def test_the_sizes_are_the_measured_ones(name):
    assert preset(name).size == catalogue.measured(preset(name))


# All commands under one name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_reached(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize(
    ("started", "arguments", "usage"),
    [
        ("bin/paddle-dense", ["--help"], "paddle-dense COMMAND "),
        ("bin/paddle-dense", ["list", "--help"], "paddle-dense list "),
        ("bin/paddle-dense", ["train", "plot", "--help"], "paddle-dense train plot "),
        ("bin/torch2paddle", ["torch2paddle", "--help"], "torch2paddle "),
        ("paddle_dense/__main__.py", ["--help"], "python -m paddle_dense COMMAND "),
        ("paddle_dense/__main__.py", ["deploy", "--help"], "python -m paddle_dense deploy "),
        ("paddle_dense/deploy/__main__.py", ["deploy", "--help"], "python -m paddle_dense.deploy "),
        ("convert/torch2paddle.py", ["torch2paddle", "--help"], "python -m convert.torch2paddle "),
        ("site-packages/pytest/__main__.py", ["info", "--help"], "python -m paddle_dense info "),
    ],
)
def test_usage_says_what_was_typed(started, arguments, usage, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(Path(started)), *arguments])
    with suppress(SystemExit):
        assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"usage: {usage}")


@pytest.mark.parametrize("arguments", [[], ["inform"], ["info"], ["list", "--jsn"], ["completion", "fish"]])
def test_wrong_usage_is_one_line_and_status_2(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"paddle_dense {pd_.__version__}\n"


def test_the_dispatch_loads_no_framework():
    done = _python(
        "import sys; from paddle_dense.__main__ import main; main(['--help']); print('paddle' in sys.modules)"
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_console_scripts_are_there_and_run():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    scripts = dict(re.findall(r'"([\w-]+) = convert\.console:(\w+)"', setup))
    assert set(scripts) == {"torch2paddle", "paddle2torch", "paddle-dense"}
    for name, function in scripts.items():
        # A process of its own, as the command ends it.
        done = _python(f"import sys; sys.argv = [{name!r}]; from convert.console import {function}; {function}()")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_console_script_without_paddle_is_one_sentence():
    """-S: an interpreter without site-packages, and so without Paddle."""
    done = _python(
        "import sys; sys.argv = ['paddle-dense', 'list']; from convert.console import *; paddle_dense()", "-S"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def _python(script: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *options, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


# Completion


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """``completed("paddle-dense list cdnv2_")``: what bash offers for the last word."""
    pytest.importorskip("shtab", reason="completes in a shell: pip install shtab")
    bash = shutil.which("bash") or pytest.skip("completes in bash, which is not there")
    from paddle_dense.commands.completion import PROGRAMS, script

    folder = tmp_path_factory.mktemp("completion")
    (folder / "net.pth").write_text("")
    for program in PROGRAMS:
        (folder / program).write_text(script("bash", program))

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        commands = f"""
            source ./{words[0]}  # not the command of that name that may be on the PATH
            COMP_WORDS=({" ".join(words)} {"''" if not words[-1] else ""}); COMP_CWORD={len(words) - 1}
            $(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run([bash, "-c", commands], cwd=folder, capture_output=True, text=True)
        return done.stdout.split()

    return complete


def test_bash_completes_commands_options_and_presets(completed):
    assert completed("paddle-dense in") == ["info"]
    assert completed("paddle-dense list cdnv2_") == ["cdnv2_a", "cdnv2_b", "cdnv2_c", "cdnv2_cifar10"]
    assert completed("torch2paddle --keep") == ["--keep-trained-form"]
    assert completed("torch2paddle --arch densenet12") == ["densenet121"]
    assert "net.pth" in completed("paddle-dense info ne")


def test_zsh_has_a_script_too(capsys):
    pytest.importorskip("shtab", reason="completes in a shell: pip install shtab")
    assert main(["completion", "zsh", "paddle2torch"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef paddle2torch\n") and "--force" in script


def test_without_shtab_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == "error: completion needs shtab: pip install 'paddle_dense[completion]'\n"


@pytest.mark.parametrize("held", [{"loss": [1, 2, 3]}, {}, {"model": {"epoch": 3}}], ids=str)
def test_a_pickle_without_weights_is_no_file_of_weights(tmp_path, capsys, held):
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(held, 4))
    assert main(["info", str(tmp_path / "log.pkl")]) == 1
    said = capsys.readouterr()
    assert not said.out and said.err.startswith(f"error: {tmp_path / 'log.pkl'}: ")
