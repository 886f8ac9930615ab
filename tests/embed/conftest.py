"""A small block dataset in MNI space whose conditions, ages and sexes are told by planted patches of cortex."""

import numpy as np
import pytest

from fmrisynth.bids.naming import Entities
from fmrisynth.bids.origin import PHANTOM
from fmrisynth.bids.provenance import write_dataset_description
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.data.blocks import BlockData, finish_subject, write_block
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask

PLACES_MM = {"motor_rh": (-38, -24, 58), "emotion_fear": (38, -80, 4)}


def ball(place_mm, radius_mm=12.0, grid=MNI_3MM):
    """Voxels of a grid within a ball, float32."""
    index = np.indices(grid.shape).reshape(3, -1)
    at_mm = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    distance = np.linalg.norm(at_mm - np.asarray(place_mm, float)[:, None], axis=0)
    return (distance <= radius_mm).reshape(grid.shape).astype(np.float32)


def write_blocks(root, n_people=6, n_each=2, n_frames=12, effect=200.0, seed=0):
    rng = np.random.default_rng(seed)
    mask = mni_brain_mask(MNI_3MM)
    where = np.flatnonzero(mask)
    rows = []
    for i in range(n_people):
        subject = f"{i + 1:02d}"
        split = "train" if i < n_people - 2 else ("val" if i == n_people - 2 else "test")
        reference = 10_000 * mask.astype(np.float32)
        blocks = []
        for run in range(n_each):
            for condition, place in PLACES_MM.items():
                noise = np.zeros((mask.size, n_frames), np.float32)
                noise[where] = 60 * rng.standard_normal((len(where), n_frames), dtype=np.float32)
                bold = reference[..., None] + noise.reshape(*mask.shape, n_frames)
                bold += effect * (ball(place) * mask)[..., None] * (np.arange(n_frames) > 2)
                entities = Entities(
                    sub=subject, task=condition.split("_")[0], run=run + 1, space="MNI152NLin6Asym", res="3"
                )
                blocks.append(
                    write_block(
                        root, entities, condition.replace("_", ""), BlockData(bold, reference, mask), MNI_3MM, condition=condition,
                        onset_s=0.0, duration_s=12.0, tr_s=1.44, split=split, source=f"{subject}/{condition}/{run}", extension=".nii",
                    )
                )  # fmt: skip
        finish_subject(root, subject, blocks)
        rows.append({"participant_id": f"sub-{subject}", "sex": "FM"[i % 2], "age": 20 + 3 * i})
    write_dataset_description(root, "planted patches", origin=PHANTOM)
    write_tsv(root / "participants.tsv", ("participant_id", "sex", "age"), rows)
    return root


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    return write_blocks(tmp_path_factory.mktemp("planted") / "blocks")
