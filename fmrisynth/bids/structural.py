"""T1-weighted images of the input, one a person and session.

Both layouts (`fmrisynth.bids.discover`, `fmrisynth.bids.hcp`) list them as `T1w`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fmrisynth.bids.headers import Header, read_header
from fmrisynth.bids.runs import check_mask, header_problems
from fmrisynth.errors import FmrisynthError


@dataclass(frozen=True)
class T1w:
    """One T1-weighted image in MNI space.

    Attributes
    ----------
    subject : str
        Label without ``sub-``, letters and digits.
    session : str or None
        Session label.
    image : Path
        3D image.
    mask : Path or None
        Brain mask on its grid.
    name : str
        Path of `image` relative to its dataset, for records.
    space : str
        BIDS space label.
    is_extracted : bool
        Whether everything but the brain is 0, so that the image is its own mask.
    doubts : tuple of str
        What may be right about the choice of the files, in sentences.
    """

    subject: str
    session: str | None
    image: Path
    mask: Path | None
    name: str
    space: str
    is_extracted: bool = False
    doubts: tuple[str, ...] = field(default=(), compare=False)

    def check(self) -> tuple[Header, tuple[str, ...]]:
        """The header of an image that can be used, and what is odd about it, in sentences.

        Raises
        ------
        FmrisynthError
            The first thing that cannot be right: no or a damaged image, no mask, a mask on another grid.
        """
        header = read_header(self.image, ndim=3)
        problems = header_problems(header)
        errors = [problem.text for problem in problems if problem.severity == "error"]
        if errors:
            raise FmrisynthError(errors[0])
        if self.mask is not None:
            check_mask(self.mask, header)
        elif not self.is_extracted:
            raise FmrisynthError(
                f"{self.image}: expected a brain mask beside it (desc-brain_mask, of the same space and resolution), found "
                "none; copy it from fMRIPrep's output too."
            )
        return header, (*self.doubts, *(problem.text for problem in problems))
