"""Configuration of ``fmrisynth glm``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fmrisynth.config.source import SourceConfig

FDR, SMALLEST_CLUSTER = 0.05, 10
"""The group page shows voxels below this false discovery rate, in clusters of at least so many."""


class GlmConfig(SourceConfig):
    """Settings of the window GLM (``unit: block``) and of the whole-run GLM (``unit: run``).

    ``drift``, ``noise_model`` and ``smoothing_fwhm_mm`` default to what suits the unit; the resolved
    values are properties of the same name with ``resolved_`` before it.
    """

    unit: Literal["block", "run"] = Field(
        "block", description="block: one 12-frame window per block instance; run: whole runs of a BIDS dataset."
    )
    contrasts: tuple[str, ...] = Field(
        (),
        description="Linear formulas over conditions, 'motor_rh - motor_lh' or 'name = formula'; "
        "empty: every condition against the implicit baseline.",
    )
    hrf: Literal["spm", "glover"] = Field("spm", description="Haemodynamic response convolved with the boxcar.")
    drift: Literal["none", "linear", "cosine"] | None = Field(
        None, description="Slow drift regressors; default none for blocks, cosine for runs."
    )
    high_pass_hz: float = Field(0.01, gt=0, le=0.1, description="Cut-off of the cosine drift, in Hz.")
    noise_model: Literal["ols", "ar1"] | None = Field(
        None, description="Temporal noise; default ols for blocks (12 frames cannot carry more), ar1 for runs."
    )
    smoothing_fwhm_mm: float | None = Field(
        None, ge=0, le=30, description="Gaussian smoothing before the fit, in mm; default 0 for blocks, 5 for runs."
    )
    min_reference_fraction: float = Field(
        0.05, ge=0, lt=1,
        description="Voxels whose reference volume is below this fraction of its brain median carry no percent "
        "signal change and are left out.",
    )  # fmt: skip
    split: Literal["train", "val", "test"] | None = Field(
        None, description="Analyse the subjects of this split only (block datasets)."
    )
    task: str | None = Field(None, description="Analyse this BIDS task only (unit run).")
    confounds: Literal["auto", "simple", "scrubbing", "none"] = Field(
        "auto",
        description="auto: six movement parameters, CSF and white matter where a confounds file has them; simple and "
        "scrubbing: as nilearn's load_confounds_strategy. Volumes that the file marks as non-steady-state or outlying are "
        "dropped whatever the choice (unit run).",
    )
    reports: bool = Field(True, description="Write one HTML page per subject and a design matrix figure.")

    @property
    def resolved_drift(self) -> Literal["none", "linear", "cosine"]:
        """Drift model in force."""
        return self.drift or ("none" if self.unit == "block" else "cosine")

    @property
    def resolved_noise_model(self) -> Literal["ols", "ar1"]:
        """Noise model in force."""
        return self.noise_model or ("ols" if self.unit == "block" else "ar1")

    @property
    def resolved_smoothing_fwhm_mm(self) -> float:
        """Smoothing in force, mm; 0 is none."""
        if self.smoothing_fwhm_mm is not None:
            return self.smoothing_fwhm_mm
        return 0.0 if self.unit == "block" else 5.0
