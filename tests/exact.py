"""Exact numbers that the reference is compared with: Python integers and fractions, no NumPy arithmetic.

`nearest` rounds an exact Fraction to a binary floating-point format; everything floating is said in its terms.
Expected integers are clamped *after* rounding, where the reference clamps before: lemma 1 is in every comparison.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from fractions import Fraction

import numpy as np

INF = math.inf
ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")
LIMITS = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
    "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3),
}  # fmt: skip


def nearest(x, precision=24, emin=-126, emax=127):
    """x rounded to float32 (or another binary format), half to even, subnormals kept; ±inf beyond its range."""
    if x in (INF, -INF) or x == 0:
        return x
    x = Fraction(x)
    n, d = x.numerator, x.denominator
    e = abs(n).bit_length() - d.bit_length()
    if abs(n) << max(-e, 0) < d << max(e, 0):
        e -= 1
    places = precision - 1 - max(e, emin)  # after the binary point
    q, rest = divmod(n << max(places, 0), d << max(-places, 0))
    q += 2 * rest > d << max(-places, 0) or (2 * rest == d << max(-places, 0) and q % 2)
    y = Fraction(q << max(-places, 0), 1 << max(places, 0))
    return y if abs(y) < 2 ** (emax + 1) else INF if y > 0 else -INF


def nearest64(x):
    return nearest(x, 53, -1022, 1023)


def f32(x) -> np.float32:
    """A number that is a float32 already."""
    y = np.float32(float(x))
    assert float(y) == x
    return y


def frac(x) -> Fraction:
    return Fraction(float(x))


def near(x: float) -> Fraction:
    return nearest(Fraction(x))


def clamp(x, low, high):
    return max(low, min(x, high))


def half_up(x) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def product(a, b, za=lambda i: 0, zb=lambda j: 0):
    """Nested lists: the exact product of integer matrices."""
    return [
        [sum((a[i][k] - za(i)) * (b[k][j] - zb(j)) for k in range(len(b))) for j in range(len(b[0]))]
        for i in range(len(a))
    ]


def randints(rng: random.Random, shape, low, high, dtype):
    """Random codes in which the ends of the range are frequent."""
    values = [rng.choice((low, high, rng.randint(low, high))) for _ in range(math.prod(shape))]
    return np.array(values, dtype).reshape(shape)


def bits32(x) -> list[int]:
    return np.asarray(x, np.float32).reshape(-1).view(np.uint32).tolist()


@functools.cache
def fixed_point(M: Fraction):
    """q and e of A4, from the exact M."""
    if M == 0:
        return 0, 0
    e = next(i for i in itertools.count(-1200) if Fraction(2) ** i > M)
    q = half_up(M / Fraction(2) ** e * 2**31)
    if q == 2**31:
        q, e = 2**30, e + 1
    return (0, 0) if e < -31 else (2**31 - 1, 30) if e > 30 else (q, e)


def rounded(rounding: str, acc: int, M: Fraction) -> int:
    """round(acc · M) of A5, before the zero point and any clamp."""
    if rounding == "half_even":
        t = nearest(nearest(acc) * nearest(M))
        return round(t) if abs(t) != INF else int(math.copysign(2**60, t))
    if rounding == "half_away":
        t = nearest64(acc * M)
        t = t if abs(t) == INF else nearest64(t + (Fraction(1, 2) if acc >= 0 else -Fraction(1, 2)))
        return math.trunc(t) if abs(t) != INF else int(math.copysign(2**60, t))
    q, e = fixed_point(M)
    if rounding == "half_up":
        return half_up(acc * q / Fraction(2) ** (31 - e))
    v = clamp(acc << max(e, 0), -(2**31), 2**31 - 1) * q
    divisor = 2 ** max(-e, 0)
    if rounding == "ruy":
        return half_up(Fraction(half_up(Fraction(v, 2**31)), divisor))
    h = math.trunc(Fraction(v + (2**30 if v >= 0 else 1 - 2**30), 2**31))
    return half_away(Fraction(h, divisor))


TWO = Fraction(2)
SCALES = [near(s) for s in (1.0, 0.1, 0.3, 7e-3, 0.0123, 3.7, 255.0, 2**-20 / 3, 1e-30, 3e20)]
