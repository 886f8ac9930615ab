"""How true decoded frames are, with and without observation noise.

    python benchmarks/observation_noise.py BLOCKS TOKENIZER [--split test]

Test subjects are dealt to two halves. The originals of one half are compared with those of the other half (what real data reach), with the
other half after encode and decode, and with the same plus the tokenizer's observation noise: the realism checks of `evaluate`. No generator is involved, so what
differs here is the tokenizer's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.realism import realism_checks
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.summary import Summary, summarise
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
        return summarise(windows, probes, config, n_groups=1)

    real = reduced(iterate_windows(one, mask_XYZ, grid, config)).properties
    conditions = sorted(set(real.conditions_N))
    columns = {
        "originals": reduced(iterate_windows(other, mask_XYZ, grid, config)),
        "decoded": reduced(decoded()),
        "decoded + noise": reduced(noisy(decoded())),
    }
    checks = {name: realism_checks(real, s.properties, conditions, []) for name, s in columns.items()}
    print(f"| {len(one)} blocks against {len(other)} | {' | '.join(columns)} |\n| --- {'| --- ' * len(columns)}|")
    for row in zip(*checks.values(), strict=True):
        if row[0].value is not None:
            print(f"| {row[0].title}: {row[0].what} | {' | '.join(f'{check.value:.3f}' for check in row)} |")


if __name__ == "__main__":
    main()
