"""The learning rate at every step."""

import math

import pytest

from paddle_dense.training import WarmupCosine


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule())
        schedule.step()
    return found


def test_it_rises_linearly_and_falls_along_a_cosine():
    found = rates(WarmupCosine(0.4, total_steps=100, warmup_steps=4, warmup_start=0.1), 101)
    assert found[:4] == pytest.approx([0.1, 0.175, 0.25, 0.325])
    assert found[4:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 100)) for step in range(4, 101)])
    assert found[50] == pytest.approx(0.2)
    assert found[100] == 0


def test_no_warm_up():
    assert rates(WarmupCosine(1.0, total_steps=2), 3) == pytest.approx([1.0, 0.5, 0.0])


def test_a_continued_schedule_has_exactly_the_same_rates():
    whole = rates(WarmupCosine(0.1, 50, 5, 0.01), 50)
    first = WarmupCosine(0.1, 50, 5, 0.01)
    begun = rates(first, 20)
    second = WarmupCosine(0.1, 50, 5, 0.01)
    second.set_state_dict(first.state_dict())
    assert begun + rates(second, 30) == whole


def test_a_warm_up_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=10 must be 0 or more and fewer than total_steps=10"):
        WarmupCosine(0.1, total_steps=10, warmup_steps=10)
