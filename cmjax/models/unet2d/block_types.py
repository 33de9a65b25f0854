"""Block types: the names that a config may give to blocks, those it may not and why, and which go together.

A block of diffusers that can be built is not always one that runs in a `UNet2DModel`; here every name is either
computed as there, or refused before any weight is made.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "DOWN_BLOCKS",
    "UP_BLOCKS",
    "check_blocks",
    "check_norms",
    "k_groups",
    "num_groups",
    "skip_groups",
    "skip_up_groups",
    "up_widths",
    "without_prefix",
]

DOWN_BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
    "KDownBlock2D",
)
UP_BLOCKS = (
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
    "KUpBlock2D",
)

_TEXT = "it attends to the output of a text encoder: it is for UNet2DConditionModel"
_ENCODER = "it keeps no picture for the way up: it is for autoencoders"
_DECODER = "it takes no picture from the way down: it is for autoencoders"
_REFUSED = {
    "CrossAttnDownBlock2D": _TEXT,
    "SimpleCrossAttnDownBlock2D": _TEXT,
    "KCrossAttnDownBlock2D": _TEXT,
    "DownEncoderBlock2D": _ENCODER,
    "AttnDownEncoderBlock2D": _ENCODER,
    "CrossAttnUpBlock2D": _TEXT,
    "SimpleCrossAttnUpBlock2D": _TEXT,
    "KCrossAttnUpBlock2D": _TEXT,
    "UpDecoderBlock2D": _DECODER,
    "AttnUpDecoderBlock2D": _DECODER,
}


def without_prefix(kind: str) -> str:
    """The name of a block without the "UNetRes" that the first files put before it.

    Example:
      >>> without_prefix("UNetResAttnDownBlock2D")
      'AttnDownBlock2D'
    """
    return kind.removeprefix("UNetRes")


def skip_groups(channels: int) -> int:
    """Groups of a norm in skip blocks (and anywhere, where norm_num_groups is None)."""
    return min(channels // 4, 32)


def num_groups(channels: int, norm_num_groups: int | None) -> int:
    """Groups of a norm outside skip and K blocks."""
    return skip_groups(channels) if norm_num_groups is None else norm_num_groups


def skip_up_groups(kind: str, c_prev: int, c_skip: int) -> int:
    """Groups of the first norm of a residual block on the way up, in skip blocks.

    Those with attention have min(c_prev + c_skip // 4, 32): diffusers' brackets, and published weights are read so.
    """
    return min(c_prev + c_skip // 4, 32) if kind == "AttnSkipUpBlock2D" else skip_groups(c_prev + c_skip)


def k_groups(channels: int) -> int:
    """Groups of a norm in K blocks: 32 channels each."""
    return channels // 32


def up_widths(c_prev: int, c_skip: int, c_out: int, layers: int) -> list[tuple[int, int]]:
    """Channels that each residual block on the way up is given: from the one before it, and from the way down."""
    return list(zip([c_prev] + [c_out] * layers, [c_out] * layers + [c_skip], strict=True))


def check_blocks(
    down_block_types: tuple[str, ...],
    up_block_types: tuple[str, ...],
    *,
    levels: int,
    in_channels: int,
    out_channels: int,
) -> None:
    """Refuse blocks that are not known or not for this network, do not go together, or do not fit their channels.

    Args:
      down_block_types: from the config.
      up_block_types: from the config.
      levels: how many there must be of each; where there are not, that has its own message elsewhere.
      in_channels: of the network.
      out_channels: of the network.

    Raises:
      ValueError: the block's name, and why.
    """
    given = {"down_block_types": (down_block_types, DOWN_BLOCKS), "up_block_types": (up_block_types, UP_BLOCKS)}
    for option, (names, allowed) in given.items():
        for name in names:
            if without_prefix(name) not in allowed:
                why = _REFUSED.get(without_prefix(name))
                raise ValueError(
                    f"{option} may hold {', '.join(map(repr, allowed))}, got {name!r}{f' ({why})' if why else ''}."
                )
    down, up = tuple(map(without_prefix, down_block_types)), tuple(map(without_prefix, up_block_types))
    if not len(down) == len(up) == levels:
        return
    _check_k_blocks(down + up)
    _check_skip_blocks(down, up, in_channels, out_channels)


def _check_k_blocks(kinds: tuple[str, ...]) -> None:
    others = [kind for kind in kinds if not kind.startswith("K")]
    if others and len(others) < len(kinds):
        raise ValueError(
            "down_block_types and up_block_types must hold only K blocks or none: 'KDownBlock2D' keeps fewer pictures, "
            f"and 'KUpBlock2D' takes fewer, than other blocks do; got {others[0]!r} among them."
        )


def _check_skip_blocks(down: tuple[str, ...], up: tuple[str, ...], in_channels: int, out_channels: int) -> None:
    """The small picture beside the network must be of a size and a number of channels with what it is added to."""
    halving, doubling = [_skips(kind) for kind in down[:-1]], [_skips(kind) for kind in up[:-1]]
    if halving != sorted(halving, reverse=True):
        raise ValueError(
            f"down_block_types: a skip block that halves the picture must come before all others, got {down}; else the "
            "small picture beside it is larger than its own."
        )
    if doubling != sorted(doubling) or (any(doubling) and not _skips(up[-1])):
        raise ValueError(
            f"up_block_types: after a skip block that doubles the picture all must be skip blocks, got {up}; else the "
            "small picture beside it stays smaller than the output."
        )
    if any(halving) and in_channels != 3:
        raise ValueError(f"in_channels must be 3 with {down[0]!r}, whose small picture is RGB; got {in_channels}.")
    if any(doubling) and out_channels != 3:
        raise ValueError(f"out_channels must be 3 with {up[-2]!r}, whose small picture is RGB; got {out_channels}.")


def check_norms(
    down: tuple[str, ...],
    up: tuple[str, ...],
    widths: tuple[int, ...],
    *,
    layers: int,
    groups: int | None,
    has_mid_block: bool,
) -> None:
    """Refuse numbers of channels that the groups of a norm do not divide.

    Args:
      down: the blocks on the way down, without prefixes.
      up: the blocks on the way up.
      widths: block_out_channels.
      layers: layers_per_block.
      groups: norm_num_groups.
      has_mid_block: whether there is one.

    Raises:
      ValueError: the block, its channels and its groups.
    """
    plain = [kind for kind in down + up if _is_plain(kind)]
    if groups is None and plain:
        raise ValueError(
            f"norm_num_groups must be a whole number with {plain[0]!r}, got None; only skip and K blocks do without."
        )
    for i, kinds in enumerate(zip(down, up[::-1], strict=True)):
        if groups is not None and any(map(_is_plain, kinds)) and widths[i] % groups:
            raise ValueError(f"block_out_channels[{i}] = {widths[i]} must be a multiple of norm_num_groups = {groups}.")
    norms = [("the output", widths[0], num_groups(widths[0], groups))]
    if has_mid_block:
        norms.append(("mid_block", widths[-1], num_groups(widths[-1], groups)))
    for where, channels, parts in (*norms, *_down_norms(down, widths, groups), *_up_norms(up, widths, layers, groups)):
        if parts < 1 or channels % parts:
            raise ValueError(
                f"block_out_channels = {widths} do not fit: a norm of {where} has {channels} "
                f"channels in {parts} groups, which must be a divisor."
            )


_Norm = tuple[str, int, int]  # place, channels, groups


def _down_norms(down: tuple[str, ...], widths: tuple[int, ...], groups: int | None) -> Iterator[_Norm]:
    for i, kind in enumerate(down):
        for channels in (widths[max(i - 1, 0)], widths[i]):
            yield f"down_blocks.{i} ({kind})", channels, _groups(kind, channels, groups)
        if kind == "AttnSkipDownBlock2D":
            yield f"down_blocks.{i} ({kind})", widths[i], 32


def _up_norms(up: tuple[str, ...], widths: tuple[int, ...], layers: int, groups: int | None) -> Iterator[_Norm]:
    rising, last = widths[::-1], len(widths) - 1
    for i, kind in enumerate(up):
        where, c_out, c_skip = f"up_blocks.{i} ({kind})", rising[i], rising[min(i + 1, last)]
        if kind == "KUpBlock2D":
            yield where, c_skip, k_groups(c_out)
            yield where, 2 * c_out, k_groups(2 * c_out)
            continue
        for a, b in up_widths(rising[max(i - 1, 0)], c_skip, c_out, layers):
            yield where, a + b, skip_up_groups(kind, a, b) if _skips(kind) else num_groups(a + b, groups)
        yield where, c_out, _groups(kind, c_out, groups)
        if kind == "AttnSkipUpBlock2D":
            yield where, c_out, 32


def _groups(kind: str, channels: int, groups: int | None) -> int:
    if _skips(kind):
        return skip_groups(channels)
    return k_groups(channels) if kind.startswith("K") else num_groups(channels, groups)


def _skips(kind: str) -> bool:
    return "Skip" in kind


def _is_plain(kind: str) -> bool:
    """Whether a block's norms have the config's groups."""
    return not _skips(kind) and not kind.startswith("K")
