"""Blocks that real models hold, as plain modules written from their papers: sums of products, adapters, heads.

Each has what one would write by hand: orders that train, and kernels that are computed once for eval. `BLOCKS` has them
by name; the blocks under `refused/` must stay as they are. Needs `peft` for the blocks under `adapter/`.
"""

from __future__ import annotations

from benchmarks.blocks.adapters import adapters
from benchmarks.blocks.block import Bind, Block
from benchmarks.blocks.expanded import expanded
from benchmarks.blocks.factorised import factorised
from benchmarks.blocks.heads import heads
from benchmarks.blocks.refused import refused
from benchmarks.blocks.reparameterised import reparameterised

__all__ = ["BLOCKS", "Bind", "Block"]

BLOCKS: dict[str, Block] = {
    block.name: block
    for group in (adapters, reparameterised, heads, expanded, factorised, refused)
    for block in group()
}
