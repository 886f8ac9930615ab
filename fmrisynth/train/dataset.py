"""The training stage's view of a latents directory: attributes as labels, instances as network input.

Axis legend: C latent channels, T frames, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmrisynth.config.train import EventTelling
from fmrisynth.data.attributes import Number, Values, Vocabulary, encode, nulls
from fmrisynth.data.latents import LatentDataset, LatentRow
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers.base import read_latent_mask
from fmrisynth.models.whitening import Whitening
from fmrisynth.stage import content_digest


class TrainingLatents:
    """Instances of a latents directory by number; tensors are read when asked for.

    Parameters
    ----------
    root : Path
        Output of `tokenize`.

    Attributes
    ----------
    dataset : LatentDataset
    digest : str
        SHA-256 of the names and contents of all shards and index files and the tokenizer's description.
    index_digest : str
        The same without the shards; earlier versions recorded it.
    tokenizer_digest : str
        SHA-256 of ``tokenizer.json``.
    brain_XYZ : Tensor of shape (X, Y, Z), bool
        Latent cells that hold brain.
    whitening : Whitening or None
        What `read` applies to the standardised latents; set by the training run.
    telling : EventTelling or None
        What a model of runs is told; None for blocks.
    """

    telling: EventTelling | None = None

    def __init__(self, root: Path, leave_out: Sequence[str] = ()) -> None:
        self.root = Path(root)
        self.dataset = LatentDataset.open(self.root)
        if leave_out:
            everybody, out = self.dataset.subjects, {label.removeprefix("sub-") for label in leave_out}
            if unknown := sorted(out.difference(everybody)):
                raise FmrisynthError(
                    f"{self.root}: leave_out names sub-{unknown[0]}, of whom there are no latents; check its spelling."
                )
            self.dataset = LatentDataset.open(self.root, subjects=[label for label in everybody if label not in out])
        description = (self.dataset.tokenizer_dir / "tokenizer.json").read_bytes()
        self.tokenizer_digest = hashlib.sha256(description).hexdigest()
        total = hashlib.sha256(description)
        for index in sorted([*self.root.glob("sub-*_latents.tsv"), *self.root.glob("sub-*_latentevents.tsv")]):
            total.update(index.name.encode() + index.read_bytes())
        self.index_digest = total.hexdigest()
        shards = sorted(self.root.glob("sub-*_latents.safetensors"))
        self.digest = hashlib.sha256(f"{self.index_digest} {content_digest(self.root, shards)}".encode()).hexdigest()
        self.whitening: Whitening | None = None
        self.brain_XYZ = read_latent_mask(self.dataset.tokenizer_dir)
        if tuple(self.brain_XYZ.shape) != self.latent_shape[2:] or not bool(self.brain_XYZ.any()):
            raise FmrisynthError(
                f"{self.root}: expected a tokenizer with a brain on the latents' grid {self.latent_shape[2:]}, found one of "
                f"{int(self.brain_XYZ.sum())} cells on {tuple(self.brain_XYZ.shape)}; encode the data again."
            )

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """C, T, X, Y, Z."""
        return self.dataset.shape  # type: ignore[return-value]

    @property
    def channels(self) -> int:
        """F = C*T."""
        return self.latent_shape[0] * self.latent_shape[1]

    def select(self, split: str) -> list[int]:
        """Numbers of the instances of one split."""
        return [i for i, row in enumerate(self.dataset.rows) if row.split == split]

    def read(self, instance: int) -> Tensor:
        """Standardised, perhaps whitened latents of one instance, (F, X, Y, Z), float32, F = (c t); 0 in cells without brain."""
        stack_FXYZ = self.dataset[instance].flatten(0, 1)
        if self.whitening is not None:
            stack_FXYZ = self.whitening.apply(stack_FXYZ)
        return stack_FXYZ * self.brain_XYZ

    def start(self, instance: int) -> Tensor | None:
        """Noise."""
        return None

    def told(self, instance: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Nothing beside its labels."""
        return ()

    def row(self, instance: int) -> LatentRow:
        """What is known of an instance."""
        return self.dataset.rows[instance]

    def attribute(self, instance: int, name: str) -> str | None:
        """Value of an attribute; None when it is not known."""
        row = self.row(instance)
        return row.condition if name == "condition" else row.attributes.get(name)

    def vocabulary(
        self, instances: Sequence[int], names: Sequence[str], numbers: Collection[str] = ()
    ) -> dict[str, Values]:
        """Sorted labels of each attribute over the given instances, the distribution of those that are numbers."""
        found: dict[str, Values] = {}
        for name in names:
            every = [value for i in instances if (value := self.attribute(i, name)) is not None]
            found[name] = sorted(set(every))
            if name in numbers and every:
                try:
                    found[name] = Number.of(every)
                except ValueError as error:
                    raise FmrisynthError(
                        f"{self.root}: {name!r} cannot be used as a number ({error}); name it in conditioning.attributes, or remove it."
                    ) from None
            if not every:
                known = ", ".join(sorted({key for i in instances for key in self.row(i).attributes}))
                raise FmrisynthError(
                    f"{self.root}: attribute {name!r} has no value in any training row (attributes with values: "
                    f"{known or 'none'}); remove it from conditioning, or prepare the data with it."
                )
        return found

    def labels(self, instance: int, vocabulary: Vocabulary) -> list[int | float]:
        """What the network gets of each attribute; a value that is missing or not in the vocabulary is "null"."""
        codes = [encode(name, self.attribute(instance, name), values) for name, values in vocabulary.items()]
        return [null if code is None else code for code, null in zip(codes, nulls(vocabulary), strict=True)]

    def timing(self, instances: Sequence[int]) -> dict[str, dict[str, float]]:
        """Median block onset and duration of each condition, seconds: the events of a synthetic block."""
        by_condition: dict[str, list[LatentRow]] = {}
        for i in instances:
            by_condition.setdefault(self.row(i).condition, []).append(self.row(i))
        return {
            condition: {
                name: statistics.median(getattr(row, name) for row in rows) for name in ("onset_s", "duration_s")
            }
            for condition, rows in sorted(by_condition.items())
        }

    def amounts(self, instances: Sequence[int]) -> dict[str, int]:
        """How many blocks and people some instances are of."""
        return {"n_instances": len(instances), "n_subjects": len({self.row(i).subject for i in instances})}

    def extent(self, instances: Sequence[int]) -> dict[str, Any]:
        """What else the card says of them."""
        return {}

    def describe(self, instance: int) -> str:
        """Where an instance lies, for messages."""
        row = self.dataset.rows[instance]
        return f"sub-{row.subject} row {row.row}"
