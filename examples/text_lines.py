"""Lines of text with known letters: rendered, made hard to read, and read back from a recogniser's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
    what all were we when your can said there use an each which she do how their if will up other about out many then
""".split()  # noqa: SIM905
LETTERS = "abcdefghkmnpqrstuvwxyz23456789"  # none that only context tells apart
NOISE = 55  # standard deviation, of 255


class Line(NamedTuple):
    text: str
    pixels: np.ndarray  # (height, width) uint8


def sentences(count: int, seed: int, hard: bool) -> list[Line]:
    """Two to four words, sometimes a number; hard: 13 to 18 pixels high, in noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        text = " ".join(rng.choice(WORDS, int(rng.integers(2, 5))))
        text += f" {rng.integers(10, 9999)}" if rng.random() < 0.5 else ""
        made.append(rendered(text, int(rng.integers(13, 19)) if hard else 32, rng if hard else None))
    return made


def strings(count: int, seed: int) -> list[Line]:
    """Four to six small letters and digits, clean."""
    rng = np.random.default_rng(seed)
    return [rendered("".join(rng.choice(list(LETTERS), int(rng.integers(4, 7)))), 32, None) for _ in range(count)]


def rendered(text: str, size: int, noise: np.random.Generator | None) -> Line:
    font = ImageFont.load_default(size)
    image = Image.new("L", (int(font.getlength(text)) + 8, size + 8), 255)
    ImageDraw.Draw(image).text((4, 2), text, font=font, fill=0)
    pixels = np.asarray(image, np.float32)
    if noise is not None:
        pixels = pixels + noise.normal(0, NOISE, pixels.shape)
    return Line(text, np.clip(pixels, 0, 255).astype(np.uint8))


def resized(pixels: np.ndarray, height: int, most: int | None = None) -> np.ndarray:
    """To a height, its shape kept; float32 in 0 … 1."""
    width = round(height * pixels.shape[1] / pixels.shape[0])
    width = width if most is None else min(width, most)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255


def read(scores: np.ndarray, characters: Sequence[str]) -> str:
    """(steps, classes) → text: the best class of each step, without repetitions and blanks (class 0)."""
    best = scores.argmax(axis=-1)
    return "".join(characters[k] for i, k in enumerate(best) if k and (i == 0 or k != best[i - 1]))


def errors(got: str, wanted: str) -> int:
    """Insertions, deletions and replacements between the two."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(got, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]
