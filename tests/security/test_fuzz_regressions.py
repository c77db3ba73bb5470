"""What the fuzzer has found, each as small as it gets."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from fuzz.fuzz_readers import check


def test_a_bool_without_dimensions_is_an_array():
    """numpy's comparison had made a scalar of it, which no writer takes."""
    torch = pytest.importorskip("torch", reason="writes the file")
    file = io.BytesIO()
    torch.save({"ready": torch.tensor(True)}, file)
    found = check("checkpoint", file.getvalue())
    assert type(found["ready"]) is np.ndarray and found["ready"].shape == () and found["ready"].dtype == bool


def pickled(value: object) -> bytes:
    """Instructions that leave a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def test_a_slice_whose_name_is_nested_a_million_times():
    """Hashing it had used up the stack of the process: a .pdparams file of 1 MB ended Python."""
    name = b")" + b"\x85" * 1_000_000
    pieces = (
        b"}" + pickled("w") + b"}(" + pickled("slices") + b"]" + name + b"a" + pickled("OriginShape") + b"Nu" + b"s"
    )
    program = b"\x80\x02" + pickled({"b": np.ones(2, "f4")}) + pickled("UnpackBigParamInfor@@") + pieces + b"s."
    assert check("pdparams", program) is None


def test_slices_of_several_dtypes():
    """Joined they had taken eight times the memory of the file's arrays, and the numbers were nobody's."""
    slices = {"w@@.0": np.ones(8, "u1"), "w@@.1": np.ones(1, "f8")}
    pieces = {"w": {"OriginShape": (9,), "slices": list(slices)}}
    assert check("pdparams", pickle.dumps({**slices, "UnpackBigParamInfor@@": pieces}, 2)) is None


@pytest.mark.parametrize(
    "header",
    [
        b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"\\ud800":"a"},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"a":"\\ud800"},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}',
    ],
)
def test_headers_that_the_safetensors_library_refuses(header):
    """Names that cannot be written or printed had been read; and so had -0."""
    content = len(header).to_bytes(8, "little") + header + b"1"
    assert check("safetensors", content) is None and check("checkpoint", content) is None
    library = pytest.importorskip("safetensors", reason="shows that it does refuse them")
    with pytest.raises(library.SafetensorError):
        library.deserialize(content)


@pytest.mark.parametrize("text", [rb"\400", b"\\\x00", rb"\8", rb"\x0", b"\\"])
def test_strings_with_escapes_that_nobody_writes(text, recwarn):
    """Python only warned of some, on the user's terminal."""
    content = b"}S'" + text + b"'\nNs."
    assert check("pdparams", content) is None and not recwarn
