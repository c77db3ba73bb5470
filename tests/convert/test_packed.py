"""Checkpoints in archives, packed by Python's own modules: read as they are without the archive, or refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from functools import cache, partial
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from convert import torch2paddle
from convert.command import default_target
from paddle_dense.errors import WeightsError
from paddle_dense.files import open_weights, read_checkpoint
from tests.security.hostile import archive, tarred

CHECKPOINT = Path(__file__).resolve().parents[1] / "data" / "cdnv2_tiny_converted.pth"


zipped = partial(archive, compression=zipfile.ZIP_DEFLATED)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "net.pth.zip": lambda content: zipped({"densenet-0685.pth": content}),
    "stored.pth.zip": lambda content: archive({"densenet.pth": content}),
    "folder.zip": lambda content: zipped(
        {"a/": b"", "a/README.md": b"x", "__MACOSX/a/._n.pth": b"x", "a/n.pth": content}
    ),
    "project.zip": lambda content: zipped({"a/code/net.py": b"x", "a/data/0": b"x", "a/data/net.pth": content}),
    "net.pth.gz": gzip.compress,
    "net.tar": lambda content: tarred({"a/net.pth": content, "a/LICENSE": b"x"}),
    "gnu.tar": lambda content: tarred({"long" * 60 + "/net.pth": content}, form=tarfile.GNU_FORMAT),
    "pax.tar": lambda content: tarred({"long" * 60 + "/net.pth": content}),
    "net.tar.gz": lambda content: gzip.compress(tarred({"net.pth": content})),
    "net.zip.gz": lambda content: gzip.compress(zipped({"net.pth": content})),
    "net.gz.zip": lambda content: archive({"net.pth.gz": gzip.compress(content)}),
    "net.gz.tar": lambda content: tarred({"README": b"x", "net.pth.gz": gzip.compress(content)}),
    "net.zip.tar": lambda content: tarred({"net.pth.zip": zipped({"net.pth": content})}),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_checkpoint_in_an_archive_is_read_as_without_it(tmp_path, name):
    content = PACKED[name](CHECKPOINT.read_bytes())
    (tmp_path / name).write_bytes(content)
    expected = read_checkpoint(CHECKPOINT).state
    for found in (
        read_checkpoint(tmp_path / name).state,
        (opened := open_weights(tmp_path / name, hashes=("sha256",))).tensors,
    ):
        assert list(found) == list(expected)
        for tensor, array in expected.items():
            np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)
    assert opened.digest() == hashlib.sha256(content).hexdigest() and opened.size == len(content)
    assert opened.format == "PyTorch, unpacked"


def test_the_target_has_the_name_without_the_archives():
    for name in ("net.pth.zip", "net.pth.tar.gz", "net.gz", "net.tar"):
        assert default_target(Path(name), "pdparams") == Path("net.pdparams")


def edited(content: bytes, at: int, change: bytes) -> bytes:
    at %= len(content)
    return content[:at] + change + content[at + len(change) :]


def nested_bomb() -> bytes:
    """An archive in an archive, each of which unpacks to less than 100 times its own size."""
    inner = io.BytesIO(zipped({"net.pth": bytes(9_000_000)}))
    with zipfile.ZipFile(inner, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("NOTES", np.random.default_rng(0).bytes(3000) + bytes(200_000))
    middle = inner.getvalue()
    outer = gzip.compress(middle)
    assert 100 * len(middle) > 9_000_000 and len(middle) < 100 * len(outer)
    return outer


def of_kind(name: str, content: bytes, mode: int) -> bytes:
    """A zip archive with an entry that is a link or a device, as its mode says."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.create_system, entry.external_attr = 3, mode << 16
        archive.writestr(entry, content)
    return file.getvalue()


def in_directory(content: bytes, at: int, change: bytes) -> bytes:
    """A zip archive of one checkpoint with other bytes in its directory."""
    packed = archive({"net.pth": content})
    return edited(packed, packed.rindex(b"PK\x01\x02") + at, change)


@cache
def bad(content: bytes) -> dict[str, tuple[bytes, str]]:
    packed = gzip.compress(content)
    bomb = gzip.compress(bytes(50_000_000))
    two = {"a.pth": content, "b.pth": content}
    return {
        "gzip bomb": (bomb, "would unpack to 50,000,000 bytes, more than 100 times"),
        "gzip bomb that says less": (edited(bomb, -4, struct.pack("<L", 1000)), "unpacks to more than it says"),
        "zip bomb in a gzip archive": (nested_bomb(), "would unpack to 9,000,000 bytes, more than 100 times"),
        "zip bomb": (zipped({"net.pth": bytes(50_000_000)}), "would unpack to 50,000,000 bytes"),
        "zip bomb in a zip": (
            archive({"net.zip": zipped({"net.pth": bytes(50_000_000)})}),
            "would unpack to 50,000,000",
        ),
        "gzip bomb in a tar": (tarred({"net.pth.gz": bomb}), "would unpack to 50,000,000 bytes"),
        "gzip bomb in a zip": (archive({"net.pth.gz": bomb}), "would unpack to 50,000,000 bytes"),
        "zip that says more": (
            in_directory(content, 24, struct.pack("<L", 2**32 - 2)),
            "would unpack to 4,294,967,294",
        ),
        "gzip cut short": (packed[:-100], "would unpack|cut short|damaged|more than it says"),
        "gzip that goes on": (packed + packed, "goes on after its end"),
        "gzip damaged": (edited(packed, len(packed) // 2, b"\xff\xff\xff\xff"), "damaged|cut short"),
        "zip damaged": (edited(zipped({"net.pth": content}), 5000, b"\xff\xff\xff\xff"), "damaged|cut short|agree"),
        "three deep": (gzip.compress(gzip.compress(gzip.compress(content))), "archive in archives"),
        "two in a zip": (zipped(two), "several checkpoints, among 'a.pth', 'b.pth'"),
        "two in a tar": (tarred(two), "several checkpoints, among 'a.pth', 'b.pth'"),
        "none in a zip": (zipped({"a.txt": b"x", "b.txt": b"y"}), "without a PyTorch state .*, among 'a.txt', 'b.txt'"),
        "none in a tar": (tarred({"a.txt": b"x", "b.txt": b"y"}), "without a PyTorch state .*, among 'a.txt', 'b.txt'"),
        "out of a tar": (tarred({"../net.pth": content}), r"lead out of an archive, among '\.\./net.pth'"),
        "absolute in a tar": (tarred({"/tmp/net.pth": content}), "lead out of an archive"),
        "out of a zip": (zipped({"a/../../net.pth": content}), "lead out of an archive"),
        "a link in a tar": (tarred({"net.pth": b""}, kind=tarfile.SYMTYPE), "links or names"),
        "a hard link in a tar": (tarred({"net.pth": b""}, kind=tarfile.LNKTYPE), "links or names"),
        **{
            f"{what} in a tar": (tarred({"net.pth": b"", "a.pth": b""}, kind=kind), "links or names")
            for what, kind in (("device", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE), ("pipe", tarfile.FIFOTYPE))
        },
        "a sparse file in a tar": (tarred({"net.pth": b""}, kind=tarfile.GNUTYPE_SPARSE), "links or names"),
        "a link in a zip": (of_kind("net.pth", b"/etc/passwd", 0o120777), "links or names"),
        "a device in a zip": (of_kind("net.pth", content, 0o020666), "links or names"),
        "a pipe in a zip": (of_kind("net.pth", content, 0o010666), "links or names"),
        "absolute in a zip": (archive({"/tmp/net.pth": content}), "lead out of an archive, among '/tmp/net.pth'"),
        "on a drive in a zip": (archive({"C:net.pth": content}), "lead out of an archive, among 'C:net.pth'"),
        "for Windows in a tar": (tarred({"..\\net.pth": content}), "lead out of an archive"),
        "null in a zip": (in_directory(content, 46 + 3, b"\0"), "lead out of an archive"),
        "twice in a tar": (tarred({"net.pth": b""})[:512] + tarred({"net.pth": content}), "'net.pth' twice"),
        "encrypted in a zip": (in_directory(content, 8, b"\1"), "encrypted or out of its place"),
        "tar cut short": (tarred({"net.pth": content})[:5000], "cut short or damaged"),
        "many in a tar": (tarred({f"{n}.txt": b"" for n in range(1001)}), "more than 1000 entries"),
        "shards in a zip": (
            zipped(
                {"a/net-00001-of-00002.bin": content, "a/net-00002-of-00002.bin": content, "a/net.index.json": b"{"}
            ),
            "an archive with shards of a checkpoint, among .*: unpack it and give their index",
        ),
        "a shard in a tar": (tarred({"net-00001-of-00002.safetensors": content}), "an archive with shards"),
        "empty in a zip": (zipped({"net.pth": b""}), "holds an empty file"),
        "bzip2 in a zip": (archive({"net.pth": content}, zipfile.ZIP_BZIP2), "compressed in an unusual way"),
        "bzip2": (bz2.compress(content), "compressed with bzip2: unpack it"),
    }


@pytest.mark.parametrize("kind", bad(b""))
def test_bad_archives_are_refused_in_a_sentence(tmp_path, kind):
    content, message = bad(CHECKPOINT.read_bytes())[kind]
    (tmp_path / "net.pth").write_bytes(content)
    for read in (read_checkpoint, open_weights):
        with pytest.raises(WeightsError, match=message) as caught:
            read(tmp_path / "net.pth")
        assert str(caught.value).startswith(f"{tmp_path / 'net.pth'}: ") and "\n" not in str(caught.value)
    assert torch2paddle.main([str(tmp_path / "net.pth")]) == torch2paddle.FAILED
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]
