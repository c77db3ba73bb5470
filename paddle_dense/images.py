"""Images from anybody's files: photographic formats only, regular files, a bounded number of pixels."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from paddle_dense.errors import DataError
from paddle_dense.files.weights import open_file

# Pillow has many more, and hands some of them to other programs: EPS, whatever its name ends in, to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
MAX_PIXELS = 1 << 27  # 134 million; Pillow warns from two thirds of that on, and gives up at four thirds
MAX_ASPECT = 1000  # of the longer side to the shorter one, which is what images are scaled by


def read_image(path: str | os.PathLike, mode: str = "RGB") -> Image.Image:
    """The image of a file; of 16 bits the upper 8 are taken.

    Args:
        path: a regular file, or a link to one.
        mode: ``"RGB"`` or ``"L"`` (grey).

    Raises:
        DataError: it is no such file, none of `FORMATS`, damaged, too large, or of more than 16 bits.
    """
    try:
        # An open file and not its name, which Pillow would map into memory: being cut then ends the process.
        with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            _check_size(path, *image.size)
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
            if image.mode not in ("I", "F"):  # which Pillow would cut off at 255
                return image.convert(mode)
    except DataError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise _too_large(path) from error
    except Exception as error:  # there is hardly a kind that a damaged image has not made Pillow raise
        raise DataError(f"{path}: cannot be read as an image: replace it or take it out") from error
    raise DataError(f"{path}: has more than 16 bits a pixel: save it with 8")


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
