"""One HCP-sized run to finished blocks: fmrisynth against the same steps with nilearn and scipy.

    python benchmarks/prepare_speed.py [--repeats 3] [--keep DIR]

Makes a synthetic GAMBLING run (91 x 109 x 91 x 253, int16, .nii.gz) in a temporary folder, and prepares its loss and
win blocks twice, each in a process of its own with one thread of BLAS:

fmrisynth   `prepare_dataset` on the HCP tree;
reference   nibabel, `nilearn.image.resample_img` (linear) onto the same grid, a scipy FIR low-pass at the output's
            Nyquist frequency and a cubic spline at the onset-locked times, scaling, nibabel again.

Prints wall time, CPU time, peak memory, and the correlation of the two results inside the mask, for the intensities and for
percent signal change (which leaves nothing but time courses).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE, N_FRAMES, TR_S = (91, 109, 91), 253, 0.72
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
EVS = {"loss": [(8.07, 27.96), (99.4, 27.95)], "win": [(53.6, 27.94), (144.9, 27.96)]}
CONDITIONS = ("gambling_loss", "gambling_win")


def make_run(root: Path) -> Path:
    """Write the run, its mask and EV files as HCP does; return the image."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    folder = root / "100307" / "MNINonLinear" / "Results" / "tfMRI_GAMBLING_LR"
    (folder / "EVs").mkdir(parents=True)
    index = np.indices(SHAPE, dtype=np.float32).reshape(3, -1)
    xyz = (AFFINE[:3, :3] @ index + AFFINE[:3, 3:]).reshape(3, *SHAPE)
    centre, radii = np.array([0, -18, 8]).reshape(3, 1, 1, 1), np.array([68, 86, 72]).reshape(3, 1, 1, 1)
    inside = (((xyz - centre) / radii) ** 2).sum(axis=0) < 1
    anatomy = 10_000 + 30_000 * gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    bold = np.empty((*SHAPE, N_FRAMES), dtype=np.int16, order="F")
    state = np.zeros(SHAPE, dtype=np.float32)
    for frame in range(N_FRAMES):  # AR(1) noise of about 2 %, slightly smooth as after minimal preprocessing
        fresh = gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), 0.8)
        state = 0.4 * state + 0.1 * fresh
        bold[..., frame] = np.where(inside, anatomy * (1 + state), 0).clip(0, 32_000)
    image = nib.Nifti1Image(bold, AFFINE)
    image.set_sform(AFFINE, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((2, 2, 2, TR_S))
    path = folder / "tfMRI_GAMBLING_LR.nii.gz"
    nib.save(image, path)
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), AFFINE), folder / "brainmask_fs.2.nii.gz")
    for stem, rows in EVS.items():
        text = "".join(f"{onset}\t{duration}\t1.0\n" for onset, duration in rows)
        (folder / "EVs" / f"{stem}.txt").write_text(text)
    return path


def run_fmrisynth(root: Path, out: Path) -> None:
    """The path under test."""
    from fmrisynth.config.prepare import PrepareConfig
    from fmrisynth.prepare import prepare_dataset

    summary = prepare_dataset(root, out, PrepareConfig(conditions=CONDITIONS))
    if summary.failed:
        raise SystemExit(str(summary.failed))


def run_reference(root: Path, out: Path) -> None:
    """The same steps with the usual libraries, written the usual way."""
    import nibabel as nib
    from nilearn.image import resample_img
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import convolve1d
    from scipy.signal import firwin

    from fmrisynth.data.grid import MNI_3MM

    folder = root / "100307" / "MNINonLinear" / "Results" / "tfMRI_GAMBLING_LR"
    target = {"target_affine": MNI_3MM.affine, "target_shape": MNI_3MM.shape, "force_resample": True}
    options = target | {"copy_header": True, "interpolation": "linear"}
    resampled = resample_img(nib.load(folder / "tfMRI_GAMBLING_LR.nii.gz"), **options)
    mask_image = nib.load(folder / "brainmask_fs.2.nii.gz")
    mask_float = nib.Nifti1Image(np.asarray(mask_image.dataobj, dtype=np.float32), mask_image.affine)
    bold = resampled.get_fdata(dtype=np.float32)
    reference = bold.mean(axis=-1)
    mask = (resample_img(mask_float, **options).get_fdata() >= 0.5) & (reference > 0)
    bold *= 10_000 / reference[mask].mean()
    reference *= 10_000 / reference[mask].mean()
    taps = firwin(13, 0.5, window="lanczos")  # 0.5 of the source's Nyquist is the output's Nyquist
    filtered = convolve1d(bold[mask], taps, axis=-1, mode="nearest")
    spline = CubicSpline(
        TR_S * (np.arange(N_FRAMES) + 0.5), filtered, axis=-1
    )  # frames stand for the middle of their TR
    out.mkdir()
    onsets = sorted(onset for rows in EVS.values() for onset, _ in rows)
    for number, onset in enumerate(onsets, start=1):
        window = np.zeros((*MNI_3MM.shape, 12), dtype=np.float32)
        window[mask] = spline(onset + 1.44 * np.arange(12))
        image = nib.Nifti1Image(window, MNI_3MM.affine)
        image.set_data_dtype(np.int16)
        nib.save(image, out / f"run-{number:02d}_bold.nii.gz")
        volume = nib.Nifti1Image(reference.astype(np.float32), MNI_3MM.affine)
        volume.set_data_dtype(np.int16)
        nib.save(volume, out / f"run-{number:02d}_boldref.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), MNI_3MM.affine), out / f"run-{number:02d}_mask.nii.gz")


def compare(ours: Path, theirs: Path) -> dict[str, float]:
    """Lowest correlation over the blocks, inside the mask."""
    import nibabel as nib

    from fmrisynth.data.blocks import read_blocks

    raw, change, masks = [], [], []
    for number, block in enumerate(read_blocks(ours), start=1):
        data = block.load()
        other = nib.load(theirs / f"run-{number:02d}_bold.nii.gz").get_fdata()
        other_reference = nib.load(theirs / f"run-{number:02d}_boldref.nii.gz").get_fdata()
        other_mask = nib.load(theirs / f"run-{number:02d}_mask.nii.gz").get_fdata() > 0
        both = data.mask_XYZ & other_mask & (data.reference_XYZ > 1000)
        masks.append(2 * (data.mask_XYZ & other_mask).sum() / (data.mask_XYZ.sum() + other_mask.sum()))
        raw.append(np.corrcoef(data.bold_XYZT[both].ravel(), other[both].ravel())[0, 1])
        a = data.bold_XYZT[both] / data.reference_XYZ[both][:, None]
        b = other[both] / other_reference[both][:, None]
        change.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    return {"r_intensity": min(raw), "r_percent_change": min(change), "mask_dice": min(masks)}


def measure(which: str, root: Path, out: Path) -> dict[str, float]:
    """Run one path in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--only", which, "--root", str(root), "--out", str(out)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make (or reuse) the run in this folder")
    parser.add_argument("--only", choices=("fmrisynth", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        start = time.perf_counter()  # imports of the libraries count: they are part of a call
        (run_fmrisynth if arguments.only == "fmrisynth" else run_reference)(arguments.root, arguments.out)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = usage.ru_utime + usage.ru_stime  # hardly depends on what else the machine does
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": usage.ru_maxrss / 1e6}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch) / "hcp"
        image = root / "100307/MNINonLinear/Results/tfMRI_GAMBLING_LR/tfMRI_GAMBLING_LR.nii.gz"
        if not image.exists():
            make_run(root)
        print(f"input: {' x '.join(map(str, SHAPE))} x {N_FRAMES} int16, {image.stat().st_size / 1e6:.0f} MB gzip")
        best: dict[str, dict[str, float]] = {}
        for repeat in range(arguments.repeats):  # side by side: alternate, so that load hits both
            for which in ("fmrisynth", "reference"):
                found = measure(which, root, Path(scratch) / f"{which}-{repeat}")
                if which not in best or found["seconds"] < best[which]["seconds"]:
                    best[which] = found
        for which, found in best.items():
            print(
                f"{which:<10} {found['seconds']:7.2f} s   {found['cpu_seconds']:7.2f} s of CPU   "
                f"peak {found['peak_gb']:.2f} GB"
            )
        for name, key in (("speed-up", "seconds"), ("CPU", "cpu_seconds")):
            print(f"{name:<10} {best['reference'][key] / best['fmrisynth'][key]:7.1f} x")
        for name, value in compare(Path(scratch) / "fmrisynth-0", Path(scratch) / "reference-0").items():
            print(f"{name:<17} {value:.6f}")


if __name__ == "__main__":
    main()
