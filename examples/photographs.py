"""The sample photographs of scikit-image and scikit-learn, and random crops of them."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

SIZE = 224
SKIMAGE = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SKLEARN = ("china.jpg", "flower.jpg")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, for pixels in 0 … 1
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@functools.cache
def photographs() -> dict[str, np.ndarray]:
    """Name → uint8 (height, width, 3)."""
    import skimage
    import sklearn
    from PIL import Image

    folders = {pathlib.Path(skimage.__file__).parent / "data": SKIMAGE}
    folders[pathlib.Path(sklearn.__file__).parent / "datasets" / "images"] = SKLEARN
    return {
        pathlib.Path(name).stem: np.asarray(Image.open(folder / name).convert("RGB"))
        for folder, names in folders.items()
        for name in names
    }


def shrunk(pixels: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3) → float32 (SIZE, SIZE, 3), normalized as the network was trained."""
    from PIL import Image

    small = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    return (small / np.float32(255) - MEAN) / DEVIATION


def centre(pixels: np.ndarray) -> np.ndarray:
    """The largest square in the middle, float32 (SIZE, SIZE, 3)."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return shrunk(pixels[top : top + side, left : left + side])


def crops(count: int, seed: int) -> np.ndarray:
    """Squares of 50 to 100 % of the shorter side, anywhere, half of them mirrored: float32 (count, SIZE, SIZE, 3)."""
    rng = np.random.default_rng(seed)
    images = list(photographs().values())
    made = np.empty((count, SIZE, SIZE, 3), np.float32)
    for i in range(count):
        pixels = images[i % len(images)]
        side = int(min(pixels.shape[:2]) * rng.uniform(0.5, 1.0))
        top, left = (int(rng.integers(0, whole - side + 1)) for whole in pixels.shape[:2])
        cut = pixels[top : top + side, left : left + side]
        made[i] = shrunk(cut[:, ::-1] if rng.integers(2) else cut)
    return made
