"""Many devices: two processes that talk over gloo, as `paddle.distributed.launch` starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PADDLE_DISTRI_BACKEND": "gloo",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}


def launch(folder, *command):
    """Run a command in two processes; returns what both said."""
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(folder / "log")]
    done = subprocess.run([sys.executable, *launcher, *map(str, command)], cwd=folder, env=ENVIRONMENT, timeout=300)
    logs = [(folder / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert done.returncode == 0, logs
    return logs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process with the whole batch saw, and each of two processes with half of it."""
    folder = tmp_path_factory.mktemp("devices")
    worker = HERE / "devices_worker.py"
    subprocess.run([sys.executable, worker, folder], env=ENVIRONMENT, check=True, timeout=300)
    launch(folder, worker, folder)
    return [json.loads((folder / name).read_text()) for name in ("0-of-1.json", "0-of-2.json", "1-of-2.json")]


def test_two_devices_have_the_losses_of_one(runs):
    one, first, second = runs
    assert first["losses"] == second["losses"]
    np.testing.assert_allclose(first["losses"], one["losses"], atol=1e-5)
    assert len(set(one["losses"])) == 8


def test_masks_and_counters_are_equal_after_every_step(runs):
    one, first, second = runs
    assert first["choices"] == second["choices"] == one["choices"]
    assert [stages[0] for _, _, stages in one["choices"]] == [0, 0, 1, 2, 3, 3, 3, 3]


def test_weights_stay_the_same_on_all_devices(runs):
    assert runs[1]["weights"] == runs[2]["weights"]


def test_every_test_image_counts_once(runs):
    one, first, second = runs
    assert one["images"] == first["images"] == second["images"] == 11
    assert first["test_loss"] == second["test_loss"] == pytest.approx(one["test_loss"], abs=1e-5)
    assert first["top1"] == second["top1"] == one["top1"]


def test_the_command_on_two_devices(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (32, 32, 3)).astype("uint8")
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    options = ["--model", "CondenseNet", "--config", "stages=1-1,growth=8-8,init_stride=2", "--data", "images"]
    training = [
        "--recipe",
        "finetune",
        "--batch-size",
        "4",
        "--epochs",
        "2",
        "--ema",
        "--condense-at-end",
        "-o",
        "run",
        "--mixup",
        "0.2",
    ]
    logs = launch(tmp_path, "python", "-m", "paddle_dense.training", *options, *training)
    assert "epoch 2/2" in logs[0]
    assert "model_condensed.pdparams: accuracy" in logs[0]
    assert "epoch" not in logs[1]  # rank 0 alone speaks
    assert "on 6 images" in logs[0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-00000003.safetensors",
        "checkpoint-00000006.safetensors",
        "config.yaml",
        "log.csv",
        "model.json",
        "model.pdparams",
        "model_condensed.json",
        "model_condensed.pdparams",
        "model_ema.json",
        "model_ema.pdparams",
        "model_ema_last.json",
        "model_ema_last.pdparams",
        "model_last.json",
        "model_last.pdparams",
    ]


def test_evaluating_on_two_devices_counts_every_image_once(tmp_path):
    random = np.random.default_rng(0)
    for name in "01234567":  # seven images, and one that is none
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(random.integers(0, 255, (32, 32)).astype("uint8")).save(tmp_path / "images" / name / "x.png")
    (tmp_path / "images" / "7" / "x.png").write_text("no image")
    weights = HERE.parents[1] / "weights" / "cdnv2_digits.pdparams"
    command = ["-m", "paddle_dense", "evaluate", str(weights), "images", "--json"]
    one = subprocess.run([sys.executable, *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=300)
    expected = json.loads(one.stdout)
    assert (one.returncode, expected["images"], expected["skipped"]) == (1, 7, 1)
    (tmp_path / "images" / "7" / "x.png").unlink()
    logs = launch(tmp_path, "python", *command)
    (found,) = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{")]
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), abs=1e-5)
    assert found == {**expected, "skipped": 0}
