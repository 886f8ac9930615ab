"""How true decoded frames are, with and without observation noise.

    python benchmarks/observation_noise.py BLOCKS TOKENIZER [--split test]

Test subjects are dealt to two halves. The originals of one half are compared with those of the other half (what real
data reach), with the other half after encode and decode, and with the same plus the tokenizer's observation noise: the
checks of `evaluate`. No generator is involved, so what differs here is the tokenizer's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.evaluate.checks import Context
from fmrisynth.evaluate.jackknife import STATISTICS, measure
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.summary import Summariser, Summary
from fmrisynth.glm.windows import Window, common_mask, iterate_windows
from fmrisynth.models.tokenizers import load_tokenizer


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    config, tokenizer = GlmConfig(), load_tokenizer(arguments.tokenizer)
    noise = tokenizer.info.noise
    if noise is None or tokenizer.info.normalisation != "dynamics":
        raise SystemExit(
            "needs a tokenizer with observation noise and dynamics normalisation, where noise is percent signal change"
        )
    blocks = read_blocks(arguments.blocks, split=arguments.split)
    grid, subjects = common_grid(blocks), sorted({block.subject for block in blocks})
    mask_XYZ = common_mask(blocks, grid, config.min_reference_fraction) & tokenizer.info.mask_XYZ
    one, other = ([block for block in blocks if subjects.index(block.subject) % 2 == half] for half in (0, 1))
    probes = Probes(grid, mask_XYZ, [])
    rng = np.random.default_rng(0)

    def noisy(windows: Iterable[Window]) -> Iterator[Window]:
        for window in windows:
            yield replace(window, percent_TV=window.percent_TV + noise.draw(rng)[mask_XYZ].T)

    def decoded() -> Iterator[Window]:
        return reconstructed_windows(other, mask_XYZ, grid, config, arguments.tokenizer)

    def reduced(windows: Iterable[Window]) -> Summary:
        return Summariser(probes, config, np.arange(int(mask_XYZ.sum())), n_groups=1).take(windows)

    real = reduced(iterate_windows(one, mask_XYZ, grid, config)).properties
    conditions = sorted(set(real.rows.conditions_N))
    columns = {
        "originals": reduced(iterate_windows(other, mask_XYZ, grid, config)),
        "decoded": reduced(decoded()),
        "decoded + noise": reduced(noisy(decoded())),
    }
    context = Context(conditions, conditions, [])
    peer = columns["originals"].properties
    found = {name: measure(real, s.properties, peer, context) for name, s in columns.items()}
    print(f"| {len(one)} blocks against {len(other)} | {' | '.join(columns)} |\n| --- {'| --- ' * len(columns)}|")
    for check in STATISTICS:
        row = [values[check.key] for values in found.values()]
        if all(one is not None and np.isfinite(one.values_K).all() for one in row):
            cells = (f"{check.shown(float(one.values_K.mean())):.3f}" for one in row if one is not None)
            print(f"| {check.title}: {check.what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
