"""``python -m paddle_dense.adapters``: another package's script, after its adapter has been imported."""

import sys

import pytest

from paddle_dense.adapters.__main__ import main


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("")
    path = tmp_path / "train.py"
    path.write_text(
        "import sys, neighbour\n"
        "from paddleseg.cvlibs import manager\n"
        "print(__name__, sys.argv[1:], 'cdnv2_a' in manager.BACKBONES)\n"
    )
    return path


def test_the_script_finds_the_networks_registered(script, paddleseg, capsys):
    if hasattr(paddleseg.manager.BACKBONES, "components_dict"):
        script.write_text(script.read_text().replace("BACKBONES)", "BACKBONES.components_dict)"))
    assert main(["paddleseg", str(script), "--config", "x.yml"]) == 0
    assert capsys.readouterr().out == "__main__ ['--config', 'x.yml'] True\n"


@pytest.mark.parametrize("arguments", [[], ["paddleseg"], ["paddleocr", "train.py"], ["paddleseg", "nowhere.py"]])
def test_wrong_usage_is_one_line(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")


@pytest.mark.parametrize(
    ("adapter", "modules"),
    [("paddleclas", ["ppcls", "paddleclas"]), ("paddledet", ["ppdet"]), ("paddleseg", ["paddleseg"])],
)
def test_a_missing_package_is_one_line(adapter, modules, script, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] in modules or name == f"paddle_dense.adapters.{adapter}":
            monkeypatch.delitem(sys.modules, name)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main([adapter, str(script)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"pip install {adapter}" in said


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "{paddleclas,paddledet,paddleseg} SCRIPT" in capsys.readouterr().out
