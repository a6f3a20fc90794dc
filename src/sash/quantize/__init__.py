"""bf16 to int8 and int4 weights: choosing scales, packing, joining, and the modules that compute with them."""

from sash.quantize.fusing import fuse_rows, interleave_tiles, padded_rows, take_tiles
from sash.quantize.modules import PackedEmbedding, PackedLinear
from sash.quantize.packing import Packer, pack
from sash.quantize.rounding import int4_groups, int4_multiples, int8_rows

__all__ = [
    "PackedEmbedding",
    "PackedLinear",
    "Packer",
    "fuse_rows",
    "int4_groups",
    "int4_multiples",
    "int8_rows",
    "interleave_tiles",
    "pack",
    "padded_rows",
    "take_tiles",
]
