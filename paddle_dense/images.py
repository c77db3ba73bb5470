"""Images from anybody's files: photographic formats only, regular files, a bounded number of pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from http.client import HTTPException
from typing import BinaryIO, NoReturn, Union
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

from paddle_dense.errors import DataError, shown
from paddle_dense.files.weights import open_file

# Pillow has many more, and hands some of them to other programs: EPS, whatever its name ends in, to Ghostscript.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
MAX_PIXELS = 1 << 27  # 134 million; Pillow warns from two thirds of that on, and gives up at four thirds
MAX_ASPECT = 1000  # of the longer side to the shorter one, which is what images are scaled by
_MAX_DOWNLOAD = 1 << 26  # bytes of an image behind a URL
_PATIENCE = 30.0  # seconds that a server may be silent

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]


def read_image(path: str | os.PathLike, mode: str = "RGB", upright: bool = False) -> Image.Image:
    """The image of a file; of 16 bits the upper 8 are taken, of an animation the first frame.

    Args:
        path: a regular file, or a link to one.
        mode: ``"RGB"`` or ``"L"`` (grey).
        upright: turn it as its EXIF orientation says, which data sets' readers do not do.

    Raises:
        DataError: it is no such file, none of `FORMATS`, damaged, too large, or of more than 16 bits.
    """
    try:
        # An open file and not its name, which Pillow would map into memory: being cut then ends the process.
        with open_file(path) as file:
            return _decoded(file, path, mode, upright)
    except DataError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise _too_large(path) from error
    except Exception as error:  # there is hardly a kind that a damaged image has not made Pillow raise
        raise DataError(f"{path}: cannot be read as an image: replace it or take it out") from error


def any_image(image: ImageLike, mode: str = "RGB") -> Image.Image:
    """An image as people hand it over, upright as its EXIF orientation says.

    Args:
        image: a path, a URL of http or https, an image of Pillow, or an array of uint8 [H, W], [H, W, 1], [H, W, 3]
            or [H, W, 4]. What lies below a transparent pixel is taken as it is, as Pillow's `convert` does.
        mode: ``"RGB"`` or ``"L"`` (grey).

    Raises:
        DataError: it cannot be read, see `read_image`; or is no such array.
    """
    if isinstance(image, (str, os.PathLike)):
        return _downloaded(str(image), mode) if is_url(image) else read_image(image, mode, upright=True)
    if isinstance(image, np.ndarray):
        shape = image.shape
        if image.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
            raise DataError(
                f"an array of {image.dtype} {list(shape)} is no image: give uint8 [H, W], [H, W, 3] or [H, W, 4]"
            )
        image = Image.fromarray(image[..., 0] if shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise DataError(f"a {type(image).__name__} is no image: give a path, an image of Pillow or an array of uint8")
    return _converted(_upright(image), f"an image of mode {image.mode}", mode)


def is_url(image: ImageLike) -> bool:
    """Whether this is an address of http or https."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def images_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Paths of the images in a folder and those inside it, in order; hidden ones are left out, links are followed once.

    Raises:
        DataError: a folder cannot be read.
    """
    seen = set()
    for path, folders, names in os.walk(os.fspath(folder), onerror=_unreadable, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # come back to through a link
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(path, name)


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}): check who may read it") from error


def _downloaded(url: str, mode: str) -> Image.Image:
    try:
        with urlopen(url, timeout=_PATIENCE) as answer:  # it follows redirections to http, https and ftp only
            content = answer.read(_MAX_DOWNLOAD + 1)
            if answer.length and len(content) <= _MAX_DOWNLOAD:
                raise OSError("only a part of it came")
    except (OSError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{shown(url, 200)} cannot be downloaded ({reason}): check the address") from error
    if len(content) > _MAX_DOWNLOAD:
        raise DataError(f"{shown(url, 200)} has more than {_MAX_DOWNLOAD >> 20} MB: save it smaller")
    try:
        return _decoded(io.BytesIO(content), url, mode, upright=True)
    except DataError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise _too_large(url) from error
    except Exception as error:
        raise DataError(f"{shown(url, 200)} is no image that can be read: give the address of the image") from error


def _decoded(file: BinaryIO, path: str | os.PathLike, mode: str, upright: bool) -> Image.Image:
    """The image in an open file; anything may be raised if it is damaged."""
    with Image.open(file, formats=FORMATS) as image:
        _check_size(path, *image.size)
        return _converted(_upright(image) if upright else image, f"{path}:", mode)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, where it says something that can be read."""
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # of damaged EXIF: the pixels may be well
        return image


def _converted(image: Image.Image, name: str, mode: str) -> Image.Image:
    """In another mode; of 16 bits the upper 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode not in ("I", "F"):  # which Pillow would cut off at 255
        return image.convert(mode)
    raise DataError(f"{name} has more than 16 bits a pixel: save it with 8")


def _check_size(path: str | os.PathLike, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if not width or not height:
        raise ValueError("an empty image")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"{path}: has {width} x {height} pixels, and one side may be {MAX_ASPECT} times the other at most: cut it "
            f"or take it out"
        )


def _too_large(path: str | os.PathLike) -> DataError:
    return DataError(
        f"{path}: has more than {MAX_PIXELS:,} pixels, or more than there is memory free for: scale it down or take "
        f"it out"
    )
