"""A direction in shards, made whole where a layer asks for its part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from ippo.distributed import is_sharded, whole


def gathered(direction: Mapping[str, Tensor], keep: bool) -> Mapping[str, Tensor]:
    """The direction for a scoring pass, with whole tensors; one that is whole already as it is.

    Args:
        direction: its values may be shards.
        keep: gather everything at once and keep it through the pass, as suits a direction that is restricted to few
            parameters; else one layer at a time.
    """
    if not any(is_sharded(part) for part in direction.values()):
        return direction
    return {name: whole(part) for name, part in direction.items()} if keep else LayerByLayer(direction)


class LayerByLayer(Mapping[str, Tensor]):
    """A direction of which one layer is whole, the one that was asked for last: a backward pass comes to each once, or
    several times in a row, and then it is gathered once.

    Every rank must ask for the same layers in the same order.

    Args:
        shards: the direction.
    """

    def __init__(self, shards: Mapping[str, Tensor]) -> None:
        self._shards = shards
        self._layer = ""
        self._whole: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        layer = name.rpartition(".")[0]
        if layer != self._layer:
            self._layer = layer
            self._whole.clear()
        if name not in self._whole:
            self._whole[name] = whole(self._shards[name])
        return self._whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)
