"""With 4 GB of addresses (`ulimit -v`), whatever hostile and costly files do ends as a status of 0 or 1 and sentences.

The commands run one after the other in a process of their own, on all of the files: Paddle and PyTorch are loaded once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_dense.files.layout import to_torch
from paddle_dense.files.weights import write_weights
from tests.security import hostile
from tests.security.hostile import ARCHIVES, COSTLY_NETWORKS, WEIGHT_FILES

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = Path("/nonexistent")
LIMIT = 4 << 30

# Each command's main, as `as_process` calls it: what it lets through would be a traceback.
PROGRAM = """
import json, resource, sys, traceback
from importlib import import_module
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
ends = []
for module, *arguments in json.load(sys.stdin):
    print("running", module, *arguments, file=sys.stderr)
    try:
        ends.append([import_module(module).main(arguments), module, *arguments])
    except BaseException:
        traceback.print_exc()
        ends.append([None, module, *arguments])
with open(sys.argv[2], "w") as file:
    json.dump(ends, file)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a limit of addresses that holds")


def weight_files(folder: Path, names: list[str]) -> list[Path]:
    """Each kind of hostile file with each of these attacks, and the costly networks for both frameworks."""
    attacks = hostile.attacks(NOWHERE)
    files = []
    for name in names:
        for file, build in WEIGHT_FILES.items():
            files.append(folder / f"{len(files)}-{file}")  # no two are to be written to one target
            files[-1].write_bytes(build(attacks[name]))
    for number, kind in enumerate(COSTLY_NETWORKS):
        state = hostile.costly_state(kind)
        files += [folder / f"costly{number}.pdparams", folder / f"costly{number}_torch.safetensors"]
        write_weights(state, files[-2])
        write_weights(to_torch(state), files[-1], {"format": "pt"})
    for number, depth in enumerate((500, 100_000)):
        files.append(folder / f"told{number}.pdparams")
        files[-1].write_bytes(hostile.program(hostile.value(hostile.WEIGHTS), 4))
        files[-1].with_suffix(".json").write_text(f'{{"note": {hostile.deep(depth)}}}')
    files.append(folder / "sparse.pdparams")
    with open(files[-1], "wb") as sparse:
        sparse.write(b"\x80\x02}.")
        sparse.truncate(6 << 30)
    return files


def archives(folder: Path, names: list[str]) -> list[Path]:
    attacks = hostile.attacks(NOWHERE)
    files = []
    for number, name in enumerate(names):
        for file, build in ARCHIVES.items():
            files.append(folder / f"{number}-{file}")
            files[-1].write_bytes(build(attacks[name]))
    files.append(folder / "long_names.tar.gz")
    files[-1].write_bytes(hostile.long_names(3000))
    return files


def runs(folder: Path, names: list[str]) -> list[list[str]]:
    """What to run: the commands that take many files on all of them, the others on one after the other."""
    weights = [str(path) for path in weight_files(folder, names)]
    out = str(folder / "out")
    commands = [
        ["paddle_dense.commands.info", *weights],
        ["paddle_dense.commands.info", "--json", *weights],
        ["convert.torch2paddle", *weights, "-o", f"{out}/"],
        ["convert.torch2paddle", *weights, "--no-verify", "--force", "-o", f"{out}/"],
        ["convert.paddle2torch", *weights, "-o", f"{out}/"],
        ["convert.paddle2torch", *weights, "--no-verify", "--force", "-o", f"{out}/"],
        ["convert.parity.__main__", *weights],
    ]
    commands += [["paddle_dense.commands.deploy", path, "-o", f"{out}/deployed"] for path in weights]
    train = "paddle_dense.commands.train"
    commands += [[train, "--pretrained", path, "--data", "digits", "-o", f"{out}/run"] for path in weights]
    for number, path in enumerate(weights):
        run = folder / f"run{number}"
        run.mkdir()
        os.link(path, run / "checkpoint-00000001.safetensors")
        commands.append([train, "--resume", str(run)])
    once = ["--model", "condensenet50", "--epochs", "1", "--batch-size", "2"]  # some attacks hit what nobody reads
    commands += [
        [train, *once, "--data", str(path), "-o", f"{out}/run of {path.name}"] for path in archives(folder, names)
    ]
    return commands


@pytest.mark.parametrize(
    "names",
    [["REDUCE"], pytest.param(list(hostile.attacks(NOWHERE)), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_no_command_ends_in_a_traceback(tmp_path, names):
    pytest.importorskip("torch", reason="half of the commands compare with it")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(LIMIT), str(tmp_path / "ends.json")],
        input=json.dumps(runs(tmp_path, names)),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    last = result.stderr[-3000:]
    assert result.returncode == 0, last
    assert "Traceback" not in result.stderr, result.stderr[result.stderr.index("Traceback") - 500 :][:3000]
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert [(status, arguments) for status, *arguments in ends if status not in (0, 1)] == []


def test_what_needs_little_memory_is_converted_with_it(tmp_path, data):
    """The limit leaves room for what is sound."""
    pytest.importorskip("torch", reason="the check needs it")
    source = data / "cdnv2_tiny_converted.pth"
    commands = [["convert.torch2paddle", str(source), "-o", str(tmp_path / "x.pdparams")]]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(LIMIT), str(tmp_path / "ends.json")],
        input=json.dumps(commands),
        cwd=ROOT,
        text=True,
        check=True,
    )
    assert json.loads((tmp_path / "ends.json").read_text())[0][0] == 0
    assert json.loads((tmp_path / "x.json").read_text())["verified"]
