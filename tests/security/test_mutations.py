"""Damaged checkpoints of every kind end as a correct conversion or as one sentence; the command runs 2000 of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-W", "ignore", "-m", "fuzz.mutations"]

pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")
pytest.importorskip("safetensors", reason="an independent reader of its files: pip install safetensors")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs every mutation in a forked process")


def test_a_hang_is_ended_and_a_pause_is_none(tmp_path, monkeypatch):
    from fuzz import mutations

    def paused() -> int:
        if not os.fork():
            time.sleep(4)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    monkeypatch.setattr(mutations, "SECONDS", 2)
    assert mutations.in_process(paused, tmp_path).status == 0
    assert mutations.in_process(lambda: time.sleep(600), tmp_path).status == -signal.SIGKILL


def test_every_mutation_of_every_kind_ends_well(tmp_path):
    run = subprocess.run(
        [*COMMAND, "--count", "92", "--seed", "7"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines()]
    totals = {row[0]: row[2:6] for row in rows if row[1] == "all"}
    kinds = {"zip .pth", "old .pth", ".pth.tar", ".safetensors", ".pdparams", "whole module"}
    kinds |= {".zip", ".tar", ".gz in a .zip", ".zip in a .tar", "index of shards", "shard"}
    assert set(totals) == {*kinds, "all"}
    count, converted, refused, other = map(int, totals["all"])
    assert count == converted + refused == 92 and other == 0 and converted > 10 and refused > 40
    assert list(tmp_path.iterdir()) == [], "offenders would be saved here"
