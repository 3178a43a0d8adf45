"""Where the patches of a grid lie: how near the centre, and the orders that follow from it."""

from __future__ import annotations

import torch
from torch import Tensor

from mimexport.families import Shape


def closeness_to_center(shape: Shape) -> Tensor:
    """Return how close every patch is to the centre, (N,): 1 in the middle, falling linearly to 0 at the farthest patch.

    Where all are equally far (a grid of 2×2) it is 1 everywhere. Patches that were dropped count as well.
    """
    rows, columns = (torch.arange(edge) - (edge - 1) / 2 for edge in shape.grid)
    distance = torch.hypot(rows[:, None], columns[None, :]).flatten()
    farthest = distance.max()
    return torch.ones_like(distance) if distance.min() == farthest else 1 - distance / farthest


def center_order(grid: tuple[int, int]) -> Tensor:
    """Return the patches (N,) int64 of a grid, nearest to the centre first, equally near ones row by row."""
    return _distance(grid).argsort(stable=True)


def checkerboard_order(grid: tuple[int, int]) -> Tensor:
    """Return the patches (N,) int64 of a grid so that each beginning of the order is spread evenly.

    The first quarter is every other patch of every other row, the first half a checkerboard; within each the nearest to
    the centre come first.
    """
    rows, columns = (torch.arange(edge) % 2 for edge in grid)
    odd_row, odd_column = (rows[:, None].expand(grid).flatten(), columns[None, :].expand(grid).flatten())
    level = torch.where(odd_row == odd_column, odd_row, 2)
    distance = _distance(grid)
    return (level * (distance.max() + 1) + distance).argsort(stable=True)


def center_checkerboard_order(grid: tuple[int, int]) -> Tensor:
    """Return the patches (N,) int64 of a grid so that each beginning is dense in the middle, a checkerboard farther out.

    Patches on the other colour count as half the way from the centre to the farthest patch farther away than they are.
    """
    rows, columns = (torch.arange(edge) for edge in grid)
    other = (rows[:, None] + columns[None, :]).flatten() % 2
    distance = _distance(grid).double().sqrt()
    return (distance + other * distance.max() / 2).argsort(stable=True)


def _distance(grid: tuple[int, int]) -> Tensor:
    """Return four times the squared distance (N,) of every patch to the centre: whole numbers, the same on every machine."""
    rows, columns = (2 * torch.arange(edge) - (edge - 1) for edge in grid)
    return (rows[:, None].square() + columns[None, :].square()).flatten()
