"""Block-diagonal matrices [n, n] as tensors [n, b]: square blocks one below the other, in rows of their own.

There are p = ceil(n / b) blocks, the i-th of the rows floor(i n / p) to floor((i + 1) n / p), which are b or b - 1; a
smaller block leaves the last column zero. An ordinary matrix is the one with b = n, and what is done with it here is,
to the bit, what would be done with it as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def block_width(size: int, most: int | None, block_size: int | None = None) -> int:
    """b for a matrix [size, size].

    Args:
        size: n.
        most: the largest that is not cut; None: any.
        block_size: what is cut is so into the fewest equal blocks of at most so many rows; None: of `most`.
    """
    if most is None or size <= most:
        return size
    return -(-size // -(-size // (block_size or most)))


def fits(shape: Sequence[int], size: int) -> bool:
    """Whether a tensor of this shape holds a matrix [size, size]."""
    return len(shape) == 2 and shape[0] == size and (shape[1] == size or 0 < shape[1] == block_width(size, shape[1]))


def expected_shape(tensor: Tensor, size: int) -> tuple[int, int]:
    """Its own shape where it holds a matrix [size, size], else that of an ordinary one."""
    return (size, tensor.shape[1]) if fits(tensor.shape, size) else (size, size)


def spans(size: int, width: int) -> list[slice]:
    """Rows, and columns, of each block."""
    num = -(-size // width) if width else 1
    return [slice(i * size // num, (i + 1) * size // num) for i in range(num)]


def blocks_of(matrix: Tensor) -> list[Tensor]:
    """The square blocks, as views."""
    if len(matrix) == matrix.shape[1]:  # as ever but for wide layers, in every step of an optimizer
        return [matrix]
    return [matrix[rows, : rows.stop - rows.start] for rows in spans(*matrix.shape)]


def of_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """The inverse of `blocks_of`; of one block itself."""
    if len(blocks) == 1:
        return blocks[0]
    found = blocks[0].new_zeros(sum(map(len, blocks)), max(map(len, blocks)))
    for own, block in zip(blocks_of(found), blocks, strict=True):
        own.copy_(block)
    return found


def blockwise(function: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """What a function makes of each block of matrices with the same blocks."""
    return of_blocks([function(*blocks) for blocks in zip(*map(blocks_of, matrices), strict=True)])


def diagonal(matrix: Tensor) -> Tensor:
    """[n]."""
    return _joined([block.diagonal() for block in blocks_of(matrix)])


def trace(matrix: Tensor) -> Tensor:
    """Zero-dimensional."""
    first, *others = [block.trace() for block in blocks_of(matrix)]
    return sum(others, start=first)


def squares(matrix: Tensor) -> Tensor:
    """[n]: the sum of squares of each column."""
    return _joined([block.square().sum(dim=0) for block in blocks_of(matrix)])


def composed(basis: Tensor, values: Tensor) -> Tensor:
    """U diag(values) U^T for values [n]."""
    parts = zip(blocks_of(basis), (values[rows] for rows in spans(*basis.shape)), strict=True)
    return of_blocks([(U * part) @ U.T for U, part in parts])


def curvatures(basis: Tensor, matrix: Tensor) -> Tensor:
    """[n]: the diagonal of U^T F U."""
    pairs = zip(blocks_of(basis), blocks_of(matrix), strict=True)
    return _joined([((U.T @ F) * U.T).sum(dim=1) for U, F in pairs])


def there(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """L^T X R."""
    return _between([block.T for block in blocks_of(left)], middle, blocks_of(right))


def back(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """L X R^T."""
    return _between(blocks_of(left), middle, [block.T for block in blocks_of(right)])


def reblocked(matrix: Tensor, width: int) -> Tensor:
    """With blocks of another width: what of the matrix lies in these, and zeros where it has none."""
    if matrix.shape[1] == width:
        return matrix
    found = matrix.new_zeros(len(matrix), width)
    for own, rows in zip(blocks_of(found), spans(*found.shape)):
        for block, theirs in zip(blocks_of(matrix), spans(*matrix.shape)):
            start, stop = max(rows.start, theirs.start), min(rows.stop, theirs.stop)
            if start < stop:
                inner, outer = (slice(start - each.start, stop - each.start) for each in (rows, theirs))
                own[inner, inner] = block[outer, outer]
    return found


def _between(left: Sequence[Tensor], middle: Tensor, right: Sequence[Tensor]) -> Tensor:
    if len(left) == len(right) == 1:
        return left[0] @ middle @ right[0]
    rows = _joined([L @ part for L, part in zip(left, middle.split([len(L) for L in left]))])
    return _joined([part @ R for R, part in zip(right, rows.split([len(R) for R in right], dim=1))], dim=1)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
