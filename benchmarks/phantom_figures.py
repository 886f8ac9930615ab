"""Measure the phantom against HCP's statistics and a real 3 T run; write the figures and numbers of docs/phantom.md.

    python benchmarks/phantom_figures.py --out docs/figures --subjects 30 --real ../shared/data/studyforrest-localizer

The effects are those of the window GLM (`fmrisynth.glm`): least squares of 12 frames on [boxcar * HRF, 1]. As they
are linear in the frames, each block is rendered through the GLM's weights at once, which gives the same numbers as
rendering 12 frames and fitting them (checked by a test) in a twelfth of the memory.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from fmrisynth.conditions import load_table
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.glm.design import window_design
from fmrisynth.simulate import Phantom
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK
from fmrisynth.simulate.phantom import BLOCK_FRAMES, BLOCK_TR_S, PhantomRun, PhantomSubject
from fmrisynth.simulate.truth import group_maps

CONDITIONS = (
    "emotion_fear", "gambling_loss", "language_story", "relational_relation", "motor_rh", "social_mental",
    "wm_2bk_places",
)  # fmt: skip
HCP_SPLIT_HALF = (0.90, 0.97, 0.91, 0.97, 0.82, 0.97, 0.98)
HCP_SINGLE = (0.59, 0.80, 0.60, 0.83, 0.49, 0.82, 0.85)
HCP_PAIRS = {
    ("gambling_loss", "relational_relation"): 0.89, ("relational_relation", "wm_2bk_places"): 0.89,
    ("gambling_loss", "wm_2bk_places"): 0.80, ("emotion_fear", "social_mental"): 0.73,
    ("gambling_loss", "social_mental"): 0.67,
}  # fmt: skip
"""Parcel-level GLM betas of 30 HCP subjects, 360 cortical parcels, whole runs."""

N_PARCELS = 360


def block_effects(run: PhantomRun) -> dict[str, list[np.ndarray]]:
    """Window GLM effect (V,) of every block of the seven conditions in a run, percent signal change."""
    effects: dict[str, list[np.ndarray]] = {}
    for event, first, weights in run.windows(*CONDITIONS):
        design = window_design(0.0, event.duration_s, BLOCK_FRAMES, BLOCK_TR_S)
        row = (design.pinv_PT[:1] @ weights).astype(np.float32)
        effects.setdefault(event.condition, []).append(run.percent_signal(row, first)[0])
    return effects


def subject_effects(subject: PhantomSubject) -> np.ndarray:
    """A subject's mean effect per condition, (K, V) float32."""
    found: dict[str, list[np.ndarray]] = {label: [] for label in CONDITIONS}
    for run in subject.runs():
        for label, maps in block_effects(run).items():
            found[label].extend(maps)
    return np.stack([np.mean(found[label], axis=0) for label in CONDITIONS]).astype(np.float32)


def reliability(effects_SKV: np.ndarray) -> dict:
    """Split half, one subject against the mean of the others, and correlations between group maps."""
    n, k = effects_SKV.shape[:2]
    total = effects_SKV.sum(axis=0)
    halves = [effects_SKV[: n // 2].mean(axis=0), effects_SKV[n // 2 :].mean(axis=0)]

    def r(a, b):
        return float(np.corrcoef(a, b)[0, 1])

    group = total / n
    split = [r(halves[0][c], halves[1][c]) for c in range(k)]
    single = [float(np.mean([r(e[c], (total[c] - e[c]) / (n - 1)) for e in effects_SKV])) for c in range(k)]
    top1 = np.mean([np.argmax([r(halves[0][c], halves[1][j]) for j in range(k)]) == c for c in range(k)])
    off = np.triu_indices(k, 1)
    rsa = r(np.corrcoef(halves[0])[off], np.corrcoef(halves[1])[off])
    own_top1 = [
        float(np.mean([np.argmax([r(e[c], (total[j] - e[j]) / (n - 1)) for j in range(k)]) == c for e in effects_SKV]))
        for c in range(k)
    ]
    return {
        "split_half": split, "single": single, "top1_split_half": float(top1), "rsa_split_half": rsa,
        "top1_single": own_top1, "between": np.corrcoef(group).tolist(),
    }  # fmt: skip


def parcels(phantom: Phantom, grey_V: np.ndarray, mask_V: np.ndarray) -> np.ndarray:
    """Parcel (0 ... 359, or -1) of each voxel: k-means of the coordinates of grey matter."""
    from scipy.cluster.vq import kmeans2

    inside = np.flatnonzero(mask_V & (grey_V > 0.4))
    points = phantom.space.coordinates_V3[inside].astype(np.float64)
    start = points[np.random.default_rng(0).choice(len(points), N_PARCELS, replace=False)]
    _, label = kmeans2(points, start, iter=8, minit="matrix")
    found = np.full(len(mask_V), -1)
    found[inside] = label
    return found


def parcel_means(values_KV: np.ndarray, label_V: np.ndarray) -> np.ndarray:
    """Mean of each parcel, (K, 360)."""
    inside = label_V >= 0
    count = np.maximum(np.bincount(label_V[inside], minlength=N_PARCELS), 1)
    return np.stack([np.bincount(label_V[inside], v[inside], minlength=N_PARCELS) / count for v in values_KV])


def run_statistics(bold_XYZT: np.ndarray, mask_XYZ: np.ndarray, voxel_mm) -> dict:
    """tSNR, lag-one autocorrelation and smoothness of a run after removing a cubic trend.

    Smoothness: Forman et al. 1995, from the variance of differences between neighbours.
    """
    n = bold_XYZT.shape[-1]
    trend = np.vander(np.linspace(-1, 1, n), 4)
    series = bold_XYZT[mask_XYZ].T.astype(np.float64)
    mean = series.mean(axis=0)
    residual = series - trend @ np.linalg.lstsq(trend, series, rcond=None)[0]
    sd = np.maximum(residual.std(axis=0), 1e-9)
    ar1 = (residual[1:] * residual[:-1]).sum(axis=0) / (residual**2).sum(axis=0)
    standard = np.zeros(bold_XYZT.shape, np.float32)
    standard[mask_XYZ] = (residual / sd).T
    fwhm = []
    for axis in range(3):
        z, m = np.moveaxis(standard, axis, 0), np.moveaxis(mask_XYZ, axis, 0)
        both = m[1:] & m[:-1]
        ratio = (z[1:][both] - z[:-1][both]).var() / standard[mask_XYZ].var()
        fwhm.append(float(voxel_mm[axis] * np.sqrt(-2 * np.log(2) / np.log(1 - ratio / 2))))
    power = np.abs(np.fft.rfft(residual / sd, axis=0)) ** 2
    return {
        "tsnr": np.percentile(mean / sd, [10, 50, 90]).tolist(), "ar1": np.percentile(ar1, [10, 50, 90]).tolist(),
        "fwhm_mm": fwhm, "spectrum": (power.mean(axis=1) / power.mean(axis=1)[1:].mean()).tolist(),
    }  # fmt: skip


def real_run_statistics(folder: Path) -> dict:
    """The same for the real run (first four volumes left out, brain from nilearn)."""
    from nilearn.masking import compute_epi_mask

    image = nib.load(next((folder / "sub-02" / "func").glob("*_bold.nii.gz")))
    bold = np.asarray(image.dataobj, dtype=np.float32)[..., 4:]
    mask = np.asarray(compute_epi_mask(nib.Nifti1Image(bold.mean(axis=-1), image.affine)).dataobj) > 0
    return run_statistics(bold, mask, image.header.get_zooms()[:3])


def variance_components(phantom: Phantom, n_subjects: int) -> dict:
    """PCA of single BOLD volumes (paper, Fig. 3) and the share of variance of subject, phase encoding and task."""
    volumes, labels, masks = [], {"subject": [], "phase encoding": [], "task": []}, []
    for index in range(n_subjects):
        subject = phantom.subject(index)
        masks.append(subject.anatomy.mask_V)
        for run in subject.runs():
            _, first, weights = next(w for w in run.windows() if w[0].condition in CONDITIONS)
            for frame in (5, 9):
                volumes.append(run.frames(weights[frame : frame + 1], first)[0])
                for name, value in zip(labels, (index, run.direction, run.task), strict=True):
                    labels[name].append(value)
    x = np.stack(volumes)[:, np.mean(masks, axis=0) > 0.99].astype(np.float64)
    x -= x.mean(axis=0)
    scores, s, _ = np.linalg.svd(x, full_matrices=False)

    def share(values: np.ndarray, factor: list) -> float:
        factor_array = np.asarray([str(f) for f in factor])
        between = sum(
            (factor_array == level).sum() * (values[factor_array == level].mean(axis=0) ** 2).sum()
            for level in np.unique(factor_array)
        )
        return float(between / (values**2).sum())

    return {
        "share": {name: share(x, factor) for name, factor in labels.items()},
        "explained": (s**2 / (s**2).sum())[:20].tolist(),
        "component_share": {
            name: [share(scores[:, k : k + 1], factor) for k in range(20)] for name, factor in labels.items()
        },
        "scores": (scores[:, :20] * s[:20]).tolist(),
        "labels": {name: [str(v) for v in values] for name, values in labels.items()},
    }


def speed(phantom: Phantom, n_subjects: int = 3) -> dict:
    """Block instances per minute on one thread, set-up of subjects included; CPU time is what a busy machine leaves."""
    start, start_cpu, n = time.perf_counter(), time.process_time(), 0
    for index in range(1000, 1000 + n_subjects):
        subject = phantom.subject(index)
        for label in CONDITIONS:
            n += sum(1 for _ in subject.blocks(label))
    return {
        "instances": n, "instances_per_minute": 60 * n / (time.perf_counter() - start),
        "instances_per_cpu_minute": 60 * n / (time.process_time() - start_cpu),
    }  # fmt: skip


def plot_reliability(found: dict, out: Path) -> None:
    """Bars: phantom (voxels, parcels) beside HCP."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True)
    names = [label.split("_", 1)[1] for label in CONDITIONS]
    for ax, key, target, title in zip(
        axes, ("split_half", "single"), (HCP_SPLIT_HALF, HCP_SINGLE),
        ("Split half of group maps", "One subject against the others"), strict=True,
    ):  # fmt: skip
        at = np.arange(len(names))
        ax.bar(at - 0.27, target, 0.25, label="HCP, parcels", color="0.6")
        ax.bar(at, found["parcels"][key], 0.25, label="phantom, parcels", color="tab:blue")
        ax.bar(at + 0.27, found["voxels"][key], 0.25, label="phantom, voxels", color="tab:orange")
        ax.set_xticks(at, names, rotation=30, ha="right")
        ax.set_title(title)
        ax.set_ylim(0, 1)
    axes[0].set_ylabel("map correlation r")
    axes[0].legend(fontsize=8, loc="lower left")
    _save(fig, out / "phantom_reliability.png")


def plot_geometry(found: dict, out: Path) -> None:
    """Correlations between the group maps."""
    fig, ax = plt.subplots(figsize=(5, 4.2))
    matrix = np.array(found["voxels"]["between"])
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    names = [label.split("_", 1)[1] for label in CONDITIONS]
    ax.set_xticks(range(7), names, rotation=45, ha="right")
    ax.set_yticks(range(7), names)
    for i in range(7):
        for j in range(7):
            ax.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7)
    fig.colorbar(image, label="correlation of group maps")
    _save(fig, out / "phantom_geometry.png")


def plot_pca(found: dict, out: Path) -> None:
    """Scores coloured by subject, phase encoding and task, and what each component carries."""
    scores = np.array(found["scores"])
    fig, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    best = int(np.argmax(found["component_share"]["phase encoding"]))
    planes = {"subject": (0, 1), "phase encoding": (0, best), "task": (0, best)}
    for ax, (name, (a, b)) in zip(axes, planes.items(), strict=False):
        values = found["labels"][name]
        levels = sorted(set(values))
        colour = [levels.index(v) for v in values]
        ax.scatter(scores[:, a], scores[:, b], c=colour, cmap="tab20" if len(levels) > 3 else "coolwarm", s=8)
        ax.set_xlabel(f"component {a + 1}")
        ax.set_ylabel(f"component {b + 1}")
        ax.set_title(f"by {name} ({found['share'][name]:.2%} of variance)")
        ax.ticklabel_format(style="sci", scilimits=(0, 0))
    at = np.arange(12)
    bottom = np.zeros(12)
    for name, colour in (("subject", "tab:blue"), ("phase encoding", "tab:orange"), ("task", "tab:green")):
        height = np.array(found["component_share"][name])[:12]
        axes[3].bar(at + 1, height, bottom=bottom, label=name, color=colour)
        bottom += height
    axes[3].set_xlabel("component")
    axes[3].set_title("what a component separates")
    axes[3].legend(fontsize=8)
    _save(fig, out / "phantom_pca.png")


def plot_noise(found: dict, out: Path) -> None:
    """Power spectra of the phantom and of the real run."""
    fig, ax = plt.subplots(figsize=(5.5, 3.4))
    for name, tr_s in (("real", 2.0), ("phantom_tr2", 2.0), ("phantom_tr0.72", 0.72)):
        if name in found:
            spectrum = np.array(found[name]["spectrum"])[1:]
            ax.semilogy(
                np.linspace(0, 0.5 / tr_s, len(spectrum) + 1)[1:], spectrum, label=name.replace("_", ", "), lw=1
            )
    ax.set_xlabel("frequency (Hz)")
    ax.set_ylabel("mean power of brain voxels (a.u.)")
    ax.legend(fontsize=8)
    _save(fig, out / "phantom_noise.png")


def plot_maps(phantom: Phantom, truth_KV: np.ndarray, group_KV: np.ndarray, out: Path) -> None:
    """Truth and measured group map of each condition on the glass brain."""
    from nilearn.plotting import plot_glass_brain

    fig, axes = plt.subplots(len(CONDITIONS), 2, figsize=(11, 2.2 * len(CONDITIONS)))
    for row, label in enumerate(CONDITIONS):
        for column, values in enumerate((truth_KV[row], group_KV[row])):
            image = nib.Nifti1Image(phantom.space.to_grid(values.astype(np.float32)), phantom.grid.affine)
            plot_glass_brain(
                image, axes=axes[row, column], threshold=0.4, vmax=2.5, plot_abs=False, colorbar=False,
                title=f"{label}: {'truth' if column == 0 else 'group effect'}",
            )  # fmt: skip
    fig.savefig(out / "phantom_maps.png", dpi=60)
    plt.close(fig)


def _save(fig, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=90)
    plt.close(fig)


def print_tables(found: dict) -> None:
    """Markdown tables for the documentation."""
    print("| condition | split half: HCP | voxels | parcels | one subject: HCP | voxels | parcels |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    v, p = found["voxels"], found["parcels"]
    rows = list(
        zip(
            CONDITIONS,
            HCP_SPLIT_HALF,
            v["split_half"],
            p["split_half"],
            HCP_SINGLE,
            v["single"],
            p["single"],
            strict=True,
        )
    )
    for row in [*rows, ("mean", *(np.mean([r[i] for r in rows]) for i in range(1, 7)))]:
        print("| " + " | ".join([str(row[0])] + [f"{x:.2f}" for x in row[1:]]) + " |")
    print("\n| pair | HCP, parcels | phantom, voxels | phantom, parcels |\n| --- | --- | --- | --- |")
    for (a, b), target in HCP_PAIRS.items():
        i, j = CONDITIONS.index(a), CONDITIONS.index(b)
        print(f"| {a}, {b} | {target:.2f} | {v['between'][i][j]:.2f} | {p['between'][i][j]:.2f} |")
    print(f"\nTop-1 of the halves {v['top1_split_half']:.2f}, RSA of the halves {v['rsa_split_half']:.3f}")
    print("Top-1 of one subject:", {c: round(x, 2) for c, x in zip(CONDITIONS, v["top1_single"], strict=True)})
    print("\n| run | tSNR (10, 50, 90 %) | lag-one r | FWHM x, y, z (mm) |\n| --- | --- | --- | --- |")
    for name, s in found["noise"].items():
        print(
            f"| {name} | {', '.join(f'{x:.0f}' for x in s['tsnr'])} | {', '.join(f'{x:.2f}' for x in s['ar1'])} "
            f"| {', '.join(f'{x:.1f}' for x in s['fwhm_mm'])} |"
        )
    print("\nvariance of volumes:", {k: f"{x:.2%}" for k, x in found["pca"]["share"].items()})
    print("speed:", found["speed"])


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--subjects", type=int, default=30)
    parser.add_argument("--real", type=Path, help="folder of the real run (studyforrest localizer)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-speed", action="store_true", help="print the speed and stop")
    arguments = parser.parse_args()
    phantom = Phantom(SimulateConfig(seed=arguments.seed))
    if arguments.only_speed:
        print(speed(phantom))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict = {"seed": arguments.seed, "n_subjects": arguments.subjects, "speed": speed(phantom)}

    effects, masks, grey = [], [], 0.0
    for index in range(arguments.subjects):
        subject = phantom.subject(index)
        effects.append(subject_effects(subject))
        masks.append(subject.anatomy.mask_V)
        grey = grey + subject.anatomy.grey_V / arguments.subjects
    mask_V = np.mean(masks, axis=0) > 0.99
    label_V = parcels(phantom, np.asarray(grey), mask_V)
    effects_SKV = np.stack(effects)
    found["voxels"] = reliability(effects_SKV[..., mask_V])
    found["parcels"] = reliability(np.stack([parcel_means(e, label_V) for e in effects_SKV]))
    truth = group_maps(phantom, list(CONDITIONS))
    plot_maps(phantom, truth, effects_SKV.mean(axis=0) * mask_V, arguments.out)
    found["truth_percent"] = {
        c: {
            "peak": float(np.abs(t).max()),
            "mean_above_half_peak": float(np.abs(t[np.abs(t) > np.abs(t).max() / 2]).mean()),
        }
        for c, t in zip(CONDITIONS, truth, strict=True)
    }
    del effects, effects_SKV

    found["noise"] = {}
    if arguments.real:
        found["noise"]["real"] = real_run_statistics(arguments.real)
    for tr_s in (2.0, 0.72):
        subject = Phantom(SimulateConfig(seed=arguments.seed, tr_s=tr_s)).subject(0)
        bold = subject.run("GAMBLING", "LR").bold_XYZT()
        found["noise"][f"phantom_tr{tr_s:g}"] = run_statistics(bold, subject.mask_XYZ, (3, 3, 3))
    found["pca"] = variance_components(phantom, min(arguments.subjects, 12))
    print_tables(found)
    plot_reliability(found, arguments.out)
    plot_geometry(found, arguments.out)
    plot_pca(found["pca"], arguments.out)
    plot_noise(found["noise"], arguments.out)
    found["pca"].pop("scores"), found["pca"].pop("labels")
    for statistics in found["noise"].values():
        statistics.pop("spectrum")
    (arguments.out / "phantom.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert set(CONDITIONS) == set(load_table().default_labels) <= {c for t in CONDITIONS_BY_TASK.values() for c in t}


if __name__ == "__main__":
    main()
