"""The options of the training command: each does what it says, and a run that was cut off ends where it would have."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

paddle = pytest.importorskip("paddle")

from benchmarks import recipes
from paddle_dense import CondenseNet, save_weights
from paddle_dense.classes import imagenet, imagenet_classes
from paddle_dense.commands.train import main, parser
from paddle_dense.files.weights import read_weights
from paddle_dense.training.progress import Progress
from paddle_dense.training.recipes import RECIPES
from paddle_dense.training.run import Run, Settings

NETWORK = ["--model", "CondenseNet", "--config", "stages=1-1,growth=8-8,init_stride=2"]
COMMON = ["--size", "48", "--epochs", "3", "--batch-size", "4", "--recipe", "finetune"]
CONDCONV = ["--model", "EfficientNetCondConv", "--config", "channel_multiplier=0.25,depth_multiplier=0.5,num_experts=2"]
CSP = ["--model", "CSPDenseNet", "--config", "growth_rate=8,block_config=1-1,num_init_features=8"]
DENSENET = ["--model", "DenseNet", "--config", "growth_rate=8,block_config=1-1,num_init_features=8,small_inputs=true"]
V2 = ["--model", "CondenseNetV2", "--config", "stages=1-1,growth=8-8,fc_channel=16,group_1x1=4,group_3x3=4"]
OF_RECIPES = {
    "condensenetv2-imagenet": V2,
    "condensenet-imagenet": NETWORK,
    "condensenet-cifar": NETWORK,
    "condensenet182-cifar": NETWORK,
    "densenet-imagenet": DENSENET,
    "densenet-cifar": DENSENET,
    "cspnet-imagenet": CSP,
    "condconv-imagenet": CONDCONV,
    "digits": V2,
    "scratch": V2,
    "finetune": NETWORK,
}
OPTIONS = {
    "mixup and cutmix": [*NETWORK, *COMMON, "--mixup", "0.4", "--cutmix", "1.0", "--ema"],
    "smoothing, weights, clipping": [
        *NETWORK,
        *COMMON,
        *["--label-smoothing", "0.2", "--class-weights", "balanced", "--clip-norm", "0.5", "--mixup", "0.2"],
    ],
    "accumulation": [*NETWORK, *COMMON, "--batch-size", "2", "--accumulate", "3", "--ema"],
    "a frozen backbone, RMSProp": [
        *NETWORK,
        *COMMON,
        *["--freeze", "backbone", "--optimizer", "rmsprop", "--learning-rate", "0.01", "--weight-decay", "0.1"],
    ],
    "AdamW, rates by layer": [
        *NETWORK,
        *COMMON,
        "--optimizer",
        "adamw",
        "--learning-rate",
        "0.01",
        "--layer-decay",
        "0.5",
    ],
    "early stopping": [*NETWORK, *COMMON, "--epochs", "9", "--patience", "1", "--learning-rate", "0.5"],
    **{recipe: [*network, *COMMON, "--recipe", recipe] for recipe, network in OF_RECIPES.items()},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes in folders of their own, 13 images to train on and 3 to test on."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, light, count in (("dark", 60, 10), ("bright", 180, 6)):
        (root / name).mkdir()
        for number in range(count):
            pixels = (light + random.integers(-50, 50, (40, 40, 3))).astype("uint8")
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def train(images, tmp_path, monkeypatch, capsys):
    """``train("-o", "run")`` runs the command in an empty folder; returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, data=True):
        status = main([str(argument) for argument in ([images] if data else []) + list(arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def stop_after(step, monkeypatch):
    """Let a signal come while the callbacks of this step run."""
    original = Progress.on_train_batch_end

    def stopping(self, number, logs=None):
        original(self, number, logs)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "on_train_batch_end", stopping)


def log(folder):
    with open(Path(folder) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cut_off_within_an_epoch_it_ends_where_it_would_have(train, options):
    status, _, err = train(*options, "-o", "whole")
    assert status == 0, err
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        status, out, _ = train(*options, "-o", "run")
    assert status == 130
    assert f"stopped and saved at step {6 if '--accumulate' in options else 4}" in out
    status, _, err = train("--resume", "run", data=False)
    assert status == 0, err
    assert log("run") == log("whole")
    files = sorted(path.name for path in Path("whole").glob("*.pdparams"))
    assert files == sorted(path.name for path in Path("run").glob("*.pdparams")) and "model_last.pdparams" in files
    for file in files:
        found, expected = read_weights(f"run/{file}"), read_weights(f"whole/{file}")
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{file}: {name}")


def test_every_recipe_is_among_those_that_are_cut_off_and_that_are_shown_to_learn():
    assert RECIPES.keys() == OF_RECIPES.keys() == recipes.TASKS.keys()


def test_accumulated_batches_are_one_update(train):
    """Two halves give the weights of one whole batch, where no BN layer sees the difference."""
    frozen = [*NETWORK, *COMMON, "--freeze", "backbone", "--learning-rate", "0.1"]
    assert train(*frozen, "--batch-size", 6, "-o", "whole")[0] == 0
    assert train(*frozen, "--batch-size", 3, "--accumulate", 2, "-o", "halves")[0] == 0
    whole, halves = (read_weights(f"{name}/model_last.pdparams") for name in ("whole", "halves"))
    for name, array in whole.items():
        np.testing.assert_allclose(halves[name], array, rtol=0, atol=1e-5, err_msg=name)
    losses = [[float(row["train_loss"]) for row in log(name)] for name in ("whole", "halves")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_training_ends_early(train):
    status, out, _ = train(*OPTIONS["early stopping"], "-o", "run")
    rows = log("run")
    scores = [(float(row["val_accuracy"]), -float(row["val_loss"])) for row in rows]
    condensed = [score if float(row["density"]) < 0.3 else (-1.0, 0.0) for score, row in zip(scores, rows)]
    assert status == 0 and len(rows) == condensed.index(max(condensed)) + 2 < 9
    assert "the best epoch's" in out and json.loads(Path("run/model_last.json").read_text())["training"][
        "epoch"
    ] == len(rows)


def test_the_size_is_what_the_network_sees(images, tmp_path):
    settings = Settings(str(images), "finetune", model="CondenseNet", config={"stages": [1], "growth": [8]}, size=64)
    run = Run(settings, tmp_path)
    assert run.test_data[0][0].shape == (3, 64, 64)
    own = CondenseNet([1], [8]).preprocessing
    assert run.preprocessing.input_size == 64 != own.input_size
    assert run.preprocessing.resize / 64 == pytest.approx(own.resize / own.input_size, rel=0.01)


def test_a_recipe_brings_dropout_stochastic_depth_and_ema(images, tmp_path):
    config = {"channel_multiplier": 0.25, "depth_multiplier": 0.5, "num_experts": 2}
    run = Run(Settings(str(images), "condconv-imagenet", model="EfficientNetCondConv", config=config), tmp_path)
    assert run.network.config["drop_rate"] == 0.2 == run.network.config["drop_path_rate"] and run.keeps_ema
    own = Settings(str(images), "condconv-imagenet", model="EfficientNetCondConv", config={**config, "drop_rate": 0.5})
    assert Run(own, tmp_path).network.config["drop_rate"] == 0.5


@pytest.mark.parametrize(
    "names, kept",
    [
        ([entry.synset for entry in imagenet()], True),
        (imagenet_classes("zh"), True),
        ([entry.synset for entry in reversed(imagenet())], False),
    ],
    ids=["synsets", "Chinese", "another order"],
)
@pytest.mark.filterwarnings("ignore:.*the classifier is newly initialised:UserWarning")
def test_the_classifier_is_kept_for_imagenets_classes_by_any_name(tmp_path, names, kept):
    network = CondenseNet([1], [8], num_classes=1000, condensed=False)
    network.classes = imagenet_classes()
    save_weights(network, tmp_path / "model.pdparams")
    for part in ("train", "val"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{part}.png")
        lines = [f"{part}.png {number}\n" for number in range(1000)]
        (tmp_path / f"{part}_list.txt").write_text("".join(lines))
    lines = [f"{number} {name}\n" for number, name in enumerate(names)]
    (tmp_path / "label_list.txt").write_text("".join(lines), encoding="utf-8")
    run = Run(Settings(str(tmp_path), "finetune", pretrained=str(tmp_path / "model.pdparams")), tmp_path)
    assert paddle.equal_all(run.network.classifier.weight, network.classifier.weight).item() is kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "lion"], "unknown optimizer 'lion': choose one of sgd, rmsprop, adam, adamw"),
        (["--optimizer", "adamw"], "--optimizer adamw needs a --learning-rate of its own: 0.01 of recipe finetune"),
        (["--size", "8"], "size=8 must be from 32 to 4096"),
        (["--mixup", "-1"], "mixup=-1.0 must be 0 or more and finite"),
        (["--label-smoothing", "1.5"], "label_smoothing=1.5 must be from 0 to 1"),
        (["--clip-norm", "0"], "clip_norm=0.0 must be above 0 and finite"),
        (["--accumulate", "0"], "--accumulate 0 must be 1 or more"),
        (["--patience", "0"], "--patience 0 must be 1 or more"),
        (["--class-weights", "1,2,3"], "--class-weights '1,2,3' must be 'balanced', or 2 numbers from 0"),
        (["--freeze", "stem"], "--freeze 'stem' is no parameter's name: take one as features.init_conv.weight"),
    ],
)
def test_options_that_cannot_be(train, tmp_path, options, message):
    status, _, err = train(*NETWORK, *COMMON, *options)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.pdparams"))


# Files of options


def test_a_run_leaves_a_file_to_train_again_with(train):
    options = [*OPTIONS["mixup and cutmix"], "--seed", "3", "--val-split", "0.3"]
    assert train(*options, "-o", "run")[0] == 0
    pytest.importorskip("yaml", reason="pip install pyyaml")
    status, _, err = train("--config-file", "run/config.yaml", "-o", "again", data=False)
    assert (status, err) == (0, "") and log("again") == log("run")
    assert Path("again/config.yaml").read_text() == Path("run/config.yaml").read_text()
    for name in ("model", "model_ema_last"):
        found, expected = read_weights(f"again/{name}.pdparams"), read_weights(f"run/{name}.pdparams")
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_the_command_line_comes_before_the_file(train, images):
    pytest.importorskip("yaml", reason="pip install pyyaml")
    Path("mine.yaml").write_text(
        "# as one writes it\n"
        "data: nowhere\nmodel: CondenseNet\nconfig:\n  stages: [1, 1]\n  growth: [8, 8]\n  init_stride: 2\n"
        "recipe: finetune\nepochs: 7\nbatch_size: 4\nsize: 48\namp: false\nema: true\n"
        "class-weights: [1, 2.5]\noutput: run\n"
    )
    status, out, err = train("--config-file", "mine.yaml", "--epochs", "1")
    assert (status, err) == (0, "") and "epoch 1/1" in out and Path("run/model_ema.pdparams").exists()
    said = Path("run/config.yaml").read_text()
    assert "epochs: 1\n" in said and 'class-weights: "1,2.5"\n' in said and f'data: "{images}"\n' in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch: 3\n", "mine.yaml: has 'epoch', which is no option of this command: see --help"),
        (b"config-file: mine.yaml\n", "mine.yaml: has 'config-file', which is no option of this command"),
        (b"ema: 1\n", "mine.yaml: has 1 for ema: give true or false"),
        (b"epochs: {a: {b: 1}}\n", "mine.yaml: has a dict for 'epochs': write it as on the command line"),
        (b"- epochs\n", "mine.yaml: is no mapping of options to their values"),
        (b"epochs: [1\n", "mine.yaml: is no YAML ("),
        (b"!!python/object/apply:os.system ['touch hacked']\n", "mine.yaml: is no YAML ("),
        (b"a: &a [x]\nb: " + b"[" * 5000, "mine.yaml: is no YAML ("),
        (b"\xff\xfe\x00", "mine.yaml: is no YAML ("),
        (b"x" * (2 << 20), "mine.yaml: has more than 1,048,576 bytes"),
        (None, "mine.yaml: cannot be read"),
    ],
    ids=range(11),
)
def test_a_file_that_is_none_of_options(train, tmp_path, content, message):
    pytest.importorskip("yaml", reason="pip install pyyaml")
    if content is not None:
        Path("mine.yaml").write_bytes(content)
    status, _, err = train("--config-file", "mine.yaml")
    assert status == 1 and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["mine.yaml"])


def test_weights_are_evaluated_on_the_images_that_their_run_held_out(train):
    train(*NETWORK, *COMMON, "--epochs", 1, "--seed", 3, "-o", "run")
    evaluate = ["--pretrained", "run/model_last.pdparams", "--eval-only"]
    status, by_run, _ = train("--resume", "run", "--eval-only", data=False)
    assert status == 0 and train(*evaluate) == (0, by_run, "") and "note" not in by_run
    by_other = train(*evaluate, "--seed", 0)[1]
    assert by_other != by_run and "note" not in by_other
    sidecar = Path("run/model_last.json")
    told = json.loads(sidecar.read_text())
    for training in ({}, [], {"seed": "3"}, {"seed": -1}, {"seed": True}, {"seed": 2**63}):
        sidecar.write_text(json.dumps({**told, "training": training}))
        status, out, _ = train(*evaluate)
        assert status == 0 and out.endswith(by_other)
        assert "run/model_last.pdparams does not say by which seed it was trained: if it learned from this data" in out


def test_every_setting_is_an_option():
    known = {action.dest for action in parser()._actions}
    assert set(Settings.__dataclass_fields__) <= known
