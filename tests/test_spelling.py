"""Tables of names, read in both directions, and what the user says of a file's names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_dense.files.layout import to_torch
from paddle_dense.files.spelling import Selection, Spelling, Template
from paddle_dense.models.network import networks
from tests.helpers import SMALL, arrays, small

SPELLINGS = [
    pytest.param(network, spelling, id=f"{network.__name__}, {spelling.source}")
    for network in networks()
    for spelling in network.spellings
]


@pytest.mark.parametrize(
    ("text", "name", "values", "rest"),
    [
        ("a{b}.c", "a12.c.weight", {"b": "12"}, ".weight"),
        ("a{b}.c", "a12.c", {"b": "12"}, ""),
        ("a{b-1}.c", "a0.c.w", {"b": "1"}, ".w"),
        ("a{b+1}.c", "a2.c.w", {"b": "1"}, ".w"),
        ("a{b+1}.d{b+1}", "a2.d2.w", {"b": "1"}, ".w"),
        ("a.{part}.c", "a.x_1.c.w", {"part": "x_1"}, ".w"),
    ],
)
def test_templates_match_and_fill(text, name, values, rest):
    assert Template(text).match(name) == (values, rest)
    assert Template(text).fill(values) + rest == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a{b}.c", "a1.cc"),  # only whole parts
        ("a{b}", "a1x.w"),
        ("a{b}.c", "xa1.c.w"),
        ("a{b}.c", "a01.c.w"),  # no number has two spellings
        ("a{b}.c", "a１.c.w"),  # digits are ASCII
        ("a{b}.c", "a1234567.c.w"),  # nor is it endless
        ("a{b+1}.c", "a0.c.w"),  # no number below 0
        ("a{b+1}.d{b+1}", "a2.d3.w"),  # one number, one value
        ("a.c", "a-c.w"),  # the dot is a dot
    ],
)
def test_what_only_resembles_a_template_does_not_match(text, name):
    assert Template(text).match(name) is None


@given(b=st.integers(1, 999), layer=st.integers(1, 999), k=st.integers(1, 9))
def test_templates_are_read_both_ways(b, layer, k):
    theirs, ours = Template("s{b-1}.u{l+2}.c{k}"), Template("f{b}.d{l}.n{k}")
    name = f"f{b}.d{layer}.n{k}.weight"
    found, rest = ours.match(name)
    other = theirs.fill(found) + rest
    assert other == f"s{b - 1}.u{layer + 2}.c{k}.weight"
    assert theirs.match(other) == (found, rest)


@pytest.mark.parametrize(("network", "spelling"), SPELLINGS)
def test_every_spelling_gives_back_the_names_that_it_was_given(network, spelling):
    kinds = [kind for kind, (name, _) in SMALL.items() if name == network.__name__]
    for kind in kinds:
        for name in to_torch(arrays(small(kind))):
            for theirs in spelling.all_theirs(name):
                assert spelling.ours(theirs) == name, theirs


def test_the_first_row_that_matches_applies_and_other_names_stay():
    spelling = Spelling("somebody", (("a.b", "x"), ("a", "y"), ("old", "x")))
    assert [spelling.ours(name) for name in ("a.b.w", "a.c.w", "ab.w", "old.w")] == ["x.w", "y.c.w", "ab.w", "x.w"]
    assert spelling.theirs("x.w") == "a.b.w"
    assert spelling.all_theirs("x.w") == ["a.b.w", "old.w"]
    assert spelling.all_theirs("z.w") == ["z.w"]


def test_a_selection_renames_before_it_chooses():
    selection = Selection(drop=("*.loss", "aux.*"), rename=(("enc.{n}", "f.{n+1}"), ("strip", "")), part="f.")
    assert selection.renamed("enc.0.w") == "f.1.w"
    assert selection.renamed("strip.f.w") == "f.w"  # no dot is left in front
    assert selection.renamed(".w") == ".w"  # where the user says nothing, a name stays
    kept = [name for name in ("enc.0.w", "enc.0.loss", "aux.w", "g.w", "strip.f.w") if selection.keeps(name)]
    assert kept == ["enc.0.w", "strip.f.w"]
