"""Which table of blocks serves: in C where there is a compiler, else its twin."""

from router.prefix.c_table import CTable
from router.prefix.dict_table import DictTable
from router.prefix.native.library import kernels
from router.prefix.table import HolderTable


def make_table(*, max_blocks: int) -> HolderTable:
    library = kernels()
    if library is None:
        return DictTable(max_blocks=max_blocks)
    return CTable(library, max_blocks=max_blocks)
