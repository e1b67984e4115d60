"""How one block lies in memory, and the arithmetic on its bytes.

A KV block is `block_tokens` consecutive tokens of all layers, or of those of one KV group, laid
out as `[layer, K/V, head, token, dim]`, so one block is one byte range and a slice of heads is a
set of sub-ranges. Blocks of several groups are numbered token block by token block: number `i *
num_groups + g` holds group g's layers for token block i. A pool may hold some of the model's heads
only, as a tensor-parallel rank does. Latent (MLA) and per-request state (SSM) blocks are layouts
of their own. Does not know tensors.
"""

import hashlib
from typing import ClassVar, Literal, TypeAlias, assert_never, overload

import msgspec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KvDtype = Literal["float32", "bfloat16", "float16"]
LAYOUT_VERSION = 1
MAX_SIZE = 1 << 20
"""Bound on every count in a layout; layouts come from peers and are multiplied."""
ALL_TOKENS = (1 << 32) - 1
"""Tokens that a state block stands for: however many the request has."""
Invariants: TypeAlias = tuple[tuple[str, int | str], ...]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"{name}: is {size}, must be 1 to {MAX_SIZE}")


class KvLayout(msgspec.Struct, frozen=True, kw_only=True, tag="kv"):
    """Shape of one block of keys and values.

    The pool holds heads `first_head` to `first_head + num_kv_heads` of the model's. A count out
    of bounds raises ValueError.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: KvDtype
    version: int = LAYOUT_VERSION
    first_head: int = 0
    total_kv_heads: int | None = None
    """KV heads of the model; None: those held here are all."""
    num_groups: int = 1
    """KV groups of the model, whose layers lie in blocks of their own
    (`engine.kvcache.windows`): each token block is `num_groups` blocks of `num_layers` layers,
    in the order of the groups."""

    def __post_init__(self) -> None:
        _check_sizes(
            num_layers=self.num_layers, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim,
            block_tokens=self.block_tokens, model_kv_heads=self.model_kv_heads,
            num_groups=self.num_groups,
        )  # fmt: skip
        if self.first_head < 0 or self.heads.stop > self.model_kv_heads:
            raise ValueError(
                f"first_head: heads {self.heads.start} to {self.heads.stop} "
                f"are not among the model's {self.model_kv_heads}"
            )
        if self.total_kv_heads == self.num_kv_heads:  # so that equal layouts compare equal
            msgspec.structs.force_setattr(self, "total_kv_heads", None)

    @property
    def model_kv_heads(self) -> int:
        return self.num_kv_heads if self.total_kv_heads is None else self.total_kv_heads

    @property
    def heads(self) -> range:
        """The model's heads that are held."""
        return range(self.first_head, self.first_head + self.num_kv_heads)

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token, all layers of one group."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_tokens

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """`[layer, K/V, head, token, dim]` of one block."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_tokens, self.head_dim)

    @property
    def invariants(self) -> Invariants:
        """What two layouts must share for one to be mapped to the other."""
        return (
            ("kind", "kv"), ("version", self.version), ("dtype", self.dtype),
            ("num_layers", self.num_layers), ("head_dim", self.head_dim),
            ("model_kv_heads", self.model_kv_heads), ("num_groups", self.num_groups),
        )  # fmt: skip

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of all groups that hold `num_tokens` tokens, the last perhaps partly filled."""
        return -(-num_tokens // self.block_tokens) * self.num_groups


class LatentLayout(msgspec.Struct, frozen=True, kw_only=True, tag="latent"):
    """Shape of one block of multi-head latent attention: `[layer, token, latent]`.

    A token has one latent in place of its keys and values, shared by all heads, so every
    tensor-parallel rank holds the whole. A count out of bounds raises ValueError.
    """

    num_layers: int
    latent_dim: int
    block_tokens: int
    dtype: KvDtype
    version: int = LAYOUT_VERSION
    num_groups: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_sizes(
            num_layers=self.num_layers, latent_dim=self.latent_dim, block_tokens=self.block_tokens
        )

    @property
    def heads(self) -> range:
        """One unit, which no rank can cut."""
        return range(1)

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.block_tokens * self.latent_dim * DTYPE_BYTES[self.dtype]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.num_layers, self.block_tokens, self.latent_dim)

    @property
    def invariants(self) -> Invariants:
        return (
            ("kind", "latent"), ("version", self.version), ("dtype", self.dtype),
            ("num_layers", self.num_layers), ("latent_dim", self.latent_dim),
        )  # fmt: skip

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)


class StateLayout(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """One opaque block a request: the recurrent state (SSM) after its last token.

    It is valid at that one token position, the ticket's `num_tokens`, and means nothing before
    the engine has computed it. It can be copied, not cut: of a tensor-parallel engine each rank
    has its own `part` of `num_parts`. A count out of bounds raises ValueError.
    """

    num_bytes: int
    part: int = 0
    num_parts: int = 1
    version: int = LAYOUT_VERSION
    num_groups: ClassVar[int] = 1
    block_tokens: ClassVar[int] = ALL_TOKENS

    def __post_init__(self) -> None:
        _check_sizes(num_parts=self.num_parts)
        if not 1 <= self.num_bytes <= 1 << 40:
            raise ValueError(f"num_bytes: is {self.num_bytes}, must be 1 to {1 << 40}")
        if not 0 <= self.part < self.num_parts:
            raise ValueError(f"part: is {self.part}, must be below num_parts={self.num_parts}")

    @property
    def heads(self) -> range:
        """The part, which no rank can cut."""
        return range(self.part, self.part + 1)

    @property
    def block_bytes(self) -> int:
        return self.num_bytes

    @property
    def shape(self) -> tuple[int]:
        return (self.num_bytes,)

    @property
    def invariants(self) -> Invariants:
        return (
            ("kind", "state"), ("version", self.version), ("num_bytes", self.num_bytes),
            ("num_parts", self.num_parts),
        )  # fmt: skip

    def num_blocks(self, num_tokens: int) -> int:
        """One, however many tokens; none before the first."""
        return min(num_tokens, 1)


Layout: TypeAlias = KvLayout | LatentLayout | StateLayout


@overload
def shard(layout: KvLayout, *, rank: int, size: int) -> KvLayout: ...
@overload
def shard(layout: Layout, *, rank: int, size: int) -> Layout: ...
def shard(layout: Layout, *, rank: int, size: int) -> Layout:
    """What rank `rank` of `size` tensor-parallel ranks holds of a whole `layout`.

    Heads are dealt in order; more ranks than heads share them: rank r holds head r*heads//size.
    Latents are replicated. Raises ValueError where the heads cannot be dealt evenly.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank: is {rank}, must be 0 to {size - 1}")
    match layout:
        case KvLayout():
            return _shard_heads(layout, rank, size)
        case LatentLayout():
            return layout
        case StateLayout():
            if size > 1:
                raise ValueError("size: a state is opaque; name its ranks' parts by `part`")
            return layout
        case _:
            assert_never(layout)


def _shard_heads(layout: KvLayout, rank: int, size: int) -> KvLayout:
    heads = layout.num_kv_heads
    if heads < layout.model_kv_heads:
        raise ValueError(f"layout: already a part, {heads} of {layout.model_kv_heads} heads")
    if heads % size and size % heads:
        raise ValueError(f"size: is {size}, must divide the {heads} KV heads or be divided by them")
    return msgspec.structs.replace(
        layout, num_kv_heads=max(1, heads // size), first_head=rank * heads // size,
        total_kv_heads=heads,
    )  # fmt: skip


def compat_hash(layout: Layout, *, model_revision: str) -> str:
    """Digest of all that two workers must share for a router to pair them."""
    return _digest(msgspec.json.encode(layout), model_revision)


def transfer_compat(layout: Layout, *, model_revision: str) -> str:
    """Digest of what two layouts must share for blocks to be fetched from one into the other.

    Leaves out what `kvtransfer.plan` maps: block size, and which heads a rank holds.
    """
    return _digest(msgspec.json.encode(layout.invariants), model_revision)


def _digest(text: bytes, model_revision: str) -> str:
    return hashlib.sha256(text + b"|" + model_revision.encode()).hexdigest()[:32]
