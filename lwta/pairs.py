"""Which layer reads a competition, and nothing else does: found in one pass through the network."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lwta.deferred import has_hooks, version_of
from lwta.functional import positive_axis
from lwta.layers import LWTA


class Pair(NamedTuple):
    """Two modules of a network, each called once; what the first makes is read by the second alone.

    Attributes:
        source: name of the first.
        reader: name of the second.
    """

    source: str
    reader: str


def find_pairs(model: nn.Module, example: tuple[Any, ...]) -> tuple[list[Pair], list[Pair]]:
    """Competitions read by a linear layer or 1 x 1 convolution; convolutions read by a batch norm.

    Args:
        model: in evaluation mode.
        example: its arguments.
    """
    follow = _Follow(model)
    # Where inference mode is on already, writes to tensors would not show.
    with torch.inference_mode(False), torch.no_grad(), follow.attached(), follow:
        out = model(*example)
    follow.end()
    del out  # held until then: what it holds is in use
    competing, normed = [], []
    for made in follow.made:
        if (name := follow.only_reader(made)) is None:
            continue
        source, reader = follow.modules[made.source], follow.modules[name]
        if type(source) is LWTA and _sums_units(reader, source.competition.dim, made.ndim):
            competing.append(Pair(made.source, name))
        elif type(source) is nn.Conv2d and type(reader) is nn.BatchNorm2d:
            normed.append(Pair(made.source, name))
    return competing, normed


def _sums_units(reader: nn.Module, dim: int, ndim: int) -> bool:
    """Whether a layer's output at a position is a bias and a weighted sum of the units there."""
    dim = positive_axis(dim, ndim)
    if type(reader) is nn.Linear:
        return dim == ndim - 1
    return (
        type(reader) is nn.Conv2d
        and (dim, ndim) == (1, 4)
        and reader.kernel_size == (1, 1)
        and reader.stride == (1, 1)
        and reader.padding in ((0, 0), "valid", "same")
        and reader.groups == 1
    )


@dataclass
class _Made:
    """What became of a tensor that a module made.

    Attributes:
        source: name of the module.
        ndim: of the tensor.
        taken: what the module made it of, until it is read.
        version: of that, by which writes to it show.
        uses: functions that took the tensor; one more where it outlives the pass, for whoever holds it.
        readers: names of the modules that took it and made something else of it.
    """

    source: str
    ndim: int
    taken: Tensor | None
    version: int
    uses: int = 0
    readers: list[str] = field(default_factory=list)


class _Follow(TorchFunctionMode):
    """Sees which modules and functions take what competitions and convolutions made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names = Counter(id(module) for module in self.modules.values())
        self.seen = {id(module) for module in self.modules.values() if has_hooks(module)}
        self.calls: Counter[int] = Counter()
        self.made: list[_Made] = []
        self.alive = WeakIdKeyDictionary()  # tensor -> _Made; by identity, and no longer than it lives

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = [(leaf, made, version_of(leaf)) for leaf, made in self._known((args, kwargs))]
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):  # a shape or a device is no value
            for leaf, made, version in known:
                # Dropout in evaluation returns what it was given, as it was.
                made.uses += not (out is leaf and version_of(leaf) == version)
        return out

    def end(self) -> None:
        """Count what somebody still holds after the pass as used."""
        for made in self.alive.values():
            made.uses += 1

    def only_reader(self, made: _Made) -> str | None:
        """Name of the one module that reads a tensor, where nothing else does and both can be replaced."""
        if made.uses != 1 or len(made.readers) != 1:
            return None
        pair = [self.modules[name] for name in (made.source, made.readers[0])]
        once = all(self.calls[id(module)] == self.names[id(module)] == 1 for module in pair)
        unseen = not any(id(module) in self.seen for one in pair for module in one.modules())
        plain = all(set(module._parameters) <= {"weight", "bias"} for module in pair)
        return made.readers[0] if once and unseen and plain else None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within this context calls of the network's modules are seen."""
        handles = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in self.modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: object) -> None:
            self.calls[id(module)] += 1
            for leaf, made in self._known((args, kwargs)):
                if out is not leaf and not any(module.children()):  # what holds modules reads through them
                    made.readers.append(name)
                    made.uses += made.taken is not None and version_of(made.taken) != made.version
                    made.taken = None
            if isinstance(module, (LWTA, nn.Conv2d)) and isinstance(out, Tensor) and args:
                self.alive[out] = _Made(name, out.ndim, args[0], version_of(args[0]))
                self.made.append(self.alive[out])

        return hook

    def _known(self, tree: object) -> Iterator[tuple[Tensor, _Made]]:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and (made := self.alive.get(leaf)) is not None:
                yield leaf, made
