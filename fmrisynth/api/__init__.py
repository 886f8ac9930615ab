"""fmrisynth in Python: a model that draws samples, and the commands as functions.

Paths are `str` or `Path`. Every setting of a command (``docs/reference/configuration``) is a keyword, groups of settings are
dictionaries: ``fs.prepare("hcp", "blocks", split={"train": 0.8})``. What comes back is a dataclass with a table and a picture.
"""

from fmrisynth.api.commands import check, embed, evaluate, glm, prepare, sample, simulate, tokenize, train
from fmrisynth.api.model import Model, Samples, load
from fmrisynth.api.results import (
    BlockResult,
    EvaluationResult,
    FeaturesResult,
    LatentsResult,
    MapsResult,
    Result,
    TrainingResult,
)

__all__ = [
    "BlockResult", "EvaluationResult", "FeaturesResult", "LatentsResult", "MapsResult", "Model", "Result", "Samples", "TrainingResult",
    "check", "embed", "evaluate", "glm", "load", "prepare", "sample", "simulate", "tokenize", "train",
]  # fmt: skip
