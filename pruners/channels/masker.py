"""Channels switched off on a working copy: the network's function without them, at static shapes.

Every slice that a unit owns is zeroed on both sides of its layers, which equals removal except where an operator
counts channels (`ChannelsPlan.not_zeroing`); the final check on the cut model decides there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruners.channels.atoms import tensor_at
from pruners.channels.groups import Group, Groups

Removal = Mapping[int, Iterable[int]]
"""Group index -> its units that go."""


class Masker:
    """Zeroes units of a model in place and gives back the exact values.

    Attributes:
        gone: group index -> units that are off for good.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self._model = model
        self._groups = groups
        self.gone: dict[int, tuple[int, ...]] = {}
        self._original: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name in the working copy."""
        return tensor_at(self._model, name)

    def switch_off(self, removal: Removal) -> None:
        """Switch these units off for good (those of the same group that were off stay off)."""
        for place, units in removal.items():
            listed = tuple(units)
            if listed:
                self._zero(self._groups.groups[place], listed, keep_original=True)
                self.gone[place] = tuple(sorted({*self.gone.get(place, ()), *listed}))

    def reset(self, removal: Removal) -> None:
        """Make exactly these units the ones that are off."""
        with torch.no_grad():
            for name, values in self._original.items():
                self.tensor(name).data.copy_(values)
        self.gone = {}
        self.switch_off(removal)

    @contextmanager
    def without(self, removal: Removal) -> Iterator[None]:
        """Switch units off while the context lasts; the tensors get their exact values back."""
        saved: dict[str, Tensor] = {}
        try:
            for place, units in removal.items():
                group, listed = self._groups.groups[place], tuple(units)
                for member in group.members if listed else ():
                    if member.tensor not in saved:
                        saved[member.tensor] = self.tensor(member.tensor).detach().clone()
                self._zero(group, listed)
            yield
        finally:
            with torch.no_grad():
                for name, values in saved.items():
                    self.tensor(name).data.copy_(values)

    def _zero(self, group: Group, units: tuple[int, ...], *, keep_original: bool = False) -> None:
        if not units:
            return
        with torch.no_grad():
            for member in group.members:
                tensor = self.tensor(member.tensor)
                if keep_original and member.tensor not in self._original:
                    self._original[member.tensor] = tensor.detach().clone()
                index = torch.from_numpy(member.index[list(units)].reshape(-1)).to(tensor.device)
                tensor.data.index_fill_(member.dim, index, 0)
