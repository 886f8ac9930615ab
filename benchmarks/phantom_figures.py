"""Measure the phantom against HCP's statistics and real runs; write the figures and numbers of docs/phantom.md.

    python benchmarks/phantom_figures.py --out docs/figures --seed 31 --real FOLDER

FOLDER holds two public data sets, `studyforrest-localizer` (Sengupta et al. 2016) and `haxby-lowres` (Haxby et al. 2001,
resampled to 25 mm), as BIDS.

The effects are those of the window GLM (`fmrisynth.glm`): least squares of 12 frames on [boxcar * HRF, 1]. As they
are linear in the frames, each block is rendered through the GLM's weights at once, which gives the same numbers as
rendering 12 frames and fitting them (checked by a test) in a twelfth of the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.glm.design import window_design
from fmrisynth.simulate import Phantom
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

N_PARCELS, N_COMPONENTS = 360, 14


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
    """Noise figures of a run after removing a cubic trend; SD in percent of each voxel's mean.

    Correlation: of pairs of voxels at a distance, mean over the three axes. Component: share of the variance of
    standardised voxels. FWHM: Forman et al. 1995, from the variance of differences between neighbours.
    """
    n, n_voxels = bold_XYZT.shape[-1], int(mask_XYZ.sum())
    trend = np.vander(np.linspace(-1, 1, n), 4)
    series = bold_XYZT[mask_XYZ].T.astype(np.float64)
    brain, mean = series.mean(axis=1), series.mean(axis=0)
    residual = series - trend @ np.linalg.lstsq(trend, series, rcond=None)[0]
    z = residual / np.maximum(residual.std(axis=0), 1e-9)
    percent = 100 * residual.std(axis=0) / mean
    number = np.full(mask_XYZ.shape, -1)
    number[mask_XYZ] = np.arange(n_voxels)

    def along(axis: int, distance_mm: float) -> float:
        step = max(round(distance_mm / voxel_mm[axis]), 1)
        a = np.moveaxis(number, axis, 0)
        both = (a[:-step] >= 0) & (a[step:] >= 0)
        return float((z[:, a[:-step][both]] * z[:, a[step:][both]]).mean())

    neighbours = [along(axis, voxel_mm[axis]) for axis in range(3)]
    power = np.abs(np.fft.rfft(z, axis=0)) ** 2
    steps = (np.diff(z, axis=0) ** 2).mean(axis=1)
    brain_residual = brain - trend @ np.linalg.lstsq(trend, brain, rcond=None)[0]
    return {
        "sd": np.percentile(percent, [10, 50, 90, 99]).tolist(), "cv": float(percent.std() / percent.mean()),
        "cv_scanner_units": float(residual.std(axis=0).std() / residual.std(axis=0).mean()),
        "tsnr": np.percentile(mean / residual.std(axis=0), [10, 50, 90]).tolist(),
        "r": [float(np.mean([along(axis, d) for axis in range(3)])) for d in (3, 12, 24) if d >= 0.5 * min(voxel_mm)],
        "component": float(100 * np.linalg.eigvalsh(z @ z.T)[-1] / (n * n_voxels)),
        "global": float(100 * brain_residual.std() / brain.mean()),
        "ar1": np.percentile((z[1:] * z[:-1]).sum(axis=0) / n, [10, 50, 90]).tolist(),
        "kurtosis": np.percentile((z**4).mean(axis=0) - 3, [50, 99]).tolist(),
        "jump": float(steps.max() / np.median(steps)),
        "fwhm": [float(v * np.sqrt(-2 * np.log(2) / np.log(max(r, 1e-3)))) for v, r in zip(voxel_mm, neighbours, strict=True)],
        "spectrum": (power.mean(axis=1) / power.mean(axis=1)[1:].mean()).tolist(),
    }  # fmt: skip


def average(runs: list[dict]) -> dict:
    """The mean of each figure over runs."""
    return {key: np.mean([run[key] for run in runs], axis=0).tolist() for key in runs[0]}


def real_run(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The studyforrest run without its first four volumes, its brain (nilearn) and voxel size."""
    from nilearn.masking import compute_epi_mask

    image = nib.load(next((folder / "studyforrest-localizer" / "sub-02" / "func").glob("*_bold.nii.gz")))
    bold = np.asarray(image.dataobj, dtype=np.float32)[..., 4:]
    mask = np.asarray(compute_epi_mask(nib.Nifti1Image(bold.mean(axis=-1), image.affine)).dataobj) > 0
    return bold, mask, image.header.get_zooms()[:3]


def noise_figures(folder: Path | None, seed: int, n_subjects: int = 4) -> tuple[dict, dict]:
    """Figures of real runs and of phantom runs with the same TR, length and sampling; SD images (percent) of two."""
    found, images = {}, {}

    def sd_image(bold, mask):
        return np.where(mask, 100 * bold.std(axis=-1) / np.maximum(bold.mean(axis=-1), 1), 0)

    if folder:
        bold, mask, voxel_mm = real_run(folder)
        found["studyforrest, TR 2 s"] = run_statistics(bold, mask, voxel_mm)
        images["studyforrest"] = sd_image(bold, mask)
        haxby = folder / "haxby-lowres"
        mask = np.squeeze(np.asarray(nib.load(haxby / "masks" / "brain.nii.gz").dataobj)) > 0
        runs = [nib.load(path) for path in sorted(haxby.glob("sub-01/func/*_bold.nii.gz"))]
        found["haxby, 25 mm, TR 2.5 s"] = average(
            [run_statistics(np.asarray(run.dataobj, dtype=np.float32), mask, (25, 25, 25)) for run in runs]
        )
    for name, tr_s, n_frames, every in (
        ("phantom, TR 2 s", 2.0, 152, 1), ("phantom, 24 mm, TR 2.5 s", 2.5, 121, 8), ("phantom, TR 0.72 s", 0.72, 405, 1)
    ):  # fmt: skip
        phantom, runs = Phantom(SimulateConfig(seed=seed, tr_s=tr_s)), []
        for index in range(n_subjects):
            subject = phantom.subject(index)
            bold = subject.run("WM", "LR").bold_XYZT()[::every, ::every, ::every, :n_frames]
            mask = subject.mask_XYZ[::every, ::every, ::every]
            runs.append(run_statistics(bold, mask, (3 * every,) * 3))
            if name == "phantom, TR 2 s" and index < 2:
                images[f"phantom {index + 1}"] = sd_image(bold, mask)
        found[name] = average(runs)
    return found, images


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
    scores, *_ = np.linalg.svd(x, full_matrices=False)

    def share(values: np.ndarray, factor: list) -> float:
        factor_array = np.asarray([str(f) for f in factor])
        between = sum(
            (factor_array == level).sum() * (values[factor_array == level].mean(axis=0) ** 2).sum()
            for level in np.unique(factor_array)
        )
        return float(between / (values**2).sum())

    return {
        "share": {name: share(x, factor) for name, factor in labels.items()},
        "component_share": {
            name: [share(scores[:, k : k + 1], factor) for k in range(N_COMPONENTS)] for name, factor in labels.items()
        },
    }


def speed(n_subjects: int = 8) -> dict:
    """Blocks per minute of CPU time (user and system) to disk, one thread, start-up included: the command itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = f"fmrisynth simulate {folder} --layout blocks --n-subjects {n_subjects} --seed 1000".split()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        n = len(list(Path(folder).glob("sub-*/func/*_bold.nii.gz")))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"blocks": n, "blocks_per_cpu_minute": 60 * n / cpu_s}


def plot_reliability(found: dict, pca: dict, out: Path) -> None:
    """Bars: phantom beside HCP; correlations between group maps; what principal components of volumes separate."""
    fig, axes = plt.subplots(2, 2, figsize=(11, 8))
    names, at = [label.split("_", 1)[1] for label in CONDITIONS], np.arange(len(CONDITIONS))
    for ax, key, target, title in zip(
        axes[0], ("split_half", "single"), (HCP_SPLIT_HALF, HCP_SINGLE),
        ("Split half of group maps", "One subject against the others"), strict=True,
    ):  # fmt: skip
        ax.bar(at - 0.27, target, 0.25, label="HCP, parcels", color="0.6")
        ax.bar(at, found["parcels"][key], 0.25, label="phantom, parcels", color="tab:blue")
        ax.bar(at + 0.27, found["voxels"][key], 0.25, label="phantom, voxels", color="tab:orange")
        ax.set(xticks=at, ylim=(0, 1), title=title, ylabel="map correlation r")
        ax.set_xticklabels(names, rotation=30, ha="right")
    axes[0, 0].legend(fontsize=8, loc="lower left")
    matrix = np.array(found["parcels"]["between"])
    axes[1, 0].imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axes[1, 0].set(xticks=at, yticks=at, yticklabels=names, title="correlation of group maps, parcels")
    axes[1, 0].set_xticklabels(names, rotation=30, ha="right")
    for (i, j), r in np.ndenumerate(matrix):
        axes[1, 0].text(j, i, f"{r:.2f}", ha="center", va="center", fontsize=7)
    bottom = np.zeros(N_COMPONENTS)
    for name, shares in pca["component_share"].items():
        axes[1, 1].bar(np.arange(N_COMPONENTS) + 1, shares, bottom=bottom, label=f"{name} ({pca['share'][name]:.2%})")
        bottom += shares
    axes[1, 1].set(xlabel="component of single volumes", title="what a component separates")
    axes[1, 1].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(out / "phantom_reliability.png", dpi=80)
    plt.close(fig)


def plot_noise(found: dict, images: dict[str, np.ndarray], out: Path) -> None:
    """Where the noise is: SD of the voxels in three axial slices; and power spectra."""
    fig, axes = plt.subplots(len(images), 4, figsize=(12, 2.6 * len(images)), width_ratios=(1, 1, 1, 1.8))
    fig.subplots_adjust(left=0.0, right=0.98, bottom=0.02, top=0.95, wspace=0.02, hspace=0.12)
    for row, (name, image) in zip(axes, images.items(), strict=True):
        levels = np.flatnonzero(image.any(axis=(0, 1)))
        for ax, share in zip(row, (0.3, 0.5, 0.7), strict=False):
            slab = image[..., int(levels[0] + share * np.ptp(levels))].T
            ax.imshow(slab, origin="lower", vmin=0, vmax=5, cmap="inferno")
            ax.set_title(f"{name}: SD, 0 to 5 %", fontsize=8)
            ax.axis("off")
        row[3].axis("off")
    ax = fig.add_axes((0.68, 0.2, 0.3, 0.6))
    for name, tr_s in (("studyforrest, TR 2 s", 2.0), ("phantom, TR 2 s", 2.0), ("phantom, TR 0.72 s", 0.72)):
        if name in found:
            power = np.array(found[name]["spectrum"])[1:]
            ax.semilogy(np.linspace(0, 0.5 / tr_s, len(power) + 1)[1:], power, label=name, lw=1)
    ax.set_xlabel("frequency (Hz)")
    ax.set_title("mean power (a.u.)", fontsize=8)
    ax.legend(fontsize=7)
    fig.savefig(out / "phantom_noise.png", dpi=70)
    plt.close(fig)


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


def print_tables(found: dict) -> None:
    """Markdown tables for the documentation."""

    def table(header: list[str], rows) -> None:
        print("\n| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
        for row in rows:
            print("| " + " | ".join(x if isinstance(x, str) else f"{x:.2f}" for x in row) + " |")

    v, p = found["voxels"], found["parcels"]
    columns = (HCP_SPLIT_HALF, p["split_half"], v["split_half"], HCP_SINGLE, p["single"], v["single"])
    rows = [*zip(CONDITIONS, *columns, strict=True), ("mean", *(float(np.mean(c)) for c in columns))]
    table(["condition", "split half: HCP", "parcels", "voxels", "one subject: HCP", "parcels", "voxels"], rows)
    pairs = [(a, b, CONDITIONS.index(a), CONDITIONS.index(b)) for a, b in HCP_PAIRS]
    rows = [(f"{a}, {b}", HCP_PAIRS[a, b], p["between"][i][j], v["between"][i][j]) for a, b, i, j in pairs]
    table(["pair of group maps", "HCP, parcels", "phantom, parcels", "phantom, voxels"], rows)
    for kind in ("parcels", "voxels"):
        print(f"\n{kind}: halves Top-1 {found[kind]['top1_split_half']:.2f}, RSA {found[kind]['rsa_split_half']:.3f}")
        print("  Top-1 of one subject, condition by condition:", np.round(found[kind]["top1_single"], 2))
    noise = found["noise"]
    keys = ("sd", "cv", "cv_scanner_units", "r", "component", "global", "tsnr", "ar1", "kurtosis", "jump", "fwhm")
    rows = [
        [key, *(", ".join(f"{x:.3g}" for x in np.atleast_1d(figures[key])) for figures in noise.values())]
        for key in keys
    ]
    table(["figure", *noise], rows)
    print("\nvariance of volumes:", {k: f"{x:.2%}" for k, x in found["pca"]["share"].items()})
    print("peaks of the true responses (%):", {c: round(x, 2) for c, x in found["truth_peak_percent"].items()})
    print("speed:", found["speed"])


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--subjects", type=int, default=30)
    parser.add_argument("--real", type=Path, help="folder of the two real data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-speed", action="store_true", help="print the speed and stop")
    arguments = parser.parse_args()
    if arguments.only_speed:
        print(speed())
        return
    phantom = Phantom(SimulateConfig(seed=arguments.seed))
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict = {"seed": arguments.seed, "n_subjects": arguments.subjects, "speed": speed()}

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
    found["truth_peak_percent"] = dict(zip(CONDITIONS, np.abs(truth).max(axis=1).tolist(), strict=True))
    del effects, effects_SKV
    found["noise"], images = noise_figures(arguments.real, arguments.seed)
    found["pca"] = variance_components(phantom, min(arguments.subjects, 12))
    print_tables(found)
    plot_reliability(found, found["pca"], arguments.out)
    plot_noise(found["noise"], images, arguments.out)
    for statistics in found["noise"].values():
        statistics.pop("spectrum")
    (arguments.out / "phantom.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
