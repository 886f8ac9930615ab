"""fmrisynth: task-conditioned synthesis of whole-brain 4D fMRI, proved with GLM maps."""

__version__ = "0.1.0"
