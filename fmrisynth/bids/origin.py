"""What data are in the end: measured on people, simulated, or drawn from a model that was trained on either.

Every dataset says it in ``dataset_description.json`` under `KEY`, every sidecar too, a model's card under
``trained_on.origin``; every command hands on what its input says. Data that say nothing are taken as measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fmrisynth.bids.sources import read_json
from fmrisynth.errors import FmrisynthError, one_line

KEY = "DataOrigin"
LONGEST_NAME, DEEPEST = 120, 8

NOTHING_FOLLOWS = " Nothing about brains follows from them."

Kind = Literal["measured", "phantom", "synthetic"]


@dataclass(frozen=True)
class Origin:
    """Where data come from.

    Attributes
    ----------
    kind : {"measured", "phantom", "synthetic"}
        Measured on people (or not said to be anything else), simulated, or drawn from a trained model.
    name : str
        The dataset's own name.
    n_subjects, n_blocks, n_runs : int or None
        How much of it a model was trained on.
    trained_on : Origin or None
        Of synthetic data: what the model was trained on; None where its card does not say.
    """

    kind: Kind
    name: str = ""
    n_subjects: int | None = None
    n_blocks: int | None = None
    n_runs: int | None = None
    trained_on: Origin | None = None

    @property
    def is_phantom(self) -> bool:
        """Whether nobody was measured anywhere in the chain."""
        return self.kind == "phantom" or (self.trained_on is not None and self.trained_on.is_phantom)

    @property
    def statement(self) -> str:
        """What a reader must know, in one or two sentences."""
        if self.kind == "measured":
            return f"Data of {self.name or 'an unnamed dataset'}, taken as measured: it does not say anything else."
        if self.kind == "phantom":
            return "Phantom data: simulated, measured on no one." + NOTHING_FOLLOWS
        if self.trained_on is None:
            return "Synthetic data, measured on no one. The model's card does not say what it was trained on."
        text = f"Synthetic data, measured on no one. The model was trained on {self.trained_on._as_training_data}."
        return text + (NOTHING_FOLLOWS if self.is_phantom else "")

    @property
    def _as_training_data(self) -> str:
        if self.kind == "phantom":
            text = "phantom (simulated) data"
        elif self.kind == "measured":
            text = f"data of {self.name or 'an unnamed dataset'}"
        else:
            own = "unknown data" if self.trained_on is None else self.trained_on._as_training_data
            text = f"synthetic data of a model that was trained on {own}"
        counts = ((self.n_blocks, "blocks"), (self.n_runs, "runs"), (self.n_subjects, "subjects"))
        amount = [f"{n:,} {what}" for n, what in counts if n is not None]
        return text + (f" ({' of '.join(amount)})" if amount else "")

    def sampled(self) -> Origin:
        """Of what a model draws that was trained on these data."""
        return Origin("synthetic", trained_on=self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without what is not known."""
        content: dict[str, Any] = {
            "Kind": self.kind, "Name": self.name or None, "Subjects": self.n_subjects, "Blocks": self.n_blocks,
            "Runs": self.n_runs,
            "TrainedOn": self.trained_on.to_json() if self.trained_on is not None else None,
        }  # fmt: skip
        return {key: value for key, value in content.items() if value is not None}

    def sidecar(self) -> dict[str, Any]:
        """The key of a sidecar."""
        return {KEY: self.to_json()}


PHANTOM = Origin("phantom", "fmrisynth phantom")


def parse_origin(content: Any) -> Origin:
    """Read what `Origin.to_json` wrote.

    Raises
    ------
    ValueError
        Something else.
    """
    chain: list[Origin] = []
    while content is not None:
        if not isinstance(content, dict) or content.get("Kind") not in get_args(Kind) or len(chain) == DEEPEST:
            raise ValueError(f"its {KEY} is not one of {', '.join(get_args(Kind))}, with TrainedOn")
        numbers = tuple(content.get(key) for key in ("Subjects", "Blocks", "Runs"))
        if any(n is not None and (type(n) is not int or not 0 <= n < 10**9) for n in numbers):
            raise ValueError(f"a number of its {KEY} is not one of subjects, blocks or runs")
        chain.append(Origin(content["Kind"], one_line(content.get("Name", ""))[:LONGEST_NAME], *numbers))
        content = content.get("TrainedOn")
    found = chain.pop()
    while chain:
        found = replace(chain.pop(), trained_on=found)
    return found


def read_origin(root: Path) -> Origin:
    """What a dataset declares itself to be; measured, if it declares nothing.

    A dataset of other software is a phantom if the keywords of its description say ``phantom`` or ``simulated``, and
    synthetic if they say ``synthetic``.

    Raises
    ------
    FmrisynthError
        The description cannot be read.
    """
    path = root / "dataset_description.json"
    if not path.is_file():
        return Origin("measured", root.resolve().name[:LONGEST_NAME])
    description = read_json(path)
    try:
        if KEY in description:
            return parse_origin(description[KEY])
    except ValueError as error:
        raise FmrisynthError(
            f"{path}: expected the origin of the data, found something else ({error}); correct it."
        ) from None
    name = one_line(description.get("Name") or root.resolve().name)[:LONGEST_NAME]
    listed = description.get("Keywords")
    keywords = {str(word).lower() for word in listed} if isinstance(listed, list) else set()
    if keywords & {"phantom", "simulated", "simulation"}:
        return Origin("phantom", name)
    return Origin("synthetic" if "synthetic" in keywords else "measured", name)
