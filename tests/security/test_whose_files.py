"""Whose a file is: foreign JSON, inputs of other names and pipes stay, and a reader next to a writer gets one pair."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from convert import paddle2torch, torch2paddle
from convert.command import refuse_written
from convert.conversion import convert_back, convert_checkpoint
from convert.options import Options
from paddle_dense import load_model, save_weights
from paddle_dense.commands.description import describe_weights
from paddle_dense.commands.train import main as train
from paddle_dense.errors import WeightsError
from paddle_dense.files.atomic import atomic_write, file_key, move_together, new_file, temporary_folder
from paddle_dense.files.sidecar import in_one_moment, is_left_over, read_sidecar, write_with_sidecar
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.process import FAILED, OK, USAGE
from paddle_dense.training.resume import saved_checkpoints

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "weights" / "cdnv2_digits.pth"
SMALL = "stages=1-1,growth=4-4,group_1x1=1,group_3x3=1,condense_factor=1"
TRAIN = ["--data", "digits", "--model", "CondenseNet", "--config", SMALL, "--epochs", "1"]

PAGE = {"count": 2, "next": None, "previous": None, "results": [{"id": 1}, {"id": 2}]}  # of a list over HTTP
FOREIGN = {
    "page": json.dumps(PAGE),
    "page with our word": json.dumps({**PAGE, "tensors_sha256": "none"}),
    "settings": '{"arch": "resnet50", "config": {"lr": 0.1}}',
    "list": "[1, 2]",
    "text": "not JSON at all",
    "empty": "",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(capsys) -> str:
    """What a command said, which is one error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def digits(tmp_path) -> Path:
    """A PyTorch checkpoint in a folder of its own."""
    return Path(shutil.copy(DIGITS, tmp_path / "net.pth"))


@pytest.fixture
def pair(tmp_path) -> Path:
    """Paddle weights with their sidecar."""
    for suffix in (".pdparams", ".json"):
        shutil.copy(DIGITS.with_suffix(suffix), tmp_path / f"net{suffix}")
    return tmp_path / "net.pdparams"


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A PyTorch checkpoint as .safetensors, of which a target may have the name."""
    write_weights(read_checkpoint(DIGITS).state, tmp_path / "net.safetensors", {"format": "pt"})
    return tmp_path / "net.safetensors"


# Foreign JSON


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_conversion_replaces_foreign_json_only_with_force(digits, capsys, content):
    """Any object with `"previous": null` had counted as what a dead run of ours left."""
    sidecar = digits.with_suffix(".json")
    sidecar.write_text(content)
    assert not is_left_over(sidecar)
    before = contents(digits.parent)
    assert torch2paddle.main([str(digits), "--no-verify"]) == FAILED
    assert "net.json exists already: " in one_line(capsys) and contents(digits.parent) == before
    assert torch2paddle.main([str(digits), "--no-verify", "--force"]) == OK
    assert json.loads(sidecar.read_text())["arch"] == "CondenseNetV2"


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("ours", [True, False], ids=["network of this package", "other network"])
def test_saving_weights_replaces_no_foreign_json(tmp_path, content, ours):
    """It had been replaced without a word, and had been removed next to weights that need no sidecar."""
    model = load_model(DIGITS.with_suffix(".pdparams")) if ours else paddle.nn.Linear(2, 3)
    (tmp_path / "net.json").write_text(content)
    before = contents(tmp_path)
    with pytest.raises(WeightsError, match=r"net.json has the name .*: give the weights another name"):
        save_weights(model, tmp_path / "net.pdparams")
    assert contents(tmp_path) == before
    save_weights(model, tmp_path / "another.pdparams")
    save_weights(model, tmp_path / "another.pdparams")  # over its own


def test_a_sidecar_of_other_weights_is_no_left_over(tmp_path):
    """A run that died between its weights and the last form of their sidecar leaves a good pair."""
    write_with_sidecar({"w": np.ones(3, "f4")}, tmp_path / "net.safetensors", {"version": 1})
    sidecar = tmp_path / "net.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "previous": None}))
    assert read_sidecar(tmp_path / "net.safetensors")["version"] == 1
    assert not is_left_over(sidecar)
    (tmp_path / "net.safetensors").unlink()
    assert is_left_over(sidecar)


def test_a_sidecar_without_the_mark_is_still_read(pair):
    """One from before there was one, or written by hand."""
    entries = json.loads(pair.with_suffix(".json").read_text())
    del entries["tensors_sha256"]
    pair.with_suffix(".json").write_text(json.dumps(entries))
    assert load_model(pair).config == entries["config"]


@pytest.mark.parametrize("occupied", ["model.pdparams", "model.json", "model_condensed.pdparams", "model_ema.pdparams"])
def test_a_run_replaces_no_weights_that_were_there(tmp_path, capsys, occupied):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install paddle_dense[train]")
    (tmp_path / occupied).write_text("precious")
    assert train([*TRAIN, "--ema", "--condense-at-end", "-o", str(tmp_path)]) == USAGE
    assert one_line(capsys).endswith(f"{occupied}: another --output starts it elsewhere")
    assert contents(tmp_path) == {occupied: b"precious"}


def test_a_run_removes_its_own_checkpoints_only(tmp_path, capsys):
    """What was damaged under higher numbers had cost the run every checkpoint that it wrote from then on."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install paddle_dense[train]")
    assert train([*TRAIN, "--epochs", "2", "-o", str(tmp_path)]) == OK
    newest, before = saved_checkpoints(tmp_path)
    good = before.read_bytes()
    newest.unlink()
    damaged = [tmp_path / f"checkpoint-{number}.safetensors" for number in ("90000000", "90000001")]
    for path in damaged:
        path.write_bytes(good[:1000])
    foreign = tmp_path / "checkpoint-00000000.safetensors"
    write_weights({"w": np.ones(3, "f4")}, foreign, {"step": "0"})
    assert train(["--resume", str(tmp_path)]) == OK, capsys.readouterr().err
    assert newest.exists() and foreign.exists() and all(path.exists() for path in damaged)


# The sha256 is of what was read

ONE_READING = """
import os, shutil, sys
path, other = {path!r}, {other!r}
readings = []

def opened(event, arguments):
    if event == "open" and arguments[0] == path and isinstance(arguments[1], str):  # os.open has no mode
        readings.append(path)
        if len(readings) == 2:
            os.replace(other, path)

sys.addaudithook(opened)
{work}
print(len(readings))
"""
CHECKPOINT = ("settings", "network", "schedule", "scaler")  # texts that one of a training run has
WORK = {
    "torch2paddle": ("net.pth", 'from convert.torch2paddle import main; main([path, "--no-verify", "-o", {target!r}])'),
    "paddle2torch": (
        "net.pdparams",
        'from convert.paddle2torch import main; main([path, "--no-verify", "-o", {target!r}])',
    ),
    "info": ("net.pth", "from paddle_dense.commands.info import main; main([path, '--json'])"),
    "info of Paddle": ("net.pdparams", "from paddle_dense.commands.info import main; main([path, '--json'])"),
    "info of safetensors": ("net.safetensors", "from paddle_dense.commands.info import main; main([path, '--json'])"),
    "resume": (
        "run.safetensors",
        "from paddle_dense.training.resume import read_checkpoint; read_checkpoint(path)",
    ),
    "parity": ("net.pth", 'from convert.parity.__main__ import main; main([path, "--steps", "0"])'),
}


@pytest.mark.parametrize("command", WORK)
def test_a_file_is_read_once(tmp_path, digits, pair, theirs, command):
    """Replacing the input meanwhile changes neither the numbers nor the sha256 that is given of them."""
    pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")
    name, work = WORK[command]
    target = tmp_path / "out" / ("net.pth" if command == "paddle2torch" else "net.pdparams")
    write_weights({}, tmp_path / "run.safetensors", {"step": "1", **dict.fromkeys(CHECKPOINT, "{}")})
    path, other = tmp_path / name, tmp_path / "other"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    other.write_bytes(b"something else")
    program = ONE_READING.format(path=str(path), other=str(other), work=work.format(target=str(target)))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1", done.stdout + done.stderr
    if command not in ("parity", "resume"):  # which tell of none
        assert sha256 in done.stdout + "".join(p.read_text() for p in target.parent.glob("*.json"))


def test_the_sha256_of_an_input_that_is_replaced_all_the_time(tmp_path):
    """The hash of the other content had been recorded in every second conversion."""
    path, states, texts = tmp_path / "net.pth", {}, {}
    state = read_checkpoint(DIGITS).state
    for version in (1.0, 2.0):
        shifted = {name: value + np.float32(version) if name == "fc.bias" else value for name, value in state.items()}
        write_weights(shifted, tmp_path / "a.safetensors", {"format": "pt"})
        texts[version] = (tmp_path / "a.safetensors").read_bytes()
        states[hashlib.sha256(texts[version]).hexdigest()] = shifted["fc.bias"]
    path.write_bytes(texts[1.0])
    pid = os.fork()
    if not pid:
        while True:
            for text in texts.values():
                (tmp_path / "next").write_bytes(text)
                os.replace(tmp_path / "next", path)
    try:
        for number in range(12):
            target = tmp_path / f"{number}.pdparams"
            found = convert_checkpoint(path, target, Options(verify=False))
            np.testing.assert_array_equal(read_weights(target)["fc.bias"], states[found.sha256])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# Inputs and outputs that are one file


def spelled(path: Path) -> Path:
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


def symbolic(path: Path) -> Path:
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path.name)
    return link


def hard(path: Path) -> Path:
    link = path.with_name(f"hard{path.suffix}")
    os.link(path, link)
    return link


NAMES = [Path, spelled, symbolic, hard]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", [torch2paddle, paddle2torch])
def test_an_input_is_never_the_output(tmp_path, capsys, command, name):
    """`--force` had destroyed the only original."""
    path = tmp_path / "net.safetensors"
    if command is torch2paddle:
        write_weights(read_checkpoint(DIGITS).state, path, {"format": "pt"})
    else:
        write_weights(read_weights(DIGITS.with_suffix(".pdparams")), path)
    target = name(path)
    before = contents(tmp_path)
    assert command.main([str(path), "-o", str(target), "--force", "--no-verify"]) == USAGE
    assert one_line(capsys) == f"error: {target} would replace {path}, which is read here: give another name with -o"
    if command is torch2paddle:
        with pytest.raises(WeightsError, match="would replace"):
            convert_checkpoint(path, target, Options(verify=False, force=True))
    else:
        with pytest.raises(WeightsError, match="would replace"):
            convert_back(path, target, Options(verify=False, force=True))
    assert contents(tmp_path) == before


def test_an_input_is_not_the_output_of_another(digits, capsys):
    """Under a name that the command finds by itself."""
    other = Path(shutil.copy(digits, digits.with_name("other.pth")))
    digits.with_suffix(".pdparams").symlink_to(other.name)
    assert torch2paddle.main([str(digits), str(other), "--force", "--no-verify"]) == USAGE
    assert "net.pdparams would replace " in one_line(capsys) and other.read_bytes() == DIGITS.read_bytes()


@pytest.mark.parametrize("target", ["net.json", "net.pdparams"])
def test_the_origin_of_an_output_is_no_input(tmp_path, pair, capsys, target):
    """Back to PyTorch, with the sidecar of the input under the name of the output's origin, or the input itself."""
    (tmp_path / "back.pth.json").symlink_to(target)
    before = contents(tmp_path)
    arguments = [str(pair), "-o", str(tmp_path / "back.pth"), "--force", "--no-verify"]
    assert paddle2torch.main(arguments) == USAGE
    assert f"back.pth.json would replace {tmp_path / target}, which is read here" in one_line(capsys)
    assert contents(tmp_path) == before


def test_two_spellings_of_one_target(tmp_path, monkeypatch, capsys):
    """The second had replaced the first, with status 0."""
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    shutil.copy(DIGITS, "g.pth")
    shutil.copy(DIGITS, "g.pt")
    for inputs in (["g.pth", "s/../g.pt"], ["g.pth", str(tmp_path / "g.pt")], ["g.pth", "./g.pth"]):
        assert torch2paddle.main([*inputs, "--force", "--no-verify"]) == USAGE
        assert "two inputs would both be written to" in one_line(capsys)
    assert sorted(contents(tmp_path)) == ["g.pt", "g.pth"]


def test_a_target_that_turns_out_to_be_that_of_another(tmp_path):
    """As `A.pdparams` next to `a.pdparams` on a disk that folds case, once the first is there."""
    outputs = [tmp_path / "a.pdparams", tmp_path / "A.pdparams"]
    assert file_key(outputs[0]) != file_key(outputs[1])
    refuse_written(outputs, 1)
    outputs[0].write_bytes(b"the first")
    os.link(*outputs)
    refuse_written(outputs, 0)
    with pytest.raises(WeightsError, match=r"A.pdparams is a file that another input has been converted to"):
        refuse_written(outputs, 1)


@pytest.mark.parametrize("report", ["net.json", "link.json", "net.pth.json"])
def test_a_report_replaces_nothing_that_is_read(tmp_path, pair, digits, capsys, report):
    from convert.parity.__main__ import main

    pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")
    (tmp_path / "link.json").symlink_to("net.pdparams")
    (tmp_path / "net.pth.json").write_text("{}")
    before = contents(tmp_path)
    arguments = [str(pair), str(digits), "--report", str(tmp_path / report), "--force", "--steps", "0"]
    assert main(arguments) == USAGE
    assert f"{report} would replace " in one_line(capsys) and contents(tmp_path) == before


def test_a_report_is_no_target(tmp_path, digits, capsys):
    (tmp_path / "report.json").symlink_to("net.pdparams")
    arguments = [str(digits), "--no-verify", "--report", str(tmp_path / "report.json")]
    assert torch2paddle.main(arguments) == USAGE
    assert "report.json is where " in one_line(capsys) and not (tmp_path / "net.pdparams").exists()


@pytest.mark.parametrize("kept", ["net.pdparams", "net.json", "labels.txt"])
def test_an_export_replaces_nothing_that_is_read(tmp_path, pair, capsys, kept):
    from paddle_dense.commands.deploy import main

    (tmp_path / "labels.txt").write_text("\n".join("0123456789"))
    (tmp_path / "out.pdiparams").symlink_to(kept)
    before = contents(tmp_path)
    arguments = ["--labels", str(tmp_path / "labels.txt"), "-o", str(tmp_path / "out"), "--force"]
    assert main([str(pair), *arguments]) == USAGE
    assert "out.pdiparams would replace " in one_line(capsys) and contents(tmp_path) == before


@pytest.mark.parametrize("kept", ["net.pdparams", "net.json"])
def test_an_image_replaces_nothing_that_is_read(tmp_path, pair, capsys, kept):
    (tmp_path / "net.png").symlink_to(kept)
    before = contents(tmp_path)
    assert train(["plot", str(pair), "--force"]) == USAGE
    assert "net.png would replace " in one_line(capsys) and contents(tmp_path) == before


# Pipes and devices


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    """One of its own: a link to /dev/null would lead whoever breaks this to replace that, for the whole machine."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make a device")
    return path


REFUSED = r"cannot be written \(Not a regular file\): give the name of a file"


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("occupied", ["out.pdparams", "out.json"])
def test_weights_replace_no_pipe_or_device(tmp_path, make, occupied):
    before = make(tmp_path / occupied).lstat()
    model = load_model(DIGITS.with_suffix(".pdparams"))
    with pytest.raises(WeightsError, match=rf"{occupied}: {REFUSED}"):
        save_weights(model, tmp_path / "out.pdparams")
    assert os.listdir(tmp_path) == [occupied] and (tmp_path / occupied).lstat() == before


@pytest.mark.parametrize("make", [pipe, device])
def test_nothing_replaces_a_pipe_or_device(tmp_path, make):
    target = make(tmp_path / "out.bin")
    with pytest.raises(WeightsError, match=rf"out.bin: {REFUSED}"), atomic_write(target):
        pass
    with pytest.raises(WeightsError, match=rf"out.bin: {REFUSED}"), new_file(target):
        pass
    with pytest.raises(WeightsError, match=rf"out.bin: {REFUSED}"), temporary_folder(target) as folder:
        (folder / "out.bin").write_text("new")
        move_together([folder / "out.bin"], tmp_path)
    assert os.listdir(tmp_path) == ["out.bin"] and not target.is_file()


COMMANDS = {
    "convert.torch2paddle": (["net.pth", "--no-verify", "--force", "-o", "out.pdparams"], "out.pdparams"),
    "convert.torch2paddle's sidecar": (["net.pth", "--no-verify", "--force", "-o", "out.pdparams"], "out.json"),
    "convert.torch2paddle's report": (["net.pth", "--no-verify", "--force", "--report", "out.md"], "out.md"),
    "convert.paddle2torch": (["net.pdparams", "--no-verify", "--force", "-o", "out.pth"], "out.pth"),
    "convert.paddle2torch's origin": (["net.pdparams", "--no-verify", "--force", "-o", "out.pth"], "out.pth.json"),
    "paddle_dense.commands.deploy": (["net.pdparams", "--force", "-o", "out"], "out.pdiparams"),
    "paddle_dense.commands.train": (["plot", "net.pdparams", "--force", "-o", "out.png"], "out.png"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_replaces_a_pipe(tmp_path, digits, pair, capsys, monkeypatch, command):
    """Before the work is done, not after it, and whatever is forced."""
    monkeypatch.chdir(tmp_path)
    arguments, occupied = COMMANDS[command]
    pipe(Path(occupied))
    before = sorted(os.listdir())
    assert __import__(command.partition("'")[0], fromlist=["main"]).main(arguments) == FAILED
    assert one_line(capsys).endswith(f"{occupied}: cannot be written (Not a regular file): give the name of a file")
    assert sorted(os.listdir()) == before and Path(occupied).is_fifo()


# Reading next to a writer


def replacing(path: Path) -> int:
    """A process that replaces weights and their sidecar, without a pause, by two versions in turn."""
    state, entries = read_weights(path), read_sidecar(path)
    pid = os.fork()
    if pid:
        return pid
    while True:
        for version in (1, 2):
            changed = {**state, "fc.bias": np.full_like(state["fc.bias"], version)}
            write_with_sidecar(changed, path, {**entries, "version": version})


def test_a_model_is_loaded_while_it_is_replaced(pair):
    """Five of 150 had been asked to remove a good sidecar."""
    state = read_weights(pair)
    pid = replacing(pair)
    try:
        seen = set()
        for _ in range(160):
            bias = load_model(pair).state_dict()["fc.bias"].numpy()
            assert len(set(bias)) == 1 or (bias == state["fc.bias"]).all()
            seen.add(bias[0])
        assert describe_weights(pair).warnings == []
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert {1, 2} <= seen


def test_weights_and_sidecar_are_of_one_version(pair):
    """However small the files and however often: the reader has its turn between two writers."""

    def read() -> tuple[float, int | None]:
        state = read_weights(pair)
        return state["fc.bias"][0], read_sidecar(pair, state).get("version")

    pid = replacing(pair)
    try:
        end, found = time.monotonic() + 5, []
        while time.monotonic() < end:
            found.append(in_one_moment(pair, read))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert {(1, 1), (2, 2)} <= set(found) and all(bias == version for bias, version in found if version)


def test_the_way_back_next_to_a_writer(pair, capsys):
    pid = replacing(pair)
    try:
        for number in range(20):
            arguments = [str(pair), "-o", str(pair.with_name(f"{number}.pth")), "--no-verify"]
            assert paddle2torch.main(arguments) == OK, capsys.readouterr().err
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_pair_that_does_not_belong_together_is_reported_at_once(pair):
    """After a second reading, not after waiting."""
    write_weights({"w": np.zeros(3, "f4")}, pair)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"net.json describes other tensors than .*net.pdparams holds"):
        load_model(pair)
    assert time.monotonic() - start < 5
    assert [note for note in describe_weights(pair).warnings if "describes other tensors" in note]
