"""The commands as functions; ``fs.prepare(...)`` and the others lead here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fmrisynth.api.results import (
    BlockResult,
    EvaluationResult,
    FeaturesResult,
    LatentsResult,
    MapsResult,
    Result,
    TrainingResult,
)
from fmrisynth.config.base import StageConfig
from fmrisynth.config.embed import EmbedConfig
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.load import load_config
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.models.bundled import BUNDLED
from fmrisynth.progress import StageSummary
from fmrisynth.report.landing import write_index

if TYPE_CHECKING:
    import pandas as pd

C = TypeVar("C", bound=StageConfig)
R = TypeVar("R", bound=Result)


def simulate(out: str | Path, *, force: bool = False, config: str | Path | None = None, **settings: Any) -> BlockResult:
    """Write a phantom cohort with known truth (``fmrisynth simulate``).

    Parameters
    ----------
    out : str or Path
        Output folder.
    force : bool
        Make everything anew.
    config : str or Path, optional
        A YAML file of settings.
    **settings
        Settings of ``simulate``: ``layout``, ``n_subjects``, ``seed``, ``conditions``, ...
    """
    from fmrisynth.simulate import simulate_cohort

    resolved = settings_of(SimulateConfig, "simulate", settings, config)
    return _result(BlockResult, out, simulate_cohort(_path(out), resolved, force=force))


def prepare(
    source: str | Path, out: str | Path, *, participants: Sequence[str] | None = None, force: bool = False,
    config: str | Path | None = None, **settings: Any,
) -> BlockResult:  # fmt: skip
    """Cut runs of an HCP tree or BIDS dataset into a block dataset (``fmrisynth prepare``).

    Parameters
    ----------
    source : str or Path
        HCP tree, BIDS dataset or fMRIPrep derivatives.
    out : str or Path
        Output folder; continued if it exists.
    participants : sequence of str, optional
        Only these, with or without ``sub-``.
    force, config
        As in `simulate`.
    **settings
        Settings of ``prepare``: ``conditions``, ``native``, ``split``, ``window``, ...
    """
    from fmrisynth.prepare import prepare_dataset

    resolved = settings_of(PrepareConfig, "prepare", settings, config)
    summary = prepare_dataset(_path(source), _path(out), resolved, participant_labels=participants, force=force)
    return _result(BlockResult, out, summary)


def tokenize(
    prepared: str | Path, out: str | Path, *, tokenizer: str | Path | None = None, preset: str | None = None,
    participants: Sequence[str] | None = None, force: bool = False, config: str | Path | None = None, **settings: Any,
) -> LatentsResult:  # fmt: skip
    """Fit a tokenizer, unless one is given, and encode a block dataset (``fmrisynth tokenize``).

    Parameters
    ----------
    prepared, out : str or Path
        Block dataset, and output folder.
    tokenizer : str or Path, optional
        Use this one (a folder, or the word ``bundled``) instead of fitting one.
    preset : str, optional
        Kind and size of the tokenizer.
    participants, force, config
        As in `prepare`.
    **settings
        Settings of ``tokenize``.
    """
    from fmrisynth.tokenize import tokenize_dataset

    resolved = settings_of(TokenizeConfig, "tokenize", settings, config, preset)
    given = None if tokenizer is None else Path(tokenizer) if str(tokenizer) == BUNDLED else _path(tokenizer)
    summary = tokenize_dataset(
        _path(prepared), _path(out), resolved, tokenizer=given, participant_labels=participants, force=force
    )
    return _result(LatentsResult, out, summary)


def train(
    latents: str | Path, out: str | Path, *, preset: str | None = "hybrid-38m", config: str | Path | None = None,
    **settings: Any,
) -> TrainingResult:  # fmt: skip
    """Train a denoiser, or go on (``fmrisynth train``); `fmrisynth.load` takes the output folder.

    Parameters
    ----------
    latents, out : str or Path
        Output of `tokenize`, and folder of the run.
    preset : str, default "hybrid-38m"
        Model and recipe.
    config : str or Path, optional
        A YAML file of settings.
    **settings
        Settings of ``train``: ``steps``, ``batch_size``, ``model``, ``optimiser``, ...
    """
    from fmrisynth.train import train_denoiser

    resolved = settings_of(TrainConfig, "train", settings, config, preset)
    return _result(TrainingResult, out, train_denoiser(_path(latents), _path(out), resolved))


def sample(
    out: str | Path, condition: str | Sequence[str] = (), n: int = 1, *, checkpoint: str | Path = BUNDLED,
    force: bool = False, config: str | Path | None = None, **settings: Any,
) -> BlockResult:  # fmt: skip
    """Write synthetic subjects to disk (``fmrisynth sample``); `fmrisynth.load` keeps them in memory.

    Parameters
    ----------
    out : str or Path
        Output folder; samples that are there are kept.
    condition : str or sequence of str
        One condition or several; or ``all_conditions=True``.
    n : int, default 1
        Samples per condition.
    checkpoint : str or Path
        A model's folder; default: the bundled one.
    force, config
        As in `simulate`.
    **settings
        Settings of ``sample``: ``seed``, ``guidance``, ``steps``, ``report``, ...
    """
    from fmrisynth.sample import sample_dataset

    condition = condition or settings.pop("conditions", ())
    conditions = [condition] if isinstance(condition, str) else list(condition)
    given = settings | {"n": n} | ({"conditions": conditions} if conditions else {})
    model = None if str(checkpoint) == BUNDLED else _path(checkpoint)
    resolved = settings_of(SampleConfig, "sample", given, config)
    return _result(BlockResult, out, sample_dataset(_path(out), resolved, checkpoint=model, force=force))


def glm(
    dataset: str | Path, out: str | Path, *, participants: Sequence[str] | None = None, group: bool = True,
    force: bool = False, config: str | Path | None = None, **settings: Any,
) -> MapsResult:  # fmt: skip
    """Subject and group maps of a block dataset, or of whole runs with ``unit="run"`` (``fmrisynth glm``).

    Parameters
    ----------
    dataset, out : str or Path
        Block or BIDS dataset, and output folder.
    group : bool
        Whether to make group maps.
    participants, force, config
        As in `prepare`.
    **settings
        Settings of ``glm``: ``unit``, ``contrasts``, ``split``, ...
    """
    from fmrisynth.glm import run_glm

    resolved = settings_of(GlmConfig, "glm", settings, config)
    summary = run_glm(_path(dataset), _path(out), resolved, participant_labels=participants, group=group, force=force)
    return _result(MapsResult, out, summary)


def evaluate(
    out: str | Path, *, real: str | Path, synthetic: str | Path, force: bool = False,
    config: str | Path | None = None, **settings: Any,
) -> EvaluationResult:  # fmt: skip
    """Compare synthetic with real blocks (``fmrisynth evaluate``).

    Parameters
    ----------
    out, real, synthetic : str or Path
        Output folder, and two block datasets.
    force, config
        As in `simulate`.
    **settings
        Settings of ``evaluate``: ``tokenizer``, ``truth``, ``training``, ...
    """
    from fmrisynth.evaluate import evaluate_datasets

    resolved = settings_of(EvaluateConfig, "evaluate", settings, config)
    summary = evaluate_datasets(_path(out), real=_path(real), synthetic=_path(synthetic), config=resolved, force=force)
    return _result(EvaluationResult, out, summary)


def embed(
    dataset: str | Path, out: str | Path, *, encoder: str | Path | None = None, preset: str = "mae-small",
    probes: Sequence[str] = (), participants: Sequence[str] | None = None, force: bool = False,
    config: str | Path | None = None, **settings: Any,
) -> FeaturesResult:  # fmt: skip
    """Flat maps of the cortex, an encoder of them, features and probes (``fmrisynth embed``).

    Parameters
    ----------
    dataset, out : str or Path
        Block dataset in MNI space, and output folder.
    encoder : str or Path, optional
        An encoder that was fitted before; default: fit one.
    preset : str, default "mae-small"
        Encoder to fit.
    probes : sequence of str
        What to tell from the features: ``condition``, ``subject`` or columns of ``participants.tsv``.
    participants, force, config
        As in `prepare`.
    **settings
        Settings of ``embed``: ``maps``, ``model``, ``steps``, ...
    """
    from fmrisynth.embed import embed_dataset

    resolved = settings_of(EmbedConfig, "embed", settings, config, preset)
    given = None if encoder is None else _path(encoder)
    summary = embed_dataset(
        _path(dataset), _path(out), resolved, encoder=given, probes=probes, participant_labels=participants, force=force
    )
    return _result(FeaturesResult, out, summary)


def check(data: str | Path, *, checkpoint: str | Path = BUNDLED, n_blocks: int = 40) -> pd.DataFrame:
    """Is a dataset like the one that a model was trained on (``fmrisynth check``)? A row for each comparison.

    Parameters
    ----------
    data : str or Path
        Block dataset.
    checkpoint : str or Path
        A model's folder; default: the bundled one.
    n_blocks : int, default 40
        Blocks to read, evenly spread.
    """
    import pandas as pd

    from fmrisynth.check import check_dataset

    model = None if str(checkpoint) == BUNDLED else _path(checkpoint)
    return pd.DataFrame(map(asdict, check_dataset(_path(data), checkpoint=model, n_blocks=n_blocks)))


def settings_of(
    model: type[C], stage: str, settings: Mapping[str, Any], file: str | Path | None = None, preset: str | None = None
) -> C:
    """Keywords as a configuration; groups of settings are dictionaries."""
    flags = dict(_flat(settings))
    return load_config(model, stage, preset=preset, file=None if file is None else _path(file), flags=flags)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _path(path: str | Path) -> Path:
    return Path(path).expanduser()


def _result(kind: type[R], out: str | Path, summary: StageSummary) -> R:
    if summary.failed:
        who = ", ".join(list(summary.failed)[:3]) + (", ..." if len(summary.failed) > 3 else "")
        warnings.warn(f"{len(summary.failed)} failed ({who}); `failed` says why.", stacklevel=3)
    write_index(_path(out))
    return kind(_path(out), summary.lines, summary.failed)
