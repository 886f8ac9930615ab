"""Random numbers that depend only on what they are for.

Every draw has a name (subject 3, gambling LR, frame 17, local noise); the generator is seeded by the
phantom's seed and that name, so results do not depend on the order in which things are asked for.
"""

from __future__ import annotations

import zlib

import numpy as np

from fmrisynth.config.simulate import FamilyConfig


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """A generator for one named purpose."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in name]
    return np.random.Generator(np.random.SFC64([seed, *words]))  # draws normal numbers a quarter faster than PCG64


class NoTraits:
    """A subject without peculiarities: every trait is at its mean."""

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Zeros; see `Traits.normal`."""
        return np.zeros(shape, np.float32)


class Traits:
    """Standard normal traits of one subject, part of which relatives share.

    A trait is ``sqrt(s) * family + sqrt(1 - s) * own`` with ``s`` = heritability for identical twins and
    half of it for other siblings, so the correlation between relatives is the one of quantitative genetics.
    """

    def __init__(self, seed: int, subject: int, families: FamilyConfig) -> None:
        self._seed, self._subject = seed, subject
        self.family, birth = divmod(subject, families.size)
        self.zygosity = "NotTwin"
        share = families.heritability / 2
        if families.size > 1 and birth < 2:
            self.zygosity = "MZ" if self.family % 2 == 0 else "DZ"
        self._heritability = families.heritability if families.size > 1 else 0.0
        self._share = share
        self._identical = self.zygosity == "MZ"

    def normal(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw a trait, float32 array of `shape`; the same name gives the same trait."""
        own = self._draw("subject", self._subject, name, shape)
        if self._heritability == 0.0:
            return own
        family = self._draw("family", self.family, name, shape)
        half = np.float32(np.sqrt(self._share))
        pair = self._draw("twins", self.family, name, shape) if self._identical else None
        if pair is None:
            return half * family + np.float32(np.sqrt(1 - self._share)) * own
        return half * (family + pair) + np.float32(np.sqrt(1 - 2 * self._share)) * own

    def uniform(self, name: str, shape: tuple[int, ...] = (), *, twins_share: bool = False) -> np.ndarray:
        """Draw traits that are uniform between 0 and 1 and correlated between relatives as `normal`.

        With `twins_share`, identical twins have the same values, and fraternal twins the same first one.
        """
        from scipy.special import ndtr

        if not twins_share or self.zygosity == "NotTwin":
            return ndtr(self.normal(name, shape).astype(np.float64))
        shared = ndtr(self._draw("family", self.family, name, shape).astype(np.float64))
        if not self._identical:
            shared[1:] = ndtr(self.normal(name, shape).astype(np.float64))[1:]
        return shared

    def _draw(self, kind: str, index: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return stream(self._seed, kind, index, name).standard_normal(shape, dtype=np.float32)
