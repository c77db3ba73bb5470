"""Images of strangers: what is no photograph, never ends, or is too large is refused, and no other program runs."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from paddle_dense.errors import DataError
from paddle_dense.images import MAX_PIXELS, read_image

CANNOT = "cannot be read as an image: replace it or take it out"


ROOT = Path(__file__).resolve().parents[1]


def eps() -> bytes:
    """Encapsulated PostScript, which Pillow has Ghostscript draw."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def empty_png(width: int, height: int) -> bytes:
    """A black image, a thousandth of a byte a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    lines = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.fixture
def called(tmp_path, monkeypatch) -> Path:
    """The file that appears when somebody starts Ghostscript, which is a stub here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path / 'called'}'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    return tmp_path / "called"


def sentence(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)[len(f"{path}: ") :]


@pytest.mark.skipif(os.name == "nt", reason="the stub is a shell script")
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.eps"])
def test_no_image_starts_ghostscript(tmp_path, called, name):
    (tmp_path / name).write_bytes(eps())
    assert sentence(tmp_path / name) == CANNOT
    assert not called.exists()
    with pytest.raises(Exception), Image.open(tmp_path / name) as image:  # noqa: B017  the stub draws nothing
        image.load()
    assert called.exists()  # so the file is a real attack


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "SGI", "PDF", "JPEG2000", "ICNS"])
def test_formats_of_no_photographs_are_not_decoded(tmp_path, kind):
    """Their decoders are seldom looked at, and no data set has them."""
    try:
        Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg", kind)
    except OSError:
        pytest.skip("this Pillow cannot write it")
    assert sentence(tmp_path / "x.jpg") == CANNOT


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photographs_are_read_whatever_their_name(tmp_path, kind, mode):
    Image.new("RGB", (20, 10), (90, 90, 90)).save(tmp_path / "x.jpg", kind)
    image = read_image(tmp_path / "x.jpg", mode)
    assert (image.mode, image.size) == (mode, (20, 10))
    assert abs(np.asarray(image, "i4") - 90).max() <= 3


def test_a_palette_with_transparency_is_read_as_before(tmp_path):
    palette = Image.linear_gradient("L").convert("P")
    palette.save(tmp_path / "x.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow would rather have RGBA
        found = np.asarray(read_image(tmp_path / "x.png"))
        np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))


def test_exif_data_that_are_none_are_not_looked_at(tmp_path):
    for number, exif in enumerate((b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.jpg", exif=exif)
        assert read_image(tmp_path / f"{number}.jpg").size == (16, 16)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_images_that_were_cut_short_are_refused(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", kind)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: int(share * len(content))])
    assert sentence(tmp_path / "x.jpg") == CANNOT


# These waited for somebody to write, or read without end.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "/dev/zero", "/dev/stdin", "folder", "nowhere"])
def test_only_regular_files_are_images(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    if kind == "/dev/stdin" and os.path.isfile(kind):
        pytest.skip("the tests read from a file")
    assert sentence(path) == CANNOT


def test_the_number_of_pixels_is_bounded(tmp_path):
    (tmp_path / "x.png").write_bytes(empty_png(14000, 14000))
    assert (tmp_path / "x.png").stat().st_size < 50_000
    said = f"has more than {MAX_PIXELS:,} pixels, or more than there is memory free for: scale it down or take it out"
    assert sentence(tmp_path / "x.png") == said
    (tmp_path / "y.png").write_bytes(empty_png(1 << 14, (1 << 13) + 1))  # below what Pillow itself refuses
    with pytest.warns(Image.DecompressionBombWarning):
        assert sentence(tmp_path / "y.png") == said


@pytest.mark.parametrize(("width", "height"), [(90_000, 1), (1, 90_000)])
def test_a_strip_is_no_image(tmp_path, width, height):
    """Scaled until its shorter side is a network's, it would take gigabytes."""
    (tmp_path / "x.png").write_bytes(empty_png(width, height))
    assert sentence(tmp_path / "x.png").startswith(f"has {width} x {height} pixels, and one side may be 1000 times")


def test_an_image_without_pixels_is_none(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"P6 0 0 255\n")
    assert sentence(tmp_path / "x.ppm") == CANNOT


def test_there_is_one_reader_of_images():
    folders = ("paddle_dense", "convert", "benchmarks", "notebooks", "docs")
    files = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.*"))]
    sources = [path for path in files if path.suffix in (".py", ".ipynb", ".md")]
    users = [path for path in sources if "Image.open(" in path.read_text(encoding="utf-8")]
    assert users == [ROOT / "paddle_dense" / "images.py"]
