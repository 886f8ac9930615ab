"""Distances between real and synthetic blocks in the features of an encoder of flat maps, and copies in that space.

Axis legend: N blocks, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block
from fmrisynth.embed.distance import Distance, Rows, Scale, measure
from fmrisynth.embed.encoder import Encoder, load_encoder
from fmrisynth.embed.maps import map_block
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.parts import Parts, choose_control, digest_of
from fmrisynth.evaluate.privacy import Audit, Gallery
from fmrisynth.progress import track

SAMPLES, FLOOR = "samples", "as many real blocks of other people"


@dataclass
class Embedding:
    """What an encoder says of the samples.

    Attributes
    ----------
    encoder : str
        SHA-256 of card and weights.
    distances : dict
        Of the samples, and of what they can be compared with, from the real people.
    audit : Audit or None
        Samples against training blocks; None for fewer than three training people.
    notes : list of str
    """

    encoder: str
    distances: dict[str, Distance]
    audit: Audit | None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "encoder": self.encoder, "distances": {name: d.to_json() for name, d in self.distances.items()},
            "privacy": None if self.audit is None else self.audit.to_json(), "notes": self.notes,
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        """Samples and floor in words."""
        parts = [
            f"{name} {d.frechet:.2f} [{d.frechet_low:.2f}, {d.frechet_high:.2f}] "
            f"(kernel {d.kernel:.3f} [{d.kernel_low:.3f}, {d.kernel_high:.3f}], n {d.n})"
            for name, d in self.distances.items()
        ]
        return f"Fréchet distance from real people: {'; '.join(parts)}." + "".join(f" {note}" for note in self.notes)


def encode_blocks(blocks: list[Block], encoder: Encoder, what: str) -> Rows:
    """Tokens of all places of blocks, which are read one after the other, float16."""
    series = (map_block(block, encoder.maps) for block in track(blocks, what, len(blocks)))
    features = np.stack([tokens_MD.ravel().astype(np.float16) for tokens_MD in encoder.places(series)])
    return Rows(features, np.array([b.condition for b in blocks]), np.array([b.subject for b in blocks]))


def compare_embeddings(cohorts: Cohorts, config: EvaluateConfig, parts: Parts) -> Embedding | None:
    """Distances and audit with the encoder of the settings; None without one. Features of each dataset are kept between calls."""
    if config.encoder is None:
        return None
    encoder, conditions = load_encoder(config.encoder), cohorts.conditions

    def rows(label: str, blocks: list[Block]) -> Rows:
        path = parts.path(f"features-{label}").with_suffix(".npz")

        def make() -> None:
            found = encode_blocks(blocks, encoder, f"Encoding {label}")
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, features=found.features_ND, conditions=found.conditions_N, people=found.people_N)

        parts.keep(f"features-{label}", {"encoder": encoder.sha256, "blocks": digest_of(blocks)}, make)
        with np.load(path, allow_pickle=False) as stored:
            return Rows(stored["features"].astype(np.float32), stored["conditions"], stored["people"])

    real = rows("real", [b for b in cohorts.real if b.condition in conditions])
    own = rows("synthetic", cohorts.synthetic)
    scale, notes = Scale(real.features_ND), []
    distances = {SAMPLES: measure(real, own, conditions, scale, seed=config.seed)}
    audit = None
    if cohorts.train:
        training = rows("training", cohorts.train)
        _, chosen = choose_control(cohorts.train, cohorts.synthetic, conditions, config.seed)
        peers = training.of(np.array(sorted(chosen["peer"]), int))
        if all((peers.conditions_N == c).sum() > 1 for c in conditions):
            distances[FLOOR] = measure(real, peers, conditions, scale, seed=config.seed)
        if len(set(training.people_N)) >= 3:
            gallery = Gallery(training.features_ND, training.people_N, training.conditions_N)
            audit = gallery.audit(own.features_ND)
    if FLOOR not in distances:
        notes.append(
            "No floor: it needs training people apart from the compared ones, with two blocks of each condition."
        )
    return Embedding(encoder.sha256, distances, audit, notes)
