"""The benchmark of latency: which networks and peers, what must move, what is kept between runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from benchmarks import latency, runners
from paddle_dense.models import DenseNet
from paddle_dense.zoo import list_models

ROOT = Path(__file__).resolve().parents[1]


def test_every_family_is_measured():
    assert set(latency.NETWORKS) <= set(list_models())
    assert {name.partition("_")[0] for name in latency.NETWORKS} >= {"cdnv2", "condensenet74", "cspdarknet53", "tf"}
    for network in latency.NETWORKS:
        assert latency.suits("torch_eager", network)
        assert runners.origin(network) in ("timm", "torchvision.models", "twin")


def test_the_bytes_that_move():
    network = DenseNet(growth_rate=2, block_config=[1], num_init_features=4, bn_size=1, num_classes=3)
    network.eval()
    moved = latency.moved(network, 32)
    # conv0 3 -> 4, 32 to 16; conv1 4 -> 2 and conv2 2 -> 2, at 8 after the pooling; classifier 6 -> 3
    numbers = (3 * 32**2 + 4 * 16**2) + (4 + 2 + 2 + 2) * 8**2 + (6 + 3)
    assert moved["activations"] == 4 * numbers
    assert moved["weights"] == 4 * sum(parameter.size for parameter in network.parameters())
    assert network(paddle.zeros([1, 3, 32, 32])).shape == [1, 3] and not network.features.conv0._forward_post_hooks


def test_limits_grow_with_the_batch_but_weights_move_once():
    result = {"macs": 2e9, "weights": 10e6, "activations": 5e6}
    assert latency.limits(result, 1, (1e12, 1e9)) == (2.0, 15.0)
    assert latency.limits(result, 8, (1e12, 1e9)) == (16.0, 50.0)


def test_earlier_runs_tell_how_long_it_takes():
    earlier = [{"network": "cdnv2_a", "seconds": 12.5, "batches": {"1": {}, "8": {}}}]
    assert latency.estimate("cdnv2_a", earlier, (1, 8), 5, ["torch_eager"]) == 12.5
    guessed = [latency.estimate(name, earlier, (1, 8), 5, ["torch_eager"]) for name in ("cdnv2_b", "densenet161")]
    assert 0 < guessed[0] < guessed[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--networks", "resnet50"], "--networks resnet50: choose from "),
        (["--families", "ResNet"], "--families ResNet: choose from CondenseNetV2, "),
        (["--runners", "tvm"], "--runners tvm: choose from paddle_eager, "),
        (["--continue"], "--continue needs the --json FILE of the run to continue"),
    ],
)
def test_what_cannot_be_measured(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["latency", *arguments])
    with pytest.raises(SystemExit) as ended:
        latency.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_continued(tmp_path):
    kept = tmp_path / "latency.json"
    command = [sys.executable, "-m", "benchmarks.latency", "--batches", "1,2", "--rounds", "1", "--json", str(kept)]
    command += ["--runners", "paddle_eager,paddle_inference_fused", "--continue", "--networks"]
    first = subprocess.run([*command, "condensenet50"], capture_output=True, text=True, cwd=ROOT, check=True)
    before = json.loads(kept.read_text())
    assert "1 networks, about" in first.stdout and [*before["results"][0]["batches"]] == ["1", "2"]
    rows = before["results"][0]["batches"]["1"]
    assert all(row["ms"] > 0 and (row["memory"] or 1) > 0 for row in rows.values()) and len(rows) == 2
    again = subprocess.run(
        [*command, "condensenet50,cdnv2_cifar10"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    after = json.loads(kept.read_text())
    assert "1 networks, about" in again.stdout and "; 1 are kept" in again.stdout
    assert after["results"][0] == before["results"][0] and len(after["results"]) == 2
