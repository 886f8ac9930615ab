"""Flat maps of the cortex, a masked autoencoder of them, and what its features tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmrisynth.config.embed import EmbedConfig
from fmrisynth.progress import StageSummary


def embed_dataset(
    dataset: Path,
    out: Path,
    config: EmbedConfig,
    *,
    encoder: Path | None = None,
    probes: Sequence[str] = (),
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Fit or apply an encoder of flat maps to a dataset; see `fmrisynth.embed.stage.embed_dataset`."""
    from fmrisynth.embed import stage

    return stage.embed_dataset(
        dataset, out, config, encoder=encoder, probes=probes, participant_labels=participant_labels, force=force
    )


__all__ = ["embed_dataset"]
