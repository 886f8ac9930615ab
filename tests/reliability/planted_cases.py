"""Inputs after public bug reports, with a planted answer, and what must come out of each.

The inputs are made by scripts beside the checkout (``../shared/cases/<case>/make.py``); `test_planted_cases` runs every
variant through the command line, and the table of docs/reliability.md is written from this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@dataclass(frozen=True)
class Variant:
    """One input.

    Attributes
    ----------
    case, folder : str
        Folder of the script, and of the variant in its output.
    what : str
        What is odd about it, for the table.
    refused : str
        Regular expression of the refusal; empty where the planted effects must come out.
    said : str
        Regular expression of a warning that must be printed.
    options : tuple of str
        Further settings, ``key=value``.
    names : tuple of str
        The contrasts with the left and the right effect.
    """

    case: str
    folder: str
    what: str
    refused: str = ""
    said: str = ""
    options: tuple[str, ...] = ()
    names: tuple[str, str] = ("handLeft", "handRight")


HEADER = "11-headers"
START = ("slice_time_ref=0",)
TR = r"bold\.nii\.gz: the header says TR {} s, the sidecar {} s; correct the wrong one, or give the true one as source_tr_s"
VARIANTS = (
    Variant("00-baseline", "", "nothing"),
    Variant("01-cs-plus-minus", "", "trial types `CS+` and `CS-`", names=("fearCSPlus", "fearCSMinus")),
    Variant("03-echo-outputs", "me", "echoes on another grid beside the combined image"),
    Variant("03-echo-outputs", "raw3echo", "echoes only", refused=r"echo-1_bold\.nii\.gz: this is one echo"),
    Variant("05-tr-sources", "a_lost", "TR 1 s in the header, 2 s in the sidecar", refused=TR.format(1, 2)),
    Variant("05-tr-sources", "a_lost", "the same, with the true TR given", options=("source_tr_s=2",)),
    Variant("05-tr-sources", "b_inherit", "TR 1 s in the header, 2 s in an inherited sidecar", refused=TR.format(1, 2)),
    Variant("05-tr-sources", "c_ms", "TR in milliseconds, no sidecar"),
    Variant("05-tr-sources", "d_2000", "TR 2000 without a unit", refused=r"bold\.nii\.gz: .*found 2000 s; give .* source_tr_s"),
    Variant("05-tr-sources", "e_jsonwrong", "TR 2 s in the header, 0.8 s in the sidecar", refused=TR.format(2, 0.8)),
    Variant(
        "07-confounds", "both", "movement follows the task, and no file says which moment of the TR the frames stand for",
        refused=r"run-1_\S*bold\.nii\.gz: no file says which moment of the repetition time",
    ),
    Variant("07-confounds", "both", "the same, with the moment given: the start of the TR", options=START),
    Variant(
        "07-confounds", "one", "confounds for one run of two",
        refused=r"run-2_\S*bold\.nii\.gz: this run has no confounds file",
    ),
    Variant("07-confounds", "nss", "three bright first volumes, marked", said="3 volumes .0, 1 and 2. are marked as non-steady-state"),
    Variant("07-confounds", "nss_clean", "the same marks on steady volumes", said="3 volumes"),
    Variant("08-denoised-derivative", "", "mean-removed images only", refused=r"as \S*desc-denoised_bold\.nii\.gz"),
    Variant("10-nan-zero", "a_out", "NaN outside the brain mask"),
    Variant("10-nan-zero", "b_in", "NaN in five voxels inside", said="5 voxels inside the brain mask are NaN"),
    Variant("10-nan-zero", "c_zero", "two volumes of zeros", said="2 volumes .40 and 41. are empty"),
    Variant("10-nan-zero", "d_nomask", "NaN outside the brain, no mask"),
    Variant(HEADER, "int16", "16-bit integers"),
    Variant(HEADER, "slope_inter", "slope and intercept"),
    Variant(HEADER, "slope_nan", "slope NaN"),
    Variant(HEADER, "las", "left-handed axes"),
    Variant(HEADER, "pir", "another order of axes"),
    Variant(HEADER, "bigendian", "big-endian"),
    Variant(HEADER, "float64", "64-bit floats"),
    Variant(HEADER, "nii", "not compressed"),
    Variant(HEADER, "notgz", "named `.nii.gz`, not compressed", said="otherwise than its name says"),
    Variant(HEADER, "five_d_last", "5D (x, y, z, t, 1)", said="axes of length 1"),
    Variant(HEADER, "five_d_mid", "5D (x, y, z, 1, t)", said="axes of length 1"),
    Variant(HEADER, "qform_only", "qform only"),
    Variant(HEADER, "q_s_disagree", "sform and qform disagree", said="sform and qform of the header differ"),
    Variant(HEADER, "no_codes", "neither sform nor qform", refused=r"bold\.nii\.gz: expected an sform or qform"),
    Variant("12-unrelated-run", "a_echo", "an echo of rest beside"),
    Variant("12-unrelated-run", "b_notrialtype", "another task's events without trial types", said="stop_events.tsv: expected a column"),
    Variant("12-unrelated-run", "c_trtext", "TR of a rest run is text"),
    Variant("14-starttime", "st0", "StartTime 0"),
    Variant("14-starttime", "st15", "StartTime TR/2"),
    Variant("14-starttime", "old20", "slice timing corrected, no StartTime"),
    Variant("14-starttime", "nostc", "slice timing not corrected"),
)  # fmt: skip


def table() -> str:
    """The section of docs/reliability.md."""
    lines = [
        "## Odd input with a known answer",
        "",
        "Inputs after public bug reports, in which +3 % is planted in a ball on the left and -2 % in one on the right; "
        "`glm --unit run` must find both, within 10 % of what it finds in the plain study and in their place, or refuse in one "
        "sentence that names the file and the cause (`tests/reliability/test_planted_cases.py`, `-m slow`).",
        "",
        "| input | what is odd | what happens |",
        "| --- | --- | --- |",
    ]
    for v in VARIANTS:
        happens = "refused" if v.refused else "planted effects" + (", with a warning" if v.said else "")
        given = f" (with `{', '.join(v.options)}`)" if v.options else ""
        lines.append(f"| `{'/'.join(filter(None, (v.case, v.folder)))}` | {v.what} | {happens}{given} |")
    return "\n".join(lines) + "\n"
