"""Surfaces from files, dense series of the cortex on them, and runs of different lengths."""

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis
from nibabel.gifti import GiftiDataArray, GiftiImage

from fmrisynth.bids.naming import Entities
from fmrisynth.bids.sidecars import read_tsv, write_tsv
from fmrisynth.cli.main import run
from fmrisynth.config.embed import MapConfig
from fmrisynth.data.blocks import RUN, BlockData, finish_subject, write_block
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask
from fmrisynth.embed import brainmarks
from fmrisynth.embed.cifti import map_cifti
from fmrisynth.embed.encoder import load_encoder
from fmrisynth.embed.flatmap import flat_map
from fmrisynth.embed.maps import FlatMaps
from fmrisynth.embed.surface import load_surface, sampling_matrix
from fmrisynth.errors import FmrisynthError
from tests.embed.test_command import SMALL

SIDE, STEP_MM = 24, 6.0
"""Each hemisphere of the small mesh is a square of so many vertices with so many mm between."""


def grid_mesh():
    row, column = np.indices((SIDE, SIDE)).reshape(2, -1)
    corner = (np.arange(SIDE - 1)[:, None] * SIDE + np.arange(SIDE - 1)).ravel()
    faces = np.concatenate(
        [
            np.column_stack([corner, corner + 1, corner + SIDE]),
            np.column_stack([corner + 1, corner + SIDE + 1, corner + SIDE]),
        ]
    )
    return np.column_stack([column * STEP_MM, -row * STEP_MM, np.zeros(SIDE**2)]).astype(np.float32), faces.astype(
        np.int32
    )


def write_gifti(path, points, faces):
    arrays = [
        GiftiDataArray(points, intent="NIFTI_INTENT_POINTSET"),
        GiftiDataArray(faces, intent="NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(GiftiImage(darrays=arrays), path)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    """Flat surfaces of a small mesh, without the triangles of its first row (the medial wall)."""
    folder = tmp_path_factory.mktemp("surfaces")
    points, faces = grid_mesh()
    for side in ("L", "R"):
        write_gifti(folder / f"small.{side}.flat.1k_fs_LR.surf.gii", points, faces[(faces >= SIDE).all(axis=1)])
    return folder


def write_cifti(path, values_TG, tr_s=1.0, unit="SECOND", n_vertices=SIDE**2):
    """Both hemispheres without the first row of vertices, and a structure below the cortex."""
    models = [
        BrainModelAxis.from_surface(np.arange(SIDE, SIDE**2), n_vertices, name=f"CIFTI_STRUCTURE_CORTEX_{side}")
        for side in ("LEFT", "RIGHT")
    ]
    thalamus = BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), "CIFTI_STRUCTURE_THALAMUS_LEFT", np.eye(4))
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Cifti2Image(
        values_TG.astype(np.float32), (SeriesAxis(0, tr_s, len(values_TG), unit), models[0] + models[1] + thalamus)
    )
    nib.save(image, path)
    return path


N_KNOWN = SIDE**2 - SIDE


def a_dense_series(rng, n_frames=40):
    return 1000 + 10 * rng.standard_normal((n_frames, 2 * N_KNOWN + 8))


def test_a_dense_series_lands_at_its_vertices(surfaces, tmp_path, rng):
    values = a_dense_series(rng)
    place = (10, 5)  # of the right hemisphere
    values[30, N_KNOWN + (place[0] - 1) * SIDE + place[1]] += 2000
    path = write_cifti(tmp_path / "x.dtseries.nii", values)
    config = MapConfig(surfaces=surfaces, pixel_mm=STEP_MM, per_frame=False, clip=None)
    frames = map_cifti(path, config)
    picture = flat_map(STEP_MM, surfaces)
    assert frames.shape == (40, picture.n_pixels)
    shown = picture.spread(frames.T)[30]
    row, column = (round(x) for x in picture.place_of(SIDE**2 + place[0] * SIDE + place[1]))
    strongest = np.unravel_index(np.argmax(shown), shown.shape)
    assert abs(strongest[0] - row) <= 1
    assert abs(strongest[1] - column) <= 1
    assert shown[strongest] > 2  # of 6.2 at the vertex: a pixel lies between three
    # Medial wall and structures below the cortex are nowhere.
    assert picture.n_pixels == pytest.approx(2 * (SIDE - 2) * (SIDE - 1), rel=0.1)
    assert np.isfinite(frames).all()


def test_every_vertex_is_standardised_over_its_run_and_the_header_says_when(surfaces, tmp_path, rng):
    values = a_dense_series(rng) + np.linspace(0, 1, 2 * N_KNOWN + 8) * 3000
    path = write_cifti(tmp_path / "x.dtseries.nii", values, tr_s=2.0)
    config = MapConfig(surfaces=surfaces, pixel_mm=STEP_MM, per_frame=False, clip=None, rate_hz=0.5)
    frames = map_cifti(path, config)
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-3)
    assert len(frames) == 40
    assert len(map_cifti(path, config.model_copy(update={"rate_hz": 1.0}))) == 79


def test_dense_series_that_cannot_be_right_are_refused_in_one_sentence(surfaces, tmp_path, rng):
    config = MapConfig(surfaces=surfaces, pixel_mm=STEP_MM)
    good = write_cifti(tmp_path / "good.dtseries.nii", a_dense_series(rng))

    def refused(path, words, config=config):
        with pytest.raises(FmrisynthError, match=words):
            map_cifti(path, config)

    refused(good, "need the surfaces of their own mesh", MapConfig())
    refused(
        write_cifti(tmp_path / "a.dtseries.nii", a_dense_series(rng), n_vertices=700),
        "700 vertices and the surfaces in maps.surfaces 576",
    )
    refused(write_cifti(tmp_path / "b.dtseries.nii", a_dense_series(rng), unit="HERTZ"), "step of 1 HERTZ")
    refused(
        write_cifti(tmp_path / "c.dtseries.nii", a_dense_series(rng, 8)),
        "8 frames every 1 s make 8 at 1 Hz, expected 16",
    )
    nothing = a_dense_series(rng)
    nothing[3, 4] = np.nan
    refused(write_cifti(tmp_path / "d.dtseries.nii", nothing), "values that are none")
    demeaned = a_dense_series(rng) - 1000
    refused(
        write_cifti(tmp_path / "e.dtseries.nii", demeaned),
        "no percent change",
        config.model_copy(update={"scale": "none"}),
    )
    content = good.read_bytes()
    (tmp_path / "f.dtseries.nii").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "f.dtseries.nii", "cannot be read")
    (tmp_path / "g.dtseries.nii").write_bytes(b"no image")
    refused(tmp_path / "g.dtseries.nii", "expected a CIFTI dense series")


def test_surfaces_that_are_not_there_or_damaged_are_named(surfaces, tmp_path):
    with pytest.raises(FmrisynthError, match=r"expected one flat surface of hemisphere L .*, found none"):
        load_surface("flat", tmp_path)
    with pytest.raises(FmrisynthError, match="expected one pial surface of hemisphere L"):
        sampling_matrix(MNI_3MM, surfaces)  # volumes need them
    for side in ("L", "R"):
        (tmp_path / f"x.{side}.flat.surf.gii").write_bytes(b"<GIFTI")
    with pytest.raises(FmrisynthError, match=r"x.L.flat.surf.gii: expected a surface in GIFTI"):
        load_surface("flat", tmp_path)
    (tmp_path / "y.L.flat.surf.gii").write_bytes(b"")
    with pytest.raises(FmrisynthError, match=r"found x.L.flat.surf.gii, y.L.flat.surf.gii"):
        load_surface("flat", tmp_path)


def test_fsaverage5_from_files_is_fsaverage5(tmp_path, rng):
    for kind in ("flat", "pial", "white"):
        surface = load_surface(kind)
        n = surface.n_left
        left = (surface.faces_F3 < n).all(axis=1)
        for side, points, faces in (
            ("L", surface.coordinates_V3[:n], surface.faces_F3[left]),
            ("R", surface.coordinates_V3[n:], surface.faces_F3[~left] - n),
        ):
            path = tmp_path / f"tpl-fsaverage_den-10k_hemi-{side}_{kind}.surf.gii"
            write_gifti(path, points.astype(np.float32), faces.astype(np.int32))
    np.testing.assert_array_equal(flat_map(4.8, tmp_path).valid_HW, flat_map(4.8).valid_HW)
    volume = rng.normal(size=(*MNI_3MM.shape, 1)).astype(np.float32)
    np.testing.assert_allclose(sampling_matrix(MNI_3MM, tmp_path)(volume), sampling_matrix(MNI_3MM)(volume), atol=1e-3)


@pytest.mark.parametrize("layout", ["bids", "hcp"])
def test_embed_fits_and_applies_to_dense_series(layout, surfaces, tmp_path, rng, capsys):
    data = tmp_path / "dense"
    rows = []
    for i, split in enumerate(("train", "train", "val")):
        for j in (1, 2):
            name = {
                "bids": f"sub-{i:02d}/func/sub-{i:02d}_task-rest_run-{j}_space-fsLR_den-1k_bold.dtseries.nii",
                "hcp": f"{i:02d}/MNINonLinear/Results/rfMRI_REST{j}_LR/rfMRI_REST{j}_LR_Atlas_MSMAll.dtseries.nii",
            }[layout]
            write_cifti(data / name, a_dense_series(rng, 20 + 20 * j))
        rows.append({"participant_id": f"sub-{i:02d}", "split": split, "age": 20 + i})
    write_tsv(data / "participants.tsv", ("participant_id", "split", "age"), rows)
    mine = [*SMALL, "--set", f"maps.surfaces={surfaces}", "--steps", "2"]
    assert run(["embed", str(data), str(tmp_path / "out"), *mine]) == 0
    table = read_tsv(tmp_path / "out" / "features.tsv", ("participant_id", "condition", "split"))
    assert [(row["condition"], row["split"]) for row in table] == [(RUN, s) for s in ("train",) * 4 + ("val",) * 2]
    assert (tmp_path / "out" / "figures" / "flatmap.png").is_file()
    assert run(["embed", str(data), str(tmp_path / "again"), "--encoder", str(tmp_path / "out")]) == 0
    assert (tmp_path / "again" / "features.tsv").read_bytes() == (tmp_path / "out" / "features.tsv").read_bytes()
    capsys.readouterr()
    assert run(["embed", str(data), str(tmp_path / "no"), *SMALL, "--steps", "2"]) == 1
    assert "name it with --set maps.surfaces=DIR" in capsys.readouterr().err


def test_other_surfaces_than_the_encoders_are_refused(surfaces, tmp_path, rng, capsys):
    data, own = tmp_path / "dense", tmp_path / "surfaces"
    own.mkdir()
    for path in surfaces.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    write_cifti(data / "sub-01" / "func" / "sub-01_task-rest_bold.dtseries.nii", a_dense_series(rng))
    write_tsv(data / "participants.tsv", ("participant_id", "split"), [{"participant_id": "sub-01", "split": "train"}])
    mine = [*SMALL, "--set", f"maps.surfaces={own}", "--steps", "2"]
    assert run(["embed", str(data), str(tmp_path / "out"), *mine]) == 0
    points, faces = grid_mesh()
    write_gifti(own / "small.R.flat.1k_fs_LR.surf.gii", points, faces[(faces >= 3 * SIDE).all(axis=1)])
    load_surface.cache_clear()
    flat_map.cache_clear()
    for cached in ("flat_positions", "flat_faces"):
        getattr(__import__("fmrisynth.embed.flatmap", fromlist=[cached]), cached).cache_clear()
    with pytest.raises(FmrisynthError, match="not those that the encoder was fitted with"):
        load_encoder(tmp_path / "out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three people with a short and a long run of volumes."""
    root, mask, rng = tmp_path_factory.mktemp("runs") / "runs", mni_brain_mask(MNI_3MM), np.random.default_rng(3)
    for i, split in enumerate(("train", "train", "val"), start=1):
        blocks = []
        for j, n_frames in enumerate((18, 37), start=1):
            reference = 10_000 * mask.astype(np.float32)
            noise = 60 * rng.standard_normal((*mask.shape, n_frames), dtype=np.float32)
            data = BlockData((reference[..., None] + noise) * mask[..., None], reference, mask)
            entities = Entities(sub=f"{i:02d}", task="rest", run=j, space="MNI152NLin6Asym", res="3")
            blocks.append(
                write_block(
                    root, entities, RUN, data, MNI_3MM, condition=RUN, onset_s=0.0, duration_s=float(n_frames), tr_s=1.0,
                    split=split, source=f"{i}/{j}", extension=".nii",
                )
            )  # fmt: skip
        finish_subject(root, f"{i:02d}", blocks)
    return root


def test_runs_of_different_lengths_are_mapped_whole_and_told_by_the_mean_of_their_clips(runs, tmp_path):
    out = tmp_path / "out"
    probe = ["--probe", "subject", "--set", "probe.folds=2"]
    assert run(["embed", str(runs), str(out), *SMALL, "--steps", "3", *probe]) == 0
    encoder = load_encoder(out)
    maps = FlatMaps(out / "maps", encoder.maps)
    assert [row.n_frames for row in maps.rows] == [18, 37] * 3
    assert [maps.read(i, None).shape[0] for i in range(2)] == [18, 37]
    whole, first, second = (
        next(encoder.places([maps.read(1, None)[part]])) for part in (slice(None), slice(16), slice(16, 32))
    )
    np.testing.assert_allclose(whole, (first + second) / 2, atol=1e-5)
    table = read_tsv(out / "features.tsv", ("participant_id", "filename", "condition"))
    told = np.array([float(v) for k, v in table[1].items() if k.startswith("feature")])
    np.testing.assert_allclose(told, whole.mean(axis=0), atol=2e-3)


def test_brainmarks_hears_the_same_tokens(surfaces, tmp_path, rng, monkeypatch):
    series = [a_dense_series(rng, 40) for _ in range(3)]
    files = [
        write_cifti(tmp_path / "dense" / f"sub-{i}" / "func" / f"sub-{i}_task-rest_bold.dtseries.nii", values)
        for i, values in enumerate(series)
    ]
    rows = [{"participant_id": f"sub-{i}", "split": split} for i, split in enumerate(("train", "train", "val"))]
    write_tsv(tmp_path / "dense" / "participants.tsv", ("participant_id", "split"), rows)
    mine = [*SMALL, "--set", f"maps.surfaces={surfaces}", "--steps", "2"]
    assert run(["embed", str(tmp_path / "dense"), str(tmp_path / "out"), *mine]) == 0

    with pytest.raises(FmrisynthError, match="expected an encoder of CIFTI series on fs_LR surfaces"):
        brainmarks.model_pair(tmp_path / "out")
    monkeypatch.setattr(brainmarks, "N_VERTICES", 2 * SIDE**2)
    transform, network = brainmarks.model_pair(tmp_path / "out")

    def sample(values_TG):  # as the benchmark has it: all vertices, standardised over time
        series_TV = np.zeros((len(values_TG), 2, SIDE**2))
        series_TV[:, :, SIDE:] = values_TG[:, : 2 * N_KNOWN].reshape(len(values_TG), 2, N_KNOWN)
        mean, std = series_TV.mean(0).reshape(1, -1), series_TV.std(0).reshape(1, -1)
        standard = (series_TV.reshape(len(values_TG), -1) - mean) / np.where(std > 0, std, 1)
        return {"bold": torch.tensor(standard).float(), "mean": torch.tensor(mean), "std": torch.tensor(std), "tr": 1.0}

    maps = torch.stack([transform(sample(values))["bold"] for values in series])
    encoder = load_encoder(tmp_path / "out")
    own = np.stack([map_cifti(path, encoder.maps) for path in files])
    np.testing.assert_allclose(maps.numpy(), own, atol=2e-4)

    class_token, registers, patches = network({"bold": maps})
    n = encoder.maps.n_frames
    clips = [frames[i * n : (i + 1) * n] for frames in own for i in range(40 // n)]
    tokens = torch.stack(list(encoder.tokens(clips))).unflatten(0, (3, 40 // n)).mean(1)
    assert registers is None
    torch.testing.assert_close(torch.cat([class_token, patches], dim=1), tokens, atol=1e-3, rtol=1e-3)
