"""A plain vision transformer of patches in any number of dimensions (Dosovitskiy et al. 2021), of which a part may be seen.

Axis legend: B batch, N patches of the whole grid, K patches that are seen, P numbers of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fmrisynth.models.blocks import Attention


@dataclass(frozen=True)
class Patches:
    """How an array is cut into patches: its sides and those of a patch, which divide them."""

    shape: tuple[int, ...]
    patch: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.patch) or any(s % p for s, p in zip(self.shape, self.patch, strict=True)):
            raise ValueError(f"an array of {self.shape} cannot be cut into patches of {self.patch}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(s // p for s, p in zip(self.shape, self.patch, strict=True))

    def cut(self, x_BS: Tensor) -> Tensor:
        """Arrays of the sides S as patches (B, N, P), both in C order."""
        n = len(self.shape)
        split = x_BS.reshape(len(x_BS), *(side for pair in zip(self.grid, self.patch, strict=True) for side in pair))
        order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2)]
        return split.permute(order).reshape(len(x_BS), prod(self.grid), prod(self.patch))

    def join(self, patches_BNP: Tensor) -> Tensor:
        """Inverse of `cut`."""
        n = len(self.shape)
        split = patches_BNP.reshape(len(patches_BNP), *self.grid, *self.patch)
        order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i))]
        return split.permute(order).reshape(len(patches_BNP), *self.shape)


def gather(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """The chosen rows of each instance, (B, K, D)."""
    return x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


def draw_seen(used: Tensor, ratio: float, generator: torch.Generator, *, tube: bool = False) -> Tensor:
    """Which patches are seen, as indices of the flattened grid, sorted, int64 (K,).

    Parameters
    ----------
    used : Tensor of the grid's shape, bool
        Patches that hold something; of others none is seen.
    ratio : float
        Share of the used ones that is hidden; at least one is seen.
    tube : bool
        Hide whole lines along the first axis, which must be used alike everywhere.
    """
    places = used[0].flatten().nonzero()[:, 0] if tube else used.flatten().nonzero()[:, 0]
    n = max(1, round((1 - ratio) * len(places)))
    chosen = places[torch.randperm(len(places), generator=generator)[:n]].sort().values
    if not tube:
        return chosen
    return (torch.arange(len(used))[:, None] * used[0].numel() + chosen).flatten()


class Positions(nn.Module):
    """Learned positions, the sum of one table for each group of axes (for a video: time, and place).

    Parameters
    ----------
    grid : sequence of int
        Patches along each axis.
    groups : sequence of sequence of int
        Which axes share a table; every axis in one group.
    width : int
    """

    index_GN: Tensor

    def __init__(self, grid: Sequence[int], groups: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        tables, rows = [], []
        where = torch.cartesian_prod(*(torch.arange(n) for n in grid)).reshape(-1, len(grid))
        for axes in groups:
            row = torch.zeros(len(where), dtype=torch.int64)
            for axis in axes:
                row = row * grid[axis] + where[:, axis]
            rows.append(row)
            tables.append(nn.Parameter(torch.empty(prod(grid[axis] for axis in axes), width)))
        self.tables = nn.ParameterList(tables)
        for table in self.tables:
            nn.init.trunc_normal_(table, std=0.02)
        self.register_buffer("index_GN", torch.stack(rows), persistent=False)

    def forward(self, index_BK: Tensor) -> Tensor:
        """Positions of patches by their number in the grid, (B, K, D)."""
        return sum(table[rows[index_BK]] for table, rows in zip(self.tables, self.index_GN, strict=True))


class ViTBlock(nn.Module):
    """Self-attention and feed-forward layer, each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x_BKD: Tensor) -> Tensor:
        x_BKD = x_BKD + self.attention(self.norm_attention(x_BKD))
        return x_BKD + self.mlp(self.norm_mlp(x_BKD))


class ViT(nn.Module):
    """Tokens of the seen patches, and a class token that has no place.

    Parameters
    ----------
    grid, groups
        As for `Positions`.
    width_in, width, depth, heads, mlp_ratio : int
    """

    def __init__(
        self, grid: Sequence[int], groups: Sequence[Sequence[int]], width_in: int, width: int, depth: int, heads: int, mlp_ratio: int = 4
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.positions = Positions(grid, groups, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialise(self)

    def forward(self, x_BKP: Tensor, index_BK: Tensor) -> Tensor:
        """Tokens (B, 1 + K, D), the class token first."""
        x_BKD = self.embed(x_BKP) + self.positions(index_BK)
        x_BKD = torch.cat([self.class_token.to(x_BKD.dtype).expand(len(x_BKD), -1, -1), x_BKD], dim=1)
        for block in self.blocks:
            x_BKD = block(x_BKD)
        return self.norm(x_BKD)


def initialise(module: nn.Module) -> None:
    """Weights of linear layers uniform after Glorot, biases 0, class token and tables narrow normal, as in He et al. 2022."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("token"):
            nn.init.trunc_normal_(parameter, std=0.02)
