"""A copy of a model whose network answers nothing: what the scores would be without it.

    python benchmarks/silence.py fmrisynth/bundled silent/
    fmrisynth sample OUT --all-conditions --n 100 --seed 1 --checkpoint silent/

The weights of its last layer become 0.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save

from fmrisynth.bids.atomic import write_bytes
from fmrisynth.bids.provenance import sha256_of
from fmrisynth.models.checkpoint import CARD_NAME, EMA_NAME, find_model_dir

LAST_LAYERS = ("conv_out.", "unet.out.")


def main(model: Path, out: Path) -> None:
    """Copy a model to the folder `out` and silence it."""
    source = find_model_dir(model)
    weights = load_file(source / EMA_NAME)
    last = [name for name in weights if name.startswith(LAST_LAYERS)]
    if not last:
        raise SystemExit(f"{model}: expected a last layer named {' or '.join(LAST_LAYERS)}*, found none.")
    shutil.copytree(source, out)
    if not (out / "tokenizer").exists():
        shutil.copytree(model / "tokenizer", out / "tokenizer")
    write_bytes(out / EMA_NAME, save(weights | {name: weights[name] * 0 for name in last}))
    card = json.loads((out / CARD_NAME).read_text()) | {"weights_sha256": sha256_of(out / EMA_NAME)}
    (out / CARD_NAME).write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
