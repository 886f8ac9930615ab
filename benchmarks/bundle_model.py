"""Copy a trained model, and the model that draws how its people look, into the package, in half precision.

    python benchmarks/bundle_model.py MODEL ANATOMY_MODEL [fmrisynth/bundled]

The models are outputs of `fmrisynth train`; their newest checkpoints are taken. Weights are stored as float16 and computed
with in float32. The model card (README.md of the target) is kept; SHA256SUMS is written.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fmrisynth.bids.atomic import write_bytes
from fmrisynth.bids.provenance import sha256_of
from fmrisynth.models.checkpoint import BRAIN, CARD_NAME, EMA_NAME, find_model_dir
from fmrisynth.models.whitening import MIX, SCALE


def copy_model(run: Path, out: Path) -> None:
    """Write the model directory `out` from the training output `run`."""
    source = find_model_dir(run)
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / EMA_NAME)
    kept = {BRAIN, SCALE, MIX}
    half = {key: tensor if key in kept else tensor.to(torch.float16) for key, tensor in weights.items()}
    write_bytes(out / EMA_NAME, save(half))
    card = json.loads((source / CARD_NAME).read_text()) | {"weights_sha256": sha256_of(out / EMA_NAME)}
    (out / CARD_NAME).write_text(json.dumps(card, indent=2) + "\n")
    shutil.copytree(run / "tokenizer", out / "tokenizer")
    print(f"{source} -> {out}: step {card['step']}")


def main(run: Path, anatomy: Path, out: Path) -> None:
    """Write both, and their digests."""
    copy_model(run, out)
    copy_model(anatomy, out / "anatomy")
    files = sorted(path for path in out.rglob("*") if path.suffix in (".json", ".safetensors"))
    sums = [f"{sha256_of(path)}  {path.relative_to(out).as_posix()}" for path in files]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, [*sys.argv[1:3], *(sys.argv[3:] or ["fmrisynth/bundled"])]))
