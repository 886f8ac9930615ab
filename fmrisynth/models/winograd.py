"""3x3x3 convolution in a quarter of the multiplications, for CPUs (Winograd 1980; Lavin & Gray 2016).

Along y and z every tile of 4 x 4 outputs is computed as 6 x 6 products of transformed inputs and weights, F(4 x 4, 3 x 3):
36 multiplications in place of 144. Along x the three taps are added up as they are. What remains are matrix products. The
result equals the direct convolution but for rounding, about ten times that of the direct sum in float32 (1e-5 of the largest
value; TF32 on a GPU is a hundred times coarser).

Axis legend: B batch, C channels in, O channels out, X Y Z grid, T = Y/4 * Z/4 tiles of a slice, W = 36 products of a
tile, R rows: the slices of all images one after another, each image between two slices of zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4
MIN_WIDTH = 128
"""With fewer channels the transforms cost what the products save (benchmarks/convolution_speed.py)."""

_INPUT: list[list[float]] = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                             [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
_WEIGHT: list[list[float]] = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
                              [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_OUTPUT: list[list[float]] = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_axes(matrix: list[list[float]]) -> Tensor:
    one = torch.tensor(matrix, dtype=torch.float64, device="cpu")  # also when first imported to build on another device
    return torch.kron(one, one)  # along y and z at once


INPUT_36x36, WEIGHT_36x9, OUTPUT_16x36 = _both_axes(_INPUT), _both_axes(_WEIGHT), _both_axes(_OUTPUT)


def pays(x_BCXYZ: Tensor, weight_OCxyz: Tensor) -> bool:
    """Whether `conv3d` is the faster way: float32 on a CPU, wide layers, sides along y and z that divide by four."""
    return (
        x_BCXYZ.device.type == "cpu"
        and x_BCXYZ.dtype == weight_OCxyz.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight_OCxyz.shape[:2]) >= MIN_WIDTH
        and x_BCXYZ.shape[3] % TILE == 0
        and x_BCXYZ.shape[4] % TILE == 0
    )


def conv3d(x_BCXYZ: Tensor, weight_OCxyz: Tensor, bias_O: Tensor) -> Tensor:
    """``torch.nn.functional.conv3d(x, weight, bias, padding=1)``, channels last in memory.

    Parameters
    ----------
    x_BCXYZ : Tensor of shape (B, C, X, Y, Z)
        Y and Z divide by 4.
    weight_OCxyz : Tensor of shape (O, C, 3, 3, 3)
    bias_O : Tensor of shape (O,)

    Returns
    -------
    Tensor of shape (B, O, X, Y, Z)
    """
    return _WinogradConv.apply(x_BCXYZ, weight_OCxyz, bias_O)


def _transform(matrix: Tensor, values: Tensor) -> Tensor:
    """Apply a transform to the first axis, in one matrix product."""
    return (matrix.to(values.dtype) @ values.reshape(matrix.shape[1], -1)).view(matrix.shape[0], *values.shape[1:])


def _tiles(x_BXYZC: Tensor) -> Tensor:
    """Overlapping 6 x 6 tiles of the zero-padded slices, (36, R, T, C)."""
    padded = F.pad(x_BXYZC, (0, 0, 1, 1, 1, 1, 1, 1))
    tiles = padded.unfold(2, TILE + 2, TILE).unfold(3, TILE + 2, TILE)  # B, X+2, Y/4, Z/4, C, 6, 6
    return tiles.permute(5, 6, 0, 1, 2, 3, 4).reshape(36, tiles.shape[0] * tiles.shape[1], -1, tiles.shape[4])


def _tiles_adjoint(tiles_36RTC: Tensor, shape_BXYZC: tuple[int, ...]) -> Tensor:
    """The adjoint of `_tiles`: tiles added up where they overlap."""
    n_b, n_x, n_y, n_z, n_c = shape_BXYZC
    parts = tiles_36RTC.view(6, 6, n_b, n_x + 2, n_y // TILE, n_z // TILE, n_c)[:, :, :, 1:-1]
    # A tile's last two rows and columns belong to its neighbour: fold z, then y.
    wide = parts.new_zeros(6, n_b, n_x, n_y // TILE, n_z + TILE, n_c)
    blocks = wide.view(6, n_b, n_x, n_y // TILE, n_z // TILE + 1, TILE, n_c)
    blocks[..., :-1, :, :] += parts[:, :TILE].permute(0, 2, 3, 4, 5, 1, 6)
    blocks[..., 1:, :2, :] += parts[:, TILE:].permute(0, 2, 3, 4, 5, 1, 6)
    wide = wide[..., 1 : n_z + 1, :]
    whole = parts.new_zeros(n_b, n_x, n_y + TILE, n_z, n_c)
    blocks = whole.view(n_b, n_x, n_y // TILE + 1, TILE, n_z, n_c)
    blocks[:, :, :-1] += wide[:TILE].permute(1, 2, 3, 0, 4, 5)
    blocks[:, :, 1:, :2] += wide[TILE:].permute(1, 2, 3, 0, 4, 5)
    return whole[:, :, 1 : n_y + 1]


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCXYZ, weight_OCxyz, bias_O):
        n_o, n_c = weight_OCxyz.shape[:2]
        x_BXYZC = x_BCXYZ.permute(0, 2, 3, 4, 1)
        n_b, n_x, n_y, n_z, _ = x_BXYZC.shape
        input_WNC = _transform(INPUT_36x36, _tiles(x_BXYZC)).view(36, -1, n_c)
        weight_W3CO = _transform(WEIGHT_36x9, weight_OCxyz.permute(3, 4, 2, 1, 0).reshape(9, 3, n_c, n_o))
        ctx.save_for_backward(input_WNC, weight_W3CO)
        ctx.shape_BXYZC = x_BXYZC.shape

        n_tiles = (n_y // TILE) * (n_z // TILE)
        used = input_WNC.shape[1] - 2 * n_tiles  # products of the last two slices would be read by no one
        product_WNO = torch.bmm(input_WNC[:, :used], weight_W3CO[:, 0])
        for tap in (1, 2):
            product_WNO.baddbmm_(input_WNC[:, tap * n_tiles : tap * n_tiles + used], weight_W3CO[:, tap])
        out_16NO = _transform(OUTPUT_16x36, product_WNO)
        rows = out_16NO.view(TILE, TILE, -1, n_y // TILE, n_z // TILE, n_o).unfold(2, n_x, n_x + 2)  # ..., B, ..., X
        out_BXYZO = rows.permute(2, 6, 3, 0, 4, 1, 5).reshape(n_b, n_x, n_y, n_z, n_o) + bias_O
        return out_BXYZO.permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx, grad_BOXYZ):
        input_WNC, weight_W3CO = ctx.saved_tensors
        n_b, n_x, n_y, n_z, n_c = ctx.shape_BXYZC
        n_o = weight_W3CO.shape[3]
        grad_BXYZO = grad_BOXYZ.permute(0, 2, 3, 4, 1)
        n_tiles = (n_y // TILE) * (n_z // TILE)
        padded = F.pad(grad_BXYZO, (0, 0, 0, 0, 0, 0, 0, 2))  # every image takes X + 2 rows; the last two are 0
        split = padded.reshape(n_b * (n_x + 2), n_y // TILE, TILE, n_z // TILE, TILE, n_o)
        used = input_WNC.shape[1] - 2 * n_tiles
        product_WNO = _transform(OUTPUT_16x36.T, split.permute(2, 4, 0, 1, 3, 5).reshape(16, -1, n_o))[:, :used]

        grad_input_WNC = torch.zeros_like(input_WNC)
        grad_weight_W3CO = torch.empty_like(weight_W3CO)
        for tap in range(3):
            here = slice(tap * n_tiles, tap * n_tiles + used)
            if ctx.needs_input_grad[0]:
                grad_input_WNC[:, here].baddbmm_(product_WNO, weight_W3CO[:, tap].transpose(1, 2))
            grad_weight_W3CO[:, tap] = torch.bmm(input_WNC[:, here].transpose(1, 2), product_WNO)
        tiles_36RTC = _transform(INPUT_36x36.T, grad_input_WNC).view(36, n_b * (n_x + 2), n_tiles, n_c)
        grad_x = _tiles_adjoint(tiles_36RTC, ctx.shape_BXYZC).permute(0, 4, 1, 2, 3)
        grad_weight = _transform(WEIGHT_36x9.T, grad_weight_W3CO).view(3, 3, 3, n_c, n_o).permute(4, 3, 2, 0, 1)
        return grad_x, grad_weight, grad_BXYZO.sum((0, 1, 2, 3))
