"""A copy of a model whose network answers nothing, so that its samples are draws from the prior: what does the network add?

    python benchmarks/silence.py fmrisynth/bundled silent/
    fmrisynth sample OUT --all-conditions --n 100 --seed 1 --checkpoint silent/

For a preconditioned model: the weights of its last layer become 0.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save

from fmrisynth.bids.atomic import write_bytes
from fmrisynth.models.checkpoint import EMA_NAME, read_card

LAST_LAYER = "conv_out."


def main(model: Path, out: Path) -> None:
    """Copy the model directory `model` to `out` and silence it."""
    if not read_card(model).objective.get("precondition"):
        raise SystemExit(f"{model}: only a preconditioned model draws from its prior when its network is silent.")
    weights = load_file(model / EMA_NAME)
    if not any(name.startswith(LAST_LAYER) for name in weights):
        raise SystemExit(
            f"{model}: expected a last layer named {LAST_LAYER}*, found none; this kind of network is not known here."
        )
    shutil.copytree(model, out)
    silent = {name: tensor * 0 if name.startswith(LAST_LAYER) else tensor for name, tensor in weights.items()}
    write_bytes(out / EMA_NAME, save(silent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
