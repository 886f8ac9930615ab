"""The whole-run GLM of a BIDS or fMRIPrep dataset, through nilearn's ``FirstLevelModel``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.grid import NATIVE_SPACE, make_grid
from fmrisynth.data.nifti import read_header
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.contrasts import Contrast, camel_case, parse_contrast
from fmrisynth.glm.maps import index_path, write_index, write_subject_contrast
from fmrisynth.glm.statistics import Estimate
from fmrisynth.parse import read_json
from fmrisynth.progress import log
from fmrisynth.stage import Unit, files_of

MOTION = re.compile(r"^(trans|rot)_[xyz]$")
TISSUE = ("csf", "white_matter")
_NOT_CONDITIONS = {"", "n/a", "nan"}


@dataclass(frozen=True)
class Run:
    """One BOLD run with the files that belong to it."""

    bold: Path
    events: Path
    mask: Path | None
    confounds: Path | None
    tr_s: float
    start_time_s: float | None
    entities: dict[str, str]

    @property
    def task(self) -> str:
        """BIDS task name."""
        return self.entities.get("task", "task")


def find_runs(dataset: Path, task: str | None = None, *, failed: dict[str, str] | None = None) -> dict[str, list[Run]]:
    """Runs with events of a BIDS dataset, by subject.

    Preprocessed images (``desc-preproc``) below the dataset are preferred over raw ones; among them, MNI
    spaces over others. Events may lie in the raw dataset when the images are in its ``derivatives``.

    Parameters
    ----------
    dataset : Path
        BIDS root, fMRIPrep derivatives, or a BIDS root with ``derivatives/fmriprep``.
    task : str, optional
        Only this task.
    failed : dict, optional
        Takes the subjects with a run that cannot be used, and why; without it the first one is raised.

    Raises
    ------
    FmrisynthError
        No run with events.
    """
    images = sorted(p for p in dataset.rglob("sub-*_bold.nii*") if not p.name.startswith("."))
    best: dict[tuple[str, ...], tuple[tuple[int, ...], Path]] = {}
    for path in images:
        entities = naming.parse_entities(path.name)
        if task is not None and entities.get("task", "").lower() != task.lower():
            continue
        key = tuple(entities.get(name, "") for name in ("sub", "ses", "task", "acq", "dir", "run", "echo"))
        rank = (entities.get("desc") == "preproc", "MNI" in entities.get("space", ""), entities.get("space", "") != "")
        if key not in best or rank > best[key][0]:
            best[key] = (rank, path)
    runs: dict[str, list[Run]] = {}
    without = []
    for _, path in best.values():
        events = _companion(dataset, path, "_events.tsv", ("sub", "ses", "task", "acq", "dir", "run"))
        if events is None:
            without.append(path.name)
            continue
        entities = naming.parse_entities(path.name)
        stem = re.sub(r"_desc-[^_]+", "", path.name.split("_bold.nii")[0])
        bare = re.sub(r"_(space|res)-[^_]+", "", stem)
        mask = path.with_name(f"{stem}_desc-brain_mask.nii.gz")
        confounds = next(
            (
                c
                for name in ("timeseries", "regressors")
                if (c := path.with_name(f"{bare}_desc-confounds_{name}.tsv")).exists()
            ),
            None,
        )
        try:
            timing = _timing(dataset, path)
        except FmrisynthError as error:
            if failed is None:
                raise
            failed[entities["sub"]] = str(error)
            continue
        runs.setdefault(entities["sub"], []).append(
            Run(path, events, mask if mask.exists() else None, confounds, *timing, entities)
        )
    if not runs and not failed:
        asked = f" of task {task!r}" if task else ""
        raise FmrisynthError(
            f"{dataset}: found {len(images)} BOLD images and no run{asked} with an events file; point to the BIDS root that "
            "holds the events (fMRIPrep output alone has none)."
        )
    if without:
        log.warning("%d runs without events were left out: %s", len(without), ", ".join(without[:5]))
    return runs


def _companion(dataset: Path, bold: Path, ending: str, entities: Sequence[str]) -> Path | None:
    """A file that applies to a run by BIDS inheritance, searched from the run's folder upwards."""
    own = naming.parse_entities(bold.name)
    wanted = {name: own[name] for name in entities if name in own}
    relative = Path(f"sub-{own['sub']}", *([f"ses-{own['ses']}"] if "ses" in own else []), "func")
    roots = [dataset, dataset.parent, dataset.parent.parent]  # images may lie in <root>/derivatives/<pipeline>
    upwards = [folder for folder in bold.parents if folder == dataset or dataset in folder.parents]
    folders = [*upwards, *(root / relative for root in roots), *roots[1:]]
    best: tuple[int, Path] | None = None
    for folder in folders:
        for path in sorted(folder.glob(f"*{ending}")):
            found = naming.parse_entities(path.name)
            shared = {
                k: v for k, v in found.items() if k in own and k not in ("suffix", "extension", "space", "res", "desc")
            }
            if any(wanted.get(key) != value for key, value in shared.items()):
                continue
            if "task" in wanted and found.get("task") != wanted["task"]:
                continue
            if best is None or len(shared) > best[0]:
                best = (len(shared), path)
        if best is not None:
            return best[1]
    return None


def _timing(dataset: Path, bold: Path) -> tuple[float, float | None]:
    """Repetition time and, where slice timing was corrected, the reference time within it (seconds)."""
    sidecar = bold.with_name(bold.name.split(".nii")[0] + ".json")
    inherited = _companion(dataset, bold, "_bold.json", ("sub", "ses", "task", "acq", "dir", "run"))
    keys: dict[str, Any] = {}
    for path in dict.fromkeys(p for p in (inherited, sidecar) if p is not None and p.exists()):
        try:
            content = read_json(path)
        except (OSError, ValueError):
            continue
        keys |= content if isinstance(content, dict) else {}
    start = keys.get("StartTime")
    start_s = float(start) if isinstance(start, (int, float)) and keys.get("SliceTimingCorrected") else None
    value = keys.get("RepetitionTime")
    if isinstance(value, (int, float)) and 0 < value < 60:
        return float(value), start_s
    value = read_header(bold).tr_s
    if not 0 < value < 60:
        raise FmrisynthError(f"{bold}: neither its JSON nor its header has a repetition time; add RepetitionTime.")
    return value, start_s


def read_events(path: Path):
    """Events of a run as nilearn wants them; trial types become formula-safe names.

    Returns
    -------
    pandas.DataFrame
        Columns onset, duration (s), trial_type.

    Raises
    ------
    FmrisynthError
        Missing columns, numbers that cannot be read, or no event with a trial type.
    """
    import pandas as pd

    rows = []
    for row in read_tsv(path, ("onset", "duration", "trial_type")):
        if row["trial_type"].strip() in _NOT_CONDITIONS:
            continue
        try:
            duration = 0.0 if row["duration"] in _NOT_CONDITIONS else float(row["duration"])
            rows.append((float(row["onset"]), duration, safe_name(row["trial_type"])))
        except ValueError:
            raise FmrisynthError(
                f"{path}: onset or duration of {row['trial_type']!r} is not a number; mend the table."
            ) from None
    if not rows:
        raise FmrisynthError(f"{path}: no row has a trial_type; the GLM needs at least one condition.")
    return pd.DataFrame(rows, columns=["onset", "duration", "trial_type"])


def safe_name(trial_type: str) -> str:
    """A trial type as a word: characters other than letters, digits and '_' become '_'."""
    word = re.sub(r"\W+", "_", trial_type.strip()).strip("_")
    return word if word and not word[0].isdigit() else f"c{word}"


def read_confounds(path: Path | None, n_frames: int, config: GlmConfig):
    """Six movement parameters, CSF and white matter of an fMRIPrep confounds file, or None.

    Missing values of first frames (derivatives, framewise displacement) are set to the column mean.
    """
    if path is None or config.confounds == "none":
        return None
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise FmrisynthError(f"{path}: the confounds cannot be read ({error}).") from None
    names = [name for name in table.columns if MOTION.match(str(name)) or name in TISSUE]
    if not names:
        return None
    if len(table) != n_frames:
        raise FmrisynthError(
            f"{path}: expected one row per frame ({n_frames}), found {len(table)}; check that it belongs to the run."
        )
    try:
        chosen = table[names].astype(float).replace([np.inf, -np.inf], np.nan)
    except (ValueError, TypeError) as error:
        raise FmrisynthError(
            f"{path}: a confound holds something that is no number ({error}); mend the table."
        ) from None
    chosen = chosen.fillna(chosen.mean()).fillna(0.0)
    return chosen.loc[:, chosen.std() > 0]


def run_units(dataset: Path, out: Path, config: GlmConfig) -> tuple[dict[str, Unit], dict[str, str]]:
    """The unit of work of each subject, and the subjects that cannot be read; see `fmrisynth.glm.run_glm`."""
    broken: dict[str, str] = {}
    found = find_runs(dataset, config.task, failed=broken)
    known: set[str] = set()
    for subject, runs in list(found.items()):
        try:
            known |= {safe_name(str(t)) for run in runs for t in read_events(run.events)["trial_type"]}
        except FmrisynthError as error:
            broken[subject] = str(error)
    found = {subject: found[subject] for subject in sorted(found) if subject not in broken}
    for formula in config.contrasts if found else ():
        parse_contrast(_local(formula, known, found), sorted(known))
    units = {
        subject: Unit(
            f"sub-{subject}", {"files": files_of(runs), "timing or names": runs},
            partial(fit_subject_runs, subject, runs, out, config), index_path(subject), Path(f"sub-{subject}"),
        )
        for subject, runs in found.items()
    }  # fmt: skip
    return units, broken


def _local(formula: str, known: set[str], found: dict[str, list[Run]]) -> str:
    """Accept ``oneback_face`` for trial type ``face`` of task ``oneback``."""
    tasks = {re.sub(r"\W", "", run.task).lower() for runs in found.values() for run in runs}
    return localise_formula(formula, known, tasks)


def localise_formula(formula: str, known: set[str], tasks: set[str]) -> str:
    """Replace condition labels ``<task>_<trial type>`` by the trial type, where it is known.

    Examples
    --------
    >>> localise_formula("oneback_face - object", {"face", "object"}, {"oneback"})
    'face - object'
    """

    def replace(match: re.Match[str]) -> str:
        word = match.group(0)
        task, _, rest = word.partition("_")
        return rest if word not in known and task.lower() in tasks and rest in known else word

    return re.sub(r"[A-Za-z]\w*", replace, formula)


def fit_subject_runs(subject: str, runs: Sequence[Run], out: Path, config: GlmConfig) -> dict[str, Any]:
    """Fit a subject's runs, one model per task, and write its contrasts."""
    first = runs[0].entities
    base = naming.Entities(
        sub=subject, ses=first.get("ses"), space=first.get("space", NATIVE_SPACE), res=first.get("res")
    )
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(run.task for run in runs):
        rows += _fit_task(base, task, [run for run in runs if run.task == task], out, config)
    if not rows:
        raise FmrisynthError(f"sub-{subject}: has none of the conditions that the contrasts need.")
    write_index(out, subject, rows)
    return {"entities": asdict(base), "rows": rows}


def first_level_model(runs: Sequence[Run], config: GlmConfig):
    """nilearn's model of a subject's runs of one task, fitted.

    Scaling: each voxel's run mean is 100 (``signal_scaling=0``), so effects are percent signal change; smoothing
    comes first, as in nilearn and SPM.
    """
    from nilearn.glm.first_level import FirstLevelModel
    from nilearn.masking import intersect_masks

    drift = config.resolved_drift
    masks = [str(read_header(run.mask).path) for run in runs if run.mask is not None]
    trs = {round(run.tr_s, 4) for run in runs}
    if len(trs) > 1:
        raise FmrisynthError(
            f"{runs[0].bold.name}: runs of one task differ in TR ({sorted(trs)} s); analyse them apart."
        )
    start_s = runs[0].start_time_s
    model = FirstLevelModel(
        t_r=runs[0].tr_s,
        slice_time_ref=config.slice_time_ref if start_s is None else min(start_s / runs[0].tr_s, 1.0),
        hrf_model=config.hrf,
        drift_model={"none": None, "linear": "polynomial", "cosine": "cosine"}[drift],
        drift_order=1,
        high_pass=config.high_pass_hz,
        noise_model=config.resolved_noise_model,
        smoothing_fwhm=config.resolved_smoothing_fwhm_mm or None,
        signal_scaling=0,
        mask_img=intersect_masks(masks, threshold=1) if len(masks) == len(runs) else None,
        minimize_memory=True,
        n_jobs=1,
    )
    import nibabel as nib

    images, events, confounds = [], [], []
    for run in runs:
        shape = read_header(run.bold).shape  # checked against the size of the file before nilearn takes memory
        image: Any = nib.load(run.bold)
        if len(shape) != 4 or shape[3] < 10:
            raise FmrisynthError(f"{run.bold}: expected a 4D run of at least 10 frames, found shape {shape}.")
        images.append(image)
        events.append(read_events(run.events))
        confounds.append(read_confounds(run.confounds, shape[3], config))
    given = confounds if all(c is not None for c in confounds) else None
    try:
        return model.fit(images, events=events, confounds=given)
    except (ValueError, EOFError, OSError) as error:
        raise FmrisynthError(f"{runs[0].bold}: nilearn could not fit the run: {error}") from None


def _fit_task(
    base: naming.Entities, task: str, runs: Sequence[Run], out: Path, config: GlmConfig
) -> list[dict[str, Any]]:
    conditions = list(dict.fromkeys(t for run in runs for t in read_events(run.events)["trial_type"]))
    folded = {re.sub(r"\W", "", task).lower()}
    contrasts = []
    for formula in config.contrasts:
        try:
            contrasts.append(parse_contrast(localise_formula(formula, set(conditions), folded), conditions))
        except UsageError:
            continue  # a contrast of another task: all formulas were checked against all tasks before
    if not config.contrasts:
        task_word = re.sub(r"[^0-9A-Za-z]", "", task)
        contrasts = [Contrast(camel_case(f"{task_word}_{name}"), name, {name: 1.0}) for name in conditions]
    if not contrasts:
        return []
    model = first_level_model(runs, config)
    mask_image = model.masker_.mask_img_
    mask_XYZ = np.asarray(mask_image.dataobj) > 0
    grid = make_grid(mask_XYZ.shape, mask_image.affine, base.space or NATIVE_SPACE)
    rows = []
    for contrast in contrasts:
        vectors, used = [], 0
        for design in model.design_matrices_:
            missing = [name for name in contrast.weights if name not in design.columns]
            vectors.append(np.array([0.0 if missing else contrast.weights.get(str(c), 0.0) for c in design.columns]))
            used += not missing
        if not used:
            continue
        kept = [vector for vector in vectors if vector.any()]
        if len(kept) < len(vectors):
            log.warning("sub-%s %s: %d runs lack a condition of it", base.sub, contrast.title, len(vectors) - len(kept))
        estimate = _contrast(model, [v if v.any() else None for v in vectors], mask_XYZ)
        about = {
            "Contrast": contrast.title, "Weights": dict(contrast.weights), "Runs": used,
            "Model": f"whole run: events * HRF, {config.resolved_drift} drift, constant"
            + (", confounds" if any(run.confounds for run in runs) and config.confounds == "auto" else ""),
            "HRF": config.hrf, "HighPassHz": config.high_pass_hz, "NoiseModel": config.resolved_noise_model,
            "SmoothingFWHM": config.resolved_smoothing_fwhm_mm, "SignalScaling": "percent of the voxel's run mean",
        }  # fmt: skip
        rows.append(
            write_subject_contrast(
                out, base, re.sub(r"[^0-9A-Za-z]", "", task), contrast, estimate, mask_XYZ, grid, about
            )
            | {"n_blocks": used}
        )
    if config.reports:
        from fmrisynth.glm.pages import write_run_page

        write_run_page(out, base, task, model, _mean_image(runs[0].bold), rows, config)
    return rows


def _mean_image(bold: Path) -> np.ndarray:
    """Mean of a dozen frames spread over a run: a background to draw on."""
    import nibabel as nib

    image: Any = nib.load(bold)
    frames = np.linspace(0, image.shape[3] - 1, 12).astype(int)
    return np.mean([np.asarray(image.dataobj[..., t], np.float32) for t in frames], axis=0)


def _contrast(model, vectors: Sequence[np.ndarray | None], mask_XYZ: np.ndarray) -> Estimate:
    """Effect, variance, dof of a contrast over the runs that have it (nilearn's fixed effects)."""
    from nilearn.glm.contrasts import compute_contrast

    parts = []
    for labels, results, vector in zip(model.labels_, model.results_, vectors, strict=True):
        if vector is not None:
            parts.append(compute_contrast(labels, results, vector))
    effect = np.mean([np.ravel(p.effect_size()) for p in parts], axis=0)
    variance = np.sum([np.ravel(p.effect_variance()) for p in parts], axis=0) / len(parts) ** 2
    dof = float(np.sum([np.mean(p.dof) for p in parts]))
    return Estimate(effect.astype(np.float32), variance.astype(np.float32), dof)
