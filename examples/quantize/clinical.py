"""A clinical classifier: breast tumours, benign or malignant, from 30 measurements of cell nuclei (UCI, Wisconsin).

    pip install 'qkernels[torch,demo]'
    python examples/quantize/clinical.py

379 patients to train on, 190 held out. Accuracy is not what matters most here: the table says for every precision how
many malignant tumours it misses, how many benign ones it alarms about, and for how many patients its answer is another
than the float network's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ladder import Case, fit, main
from torch import nn


def patients() -> tuple[Any, Any]:
    """(569, 30) standardized by the first 379, (569,) 1 for malignant; shuffled."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], 1 - y[order]
    mean, spread = x[:379].mean(0), x[:379].std(0)
    return torch.from_numpy(((x - mean) / spread).astype(np.float32)), torch.from_numpy(y).float()


def case(state: dict[str, Any] | None = None) -> Case:
    torch.manual_seed(0)
    x, y = patients()
    (x, y), (test, labels) = (x[:379], y[:379]), (x[379:], y[379:])
    model = nn.Sequential(
        nn.Linear(30, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1), nn.Flatten(0)
    )
    train = fit(x, y, nn.functional.binary_cross_entropy_with_logits, 32)
    if state is None:
        train(model, 12, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05))
    else:
        model.load_state_dict(state)
    malignant = labels == 1
    with torch.no_grad():
        float_says = model(test) > 0

    def says(found: Any) -> Any:
        with torch.no_grad():
            return found(test) > 0

    def evaluate(found: Any) -> float:
        return float((says(found) == malignant).double().mean())

    def errors(found: Any) -> str:
        said = says(found)
        missed, alarms = int((malignant & ~said).sum()), int((~malignant & said).sum())
        return (
            f"missed {missed} of {int(malignant.sum())} malignant, {alarms} false alarms of {int((~malignant).sum())}; "
            f"{int((said != float_says).sum())} answers differ from float's"
        )

    def loss(found: Any) -> float:
        with torch.no_grad():
            return float(nn.functional.binary_cross_entropy_with_logits(found(test), labels))

    return Case(
        "Breast cancer, 190 held-out patients, 30 → 512 → 512 → 1", model, list(x.split(128)), list(test.split(95)),
        evaluate, loss, train, test[:95], 8, errors, alike=1.0,  # no patient's answer shall be another
    )  # fmt: skip


if __name__ == "__main__":
    main(case)
