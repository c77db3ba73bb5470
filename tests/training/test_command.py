"""The command: train, stop, continue, fine-tune, evaluate, and what it says when something is wrong."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.commands import predict
from paddle_dense.commands.train import main
from paddle_dense.files.weights import read_metadata, read_weights, write_weights
from paddle_dense.training.resume import saved_checkpoints

SMALL = ["--model", "CondenseNet", "--config", "stages=1-1,growth=8-8,init_stride=2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, dark and bright: 12 images to train on, 6 to test on."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name, light in (("dark", 40), ("bright", 200)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (light + random.integers(-20, 20, (40, 40, 3))).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def command(images, tmp_path, monkeypatch, capsys):
    """``command("--epochs", 3)`` runs the command in an empty folder; returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, data=True):
        given = [*(["--data", images] if data else []), *arguments]
        status = main([str(argument) for argument in given])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def arrays(path):
    return read_weights(path)


def log_of(folder):
    """The rows of a run's log, as numbers."""
    with open(os.path.join(folder, "log.csv"), newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def best_epoch(folder):
    """The row with the best accuracy, and of equal ones the smallest loss, among those with all connections dropped."""
    rows = log_of(folder)
    condensed = [row for row in rows if row["density"] == min(row["density"] for row in rows)]
    return max(condensed, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def assert_same(found, expected):
    found, expected = read_weights(found), read_weights(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_train_and_condense(command, tmp_path):
    options = ["--recipe", "finetune", "--batch-size", 4, "--epochs", 4, "--ema", "--condense-at-end"]
    status, out, err = command(*SMALL, *options, "-o", "run", "--log-dir", "curves")
    assert (status, err) == (0, "")
    assert "12 images of 2 classes, 6 to test on, recipe finetune" in out
    assert "epoch 4/4: loss" in out and "density 25.0%" in out
    for name in ("model", "model_ema", "model_condensed"):
        assert f"{name}.pdparams: accuracy" in out
    trained, condensed = (
        pd_.load_model(tmp_path / "run" / f"{name}.pdparams") for name in ("model_ema", "model_condensed")
    )
    x = paddle.randn([3, 3, 64, 64])
    trained.eval(), condensed.eval()
    np.testing.assert_allclose(condensed(x).numpy(), trained(x).numpy(), atol=1e-6)
    entries = json.loads((tmp_path / "run" / "model_condensed.json").read_text())
    best = best_epoch("run")
    assert entries["config"]["num_classes"] == 2
    assert (entries["training"]["epoch"], entries["training"]["step"]) == (best["epoch"], best["step"])
    assert any(file.name.startswith("vdlrecords") for file in (tmp_path / "curves").iterdir())


def test_the_same_seed_gives_the_same_weights(command):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "--seed", seed, "-o", folder)
    assert_same("a/model.pdparams", "b/model.pdparams")
    with pytest.raises(AssertionError):
        assert_same("a/model.pdparams", "c/model.pdparams")


def test_continue_a_finished_run_only_writes_its_files_again(command):
    options = [*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2]
    command(*options, "-o", "run")
    before = arrays("run/model.pdparams")
    os.remove("run/model.pdparams")
    status, out, _ = command("--resume", "run", data=False)
    assert status == 0 and "continued from step 6" in out
    for name, array in arrays("run/model.pdparams").items():
        np.testing.assert_array_equal(array, before[name])


def test_fine_tune_a_converted_file_with_a_new_head(command, tmp_path):
    torch = pytest.importorskip("torch")
    from convert.torch2paddle import main as convert
    from convert.torch_models.condensenet import CondenseNet

    config = {"stages": [1, 1], "growth": [8, 8], "num_classes": 5, "init_stride": 2}
    torch.save(CondenseNet(**config, condensed=True).state_dict(), "five.pth")
    assert convert(["five.pth", "--config", "init_stride=2"]) == 0
    status, out, err = command("--pretrained", "five.pdparams", "--batch-size", 4, "--epochs", 1)
    assert (status, err) == (0, "") and "recipe finetune" in out
    tuned, before = arrays("runs/five/model.pdparams"), arrays("five.pdparams")
    assert tuned["classifier.linear.weight"].shape[1] == 2
    for name in before:
        if name.endswith(".index"):
            np.testing.assert_array_equal(tuned[name], before[name])
    assert not np.array_equal(tuned["features.init_conv.weight"], before["features.init_conv.weight"])

    status, out, _ = command("--pretrained", "runs/five/model.pdparams", "--eval-only")
    assert status == 0 and "on 6 images" in out


def test_half_precision_on_a_cpu_changes_nothing(command):
    options = [*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1]
    status, out, _ = command(*options, "--amp", "-o", "half")
    assert status == 0 and "note: Paddle has no half precision on a CPU, so --amp changes nothing here" in out
    assert command(*options, "-o", "full")[0] == 0
    assert_same("half/model.pdparams", "full/model.pdparams")


def test_evaluate_a_run(command):
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "-o", "run")
    _, by_run, _ = command("--resume", "run", "--eval-only", data=False)
    _, by_file, _ = command("--pretrained", "run/model_last.pdparams", "--eval-only")
    assert by_run == by_file and by_run.startswith("accuracy ")
    trained = [
        "--pretrained",
        "run/model_last.pdparams",
        "--config",
        "stages=1-1,growth=8-8,init_stride=2,condensed=False",
    ]
    _, named, err = command("--model", "CondenseNet", *trained, "--eval-only")
    assert (named, err) == (by_run, "")


@pytest.mark.slow
def test_digits_are_learned(command):
    pytest.importorskip("sklearn")
    small = ["--model", "CondenseNet", "--config", "stages=1-1,growth=8-16,init_stride=2"]
    status, out, _ = command("--data", "digits", *small, "--epochs", 6, "--condense-at-end", data=False)
    assert status == 0
    accuracy = float(out.rpartition("model_condensed.pdparams: accuracy ")[2].split("%")[0])
    assert accuracy > 50  # ten classes


def test_a_plot_of_the_run(command):
    pytest.importorskip("matplotlib")
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "-o", "run")
    checkpoint = saved_checkpoints_in("run")[0]
    assert main(["plot", str(checkpoint), "-o", "run.png"]) == 0
    assert Image.open("run.png").size[0] > 300


def saved_checkpoints_in(folder):
    from pathlib import Path

    return saved_checkpoints(Path(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "cdnv2_a"], "--data is missing: give digits"),
        (["photos", "--data", "digits"], "photos and --data digits are two data: give one of them"),
        (["--data", "digits", "--val-split", "0.2"], "--val-split is for folders and lists of images, not for digits"),
        (["--data", "digits", "--val-split", "1"], "--val-split 1.0 is a share: give one between 0 and 1"),
        (["--data", "digits", "--max-bad", "nan"], "--max-bad nan is a share: give one between 0 and 1"),
        (["--data", "digits", "--image-root", "x"], "--image-root is for PaddleClas' lists, and digits has none"),
        (["--data", "digits", "--model", "resnet"], "unknown network 'resnet': choose one of"),
        (["--data", "digits", "--model", "cdnv2_a", "--recipe", "mine"], "unknown recipe 'mine': choose one of"),
        (["--data", "nowhere", "--model", "cdnv2_a"], "there is no data nowhere"),
        (["--data", "digits", "--model", "cdnv2_a", "--epochs", "0"], "--epochs 0 must be 1 or more"),
        (["--data", "digits", "--model", "cdnv2_a", "--learning-rate", "nan"], "--learning-rate nan must be above 0"),
        (["--data", "digits", "--model", "cdnv2_a", "--config", "stages"], "'stages' must have the form KEY=VALUE"),
        (["--data", "digits", "--model", "cdnv2_a", "--config", "depth=3"], "takes no argument 'depth'"),
        (["--data", "digits", "--model", "cdnv2_a", "--eval-only"], "--eval-only needs weights"),
        (["--data", "digits", "--model", "CondenseNet"], "CondenseNet cannot be built with the arguments"),
        (["--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_one_line_and_status_1(command, tmp_path):
    (tmp_path / "bad.pdparams").write_bytes(b"not weights")
    cases = [
        (["--pretrained", "bad.pdparams"], "bad.pdparams"),
        (["--pretrained", "missing.pdparams"], "missing.pdparams: cannot be read"),
        (["--resume", "nowhere"], "nowhere holds no checkpoint to continue from"),
    ]
    for arguments, message in cases:
        status, _, err = command(*arguments)
        assert status == 1 and message in err and err.count("\n") == 1


def test_a_run_is_not_overwritten_or_changed_by_mistake(command):
    options = [*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "-o", "run"]
    assert command(*options)[0] == 0
    status, _, err = command(*options)
    assert status == 2 and "run holds a run already: --resume continues it" in err
    status, _, err = command("--resume", "run", "--batch-size", 2)
    assert status == 2 and "--batch-size 2 contradicts the run, which began with 4: leave --batch-size out" in err


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({"epochs": -5}, {}),
        ({"epochs": 0}, {}),
        ({"batch_size": 0}, {}),
        ({"batch_size": -4}, {}),
        ({"seed": -1}, {}),
        ({"learning_rate": float("nan")}, {}),
        ({"learning_rate": -0.1}, {}),
        ({"epochs": 1}, {}),
        ({}, {"last_epoch": -5}),
        ({}, {"last_epoch": 3}),
        ({}, {"last_lr": 1e30}),
    ],
    ids=str,
)
def test_numbers_that_no_run_leaves_are_one_line_and_status_1(command, settings, schedule):
    """Some of them were tracebacks; with others a run went on at another learning rate."""
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "-o", "run")
    for path in saved_checkpoints_in("run"):
        entries = read_metadata(path)
        for name, change in (("settings", settings), ("schedule", schedule)):
            entries[name] = json.dumps({**json.loads(entries[name]), **change})
        write_weights(read_weights(path), path, entries)
    status, _, err = command("--resume", "run", data=False)
    assert status == 1 and err.startswith("error: run/checkpoint-00000006.safetensors"), err
    assert "remove it, and the run continues from the checkpoint before" in err and err.count("\n") == 1


def start(images, *arguments):
    """A run as a process of its own, all of them with the same threads and path through MKL, for equal roundings."""
    return subprocess.Popen(
        [sys.executable, "-m", "paddle_dense.training", "--data", str(images), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )


def finish(process):
    """What it printed, once it has ended well."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def wait_for_step(process, folder, step):
    """Until the run has saved this step, or later."""
    while not any(int(path.stem.split("-")[1]) >= step for path in saved_checkpoints(folder)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


LONG = [*SMALL, "--recipe", "finetune", "--batch-size", "4", "--epochs", "12", "--ema", "--condense-at-end"]


def test_killed_and_stopped_runs_end_where_the_uninterrupted_one_does(images, tmp_path):
    finish(start(images, *LONG, "-o", str(tmp_path / "whole")))
    run = tmp_path / "run"
    killed = start(images, *LONG, "-o", str(run))
    wait_for_step(killed, run, 3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    stopped = start(images, "--resume", str(run))
    wait_for_step(stopped, run, 15)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate()
    assert stopped.returncode == 130, err
    assert "stopped and saved at step" in out and "Traceback" not in err
    assert not (run / "model.pdparams").exists()

    assert "continued from step" in finish(start(images, "--resume", str(run), "--condense-at-end"))
    for name in ("model", "model_ema", "model_last", "model_ema_last", "model_condensed"):
        assert_same(run / f"{name}.pdparams", tmp_path / "whole" / f"{name}.pdparams")
    assert (run / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    assert not [path for path in run.iterdir() if path.suffix == ".tmp"]


@pytest.mark.slow
def test_killed_at_many_random_moments(images, tmp_path):
    finish(start(images, *LONG, "-o", str(tmp_path / "whole")))
    run = tmp_path / "run"
    random = np.random.default_rng()
    for step in range(1, 31, 3):
        process = start(images, *(["--resume", str(run)] if step > 1 else [*LONG, "-o", str(run)]))
        wait_for_step(process, run, step)
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(images, "--resume", str(run), "--condense-at-end"))
    for name in ("model", "model_ema", "model_last", "model_ema_last", "model_condensed"):
        assert_same(run / f"{name}.pdparams", tmp_path / "whole" / f"{name}.pdparams")
    assert (run / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_an_image_that_cannot_be_read_is_named(command, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "broken")
    (folder / "train" / "dark" / "0.png").write_bytes(b"no image")
    status, _, err = command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "--data", folder)
    assert status == 1 and "0.png: cannot be read as an image" in err and err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pipe_among_the_images_is_named(command, images, tmp_path, workers):
    """It had been waited for, for ever, and no signal ended that."""
    folder = shutil.copytree(images, tmp_path / "waits")
    os.mkfifo(folder / "train" / "dark" / "1.jpg")
    options = ["--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "--workers", workers]
    status, _, err = command(*SMALL, *options, "--data", folder)
    assert status == 1 and "1.jpg: cannot be read as an image" in err and err.count("\n") == 1


def test_a_folder_is_all_that_is_needed(command, tmp_path):
    """60 images in three folders, and nothing else said."""
    random = np.random.default_rng(0)
    for name, light in (("dark", 40), ("grey", 120), ("bright", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = (light + random.integers(-20, 20, (40, 40, 3))).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    status, out, err = command("photos", *SMALL, "--epochs", 2, data=False)
    assert (status, err) == (0, "")
    assert "48 images of 3 classes, 12 to test on, recipe scratch" in out and "accuracy" in out
    status, out, _ = command("photos", *SMALL, "--epochs", 2, "--batch-size", 64, "-o", "large", data=False)
    assert status == 0
    assert "note: a batch of 64 is more than there are images to train on, so a batch has 48" in out


def test_few_photographs_fine_tune_the_network_that_ships(command, tmp_path, monkeypatch, capsys):
    """Two commands and no option but the folder, from images to the name of a new one."""
    monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "1")
    random = np.random.default_rng(0)

    def image(path, light):
        Image.fromarray((light + random.integers(-20, 20, (40, 40, 3))).astype("uint8")).save(path)

    for name, light in (("dark", 40), ("grey", 120), ("bright", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            image(tmp_path / "photos" / name / f"{number}.png", light)
    with pytest.warns(UserWarning, match="the classifier is newly initialised"):
        status, out, err = command("photos", data=False)
    assert status == 0 and out.startswith("cdnv2_cifar10, ") and "recipe finetune" in out, err
    image("new.png", 200)
    assert predict.main(["runs/cdnv2_cifar10/model.pdparams", "new.png"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("bright")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_of_unreadable_images_is_left_out(command, images, tmp_path, workers):
    folder = shutil.copytree(images, tmp_path / "broken")
    for name in ("train/dark/0.png", "val/bright/1.png"):
        (folder / name).write_bytes(b"no image")
    options = [*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "--workers", workers]
    status, out, err = command(*options, "--data", folder, "--max-bad", 0.2)
    assert status == 0 and err.count("it is left out") == 2 == err.count("\n")
    assert "on 5 images" in out


def test_the_best_weights_and_the_last_ones(command, tmp_path):
    options = ["--recipe", "finetune", "--batch-size", 4, "--epochs", 8, "--learning-rate", 0.2]
    status, out, _ = command(*SMALL, *options, "-o", "run")
    rows, best = log_of("run"), best_epoch("run")
    assert status == 0 and [row["epoch"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows] == list(range(3, 25, 3)) and rows[-1]["learning_rate"] == 0
    assert f"images, the best epoch's ({best['epoch']:.0f})" in out and "images, the last epoch's (8)" in out
    for name, row in (("model", best), ("model_last", rows[-1])):
        _, measured, _ = command("--pretrained", f"run/{name}.pdparams", "--eval-only")
        assert measured == f"accuracy {row['val_accuracy']:.2%} on 6 images, loss {row['val_loss']:.4f}\n"
        entries = json.loads((tmp_path / "run" / f"{name}.json").read_text())["training"]
        assert (entries["epoch"], entries["accuracy"]) == (row["epoch"], row["val_accuracy"])


def test_a_run_that_has_ended_goes_on(command, tmp_path):
    """Killed within its new epochs, it ends where it would have without that."""
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "--ema", "-o", "run")
    before = log_of("run")
    for epochs in (1, 0):
        status, _, err = command("--resume", "run", "--epochs", epochs, data=False)
        assert status == 2 and err.count("\n") == 1
    assert "--epochs 1 can" not in err and "must be 1 or more" in err
    status, out, _ = command("--resume", "run", "--epochs", 5, data=False)
    assert status == 0 and "continued from step 6" in out and "epoch 5/5" in out
    rows = log_of("run")
    assert rows[:2] == before and len(rows) == 5
    assert rows[2]["learning_rate"] > rows[3]["learning_rate"] > rows[4]["learning_rate"] == 0

    shutil.copytree("run", "again")
    for path in tmp_path.glob("again/model*"):
        path.unlink()
    saved_checkpoints_in("again")[0].unlink()
    status, _, err = command("--resume", "again", "--epochs", 9, data=False)
    assert status == 2 and "4 of 5 epochs are done: leave --epochs out, or give more once it has ended" in err
    assert "continued from step 12" in command("--resume", "again", data=False)[1]
    for name in ("model", "model_ema", "model_last", "model_ema_last"):
        assert_same(f"again/{name}.pdparams", f"run/{name}.pdparams")
    assert log_of("again") == rows


def test_a_second_run_has_a_folder_of_its_own(command, tmp_path):
    options = [*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1]
    for _ in range(3):
        assert command(*options)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "CondenseNet",
        "CondenseNet-2",
        "CondenseNet-3",
    ]
    os.remove("runs/CondenseNet-3/model.pdparams")
    assert command("--model", "CondenseNet", "--resume", data=False)[0] == 0
    assert os.path.exists("runs/CondenseNet-3/model.pdparams")


def test_the_numbers_of_the_network_are_those_of_profile(command):
    _, out, _ = command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "-o", "run")
    network = pd_.load_model("run/model.pdparams")
    assert out.startswith(f"{network.arch}, {pd_.profile(network)}, on ")


def test_a_classifier_for_as_many_classes_is_kept(command, images):
    """The first step's loss is that of the weights as they are."""
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "-o", "run")
    options = ["--batch-size", 12, "--epochs", 1, "--learning-rate", 1e-12]
    status, _, err = command("--pretrained", "run/model.pdparams", *options, "-o", "tuned")
    assert (status, err) == (0, "")
    found, before = arrays("tuned/model.pdparams"), arrays("run/model.pdparams")
    np.testing.assert_allclose(found["classifier.weight"], before["classifier.weight"], atol=1e-6)


def test_a_loss_that_is_no_number_ends_the_run(command):
    options = ["--recipe", "finetune", "--batch-size", 4, "--epochs", 9, "--learning-rate", 1e30]
    status, _, err = command(*SMALL, *options, "-o", "run")
    assert status == 1 and len(err.splitlines()) == 1
    assert "the loss is no number any more at step" in err and "with a smaller --learning-rate, or with --clip" in err


@pytest.mark.parametrize("name", ["cdnv2_a", "cdnv2_a.ppim"])
def test_it_begins_with_released_weights_by_name(command, tmp_path, monkeypatch, randomise, name):
    monkeypatch.setenv("PADDLE_DENSE_HOME", str(tmp_path))
    monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "1")
    before = randomise(pd_.create_model("cdnv2_a")).state_dict()
    network = pd_.create_model("cdnv2_a")
    network.set_state_dict(before)
    pd_.save_weights(network, tmp_path / "cdnv2_a.ppim.pdparams", {"source": {"sha256": 64 * "0"}})
    options = ["--size", 64, "--batch-size", 12, "--epochs", 1, "--learning-rate", 1e-12]
    status, out, err = command("--pretrained", name, *options, "-o", "run")
    assert status == 0 and "recipe finetune" in out, err
    found = arrays("run/model.pdparams")
    np.testing.assert_allclose(
        found["features.init_conv.weight"], before["features.init_conv.weight"].numpy(), atol=1e-6
    )
    assert found["classifier.weight"].shape[-1] == 2


def test_a_classifier_for_other_classes_is_not_kept(command, images):
    """As many classes under other names are other classes."""
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 1, "-o", "run")
    path = Path("run/model.pdparams")
    told = json.loads(path.with_suffix(".json").read_text())
    options = ["--batch-size", 12, "--epochs", 1, "--learning-rate", 1e-12]
    path.with_suffix(".json").write_text(json.dumps({**told, "classes": told["classes"][::-1]}))
    with pytest.warns(
        UserWarning, match="run/model.pdparams: its classes have other names than those of .*: the class"
    ):
        assert command("--pretrained", path, *options, "-o", "tuned")[0] == 0
    found, before = arrays("tuned/model.pdparams"), arrays(path)
    assert np.abs(found["classifier.weight"] - before["classifier.weight"]).max() > 1e-3
    name = next(iter(before))
    np.testing.assert_allclose(found[name], before[name], atol=1e-6)
    del told["classes"]  # as long as nobody knows what they are called, they may be these
    path.with_suffix(".json").write_text(json.dumps(told))
    assert command("--pretrained", path, *options, "-o", "kept")[0] == 0
    np.testing.assert_allclose(
        arrays("kept/model.pdparams")["classifier.weight"], before["classifier.weight"], atol=1e-6
    )


def test_figures_that_no_run_leaves(command):
    command(*SMALL, "--recipe", "finetune", "--batch-size", 4, "--epochs", 2, "-o", "run")
    path = saved_checkpoints_in("run")[0]
    tensors, told = read_weights(path), read_metadata(path)
    history = json.loads(told["history"])
    for change in (
        {"rows": history["rows"] * 9},
        {"rows": [["x"] * 8] * 2},
        {"rows": []},
        {"sums": None},
        {"best": 7},
        {"best": -1},
        {"best": True},
    ):
        write_weights(tensors, path, {**told, "history": json.dumps({**history, **change})})
        status, _, err = command("--resume", "run", data=False)
        assert status == 1 and "holds no figures of 2 epochs and their best weights: remove it" in err, change
    renamed = {name.replace("best.model.", "best.other."): array for name, array in tensors.items()}
    write_weights(renamed, path, told)
    status, _, err = command("--resume", "run", data=False)
    assert status == 1 and "holds best weights of 'other', which the run lacks: remove it" in err


def test_stopped_while_an_epoch_is_evaluated(images, tmp_path):
    """The epoch gets its row, with the figures of its training, when the run is continued."""
    options = [*SMALL, "--recipe", "finetune", "--batch-size", "4", "--epochs", "3"]
    finish(start(images, *options, "-o", str(tmp_path / "whole")))
    code = (
        "import os, signal, sys\n"
        "from paddle_dense.commands.train import main\n"
        "from paddle_dense.process import as_process, load_paddle\n"
        "load_paddle()\n"
        "from paddle_dense.training import run\n"
        "measure, calls = run.measure_accuracy, []\n"
        "def stopping(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return measure(*arguments)\n"
        "run.measure_accuracy = stopping\n"
        "as_process(main)\n"
    )
    folder = tmp_path / "run"
    stopped = subprocess.run(
        [sys.executable, "-c", code, "--data", str(images), *options, "-o", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )
    assert stopped.returncode == 130 and "stopped and saved at step 6" in stopped.stdout, stopped.stderr
    assert len(log_of(folder)) == 1
    finish(start(images, "--resume", str(folder)))
    assert log_of(folder) == log_of(tmp_path / "whole")
    for name in ("model", "model_last"):
        assert_same(folder / f"{name}.pdparams", tmp_path / "whole" / f"{name}.pdparams")
