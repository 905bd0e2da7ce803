"""What a competition passes, computed when it is used."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils._pytree import tree_map_only

from lwta.layers import LWTA, Competition
from lwta.operators import is_transformed


class Deferred(Tensor):
    """What a competition passes, not computed before it is used: shape, dtype and device are there at once.

    :class:`lwta.winners.WinnersOnly` takes the units that competed from it; any other operation finds the
    dense values.
    """

    # Below torch's functions, so that no operation passes it by.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, h: Tensor, competition: Competition) -> "Deferred":
        return Tensor._make_wrapper_subclass(cls, h.shape, dtype=h.dtype, device=h.device, strides=h.stride())

    def __init__(self, h: Tensor, competition: Competition) -> None:
        self._h, self.competition = h, competition
        self._version_of_h = version_of(h)
        self.computed: Tensor | None = None

    @property
    def h(self) -> Tensor:
        """The units that competed."""
        if version_of(self._h) != self._version_of_h:
            raise RuntimeError(
                "units were changed in place after they competed and before they were read; "
                "use this network as it is, without sparsify"
            )
        return self._h

    def dense(self) -> Tensor:
        """The values, computed once."""
        if self.computed is None:
            with torch.no_grad():
                found: Tensor = self.competition(self.h).values
            self.computed = found
        return self.computed

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.dropout.default and not (len(args) > 2 and args[2]):
            return args[0]  # which gets here in inference mode alone; elsewhere torch hands its input back
        args, kwargs = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self.dense())


class Deferring(LWTA):
    """An :class:`LWTA` whose values are :class:`Deferred`.

    Not in training, where a gradient is asked for or the network is traced, or where a hook looks on.
    """

    def __init__(self, competition: Competition) -> None:
        nn.Module.__init__(self)
        self.competition = competition
        self.train(competition.training)

    def forward(self, x: Tensor) -> Tensor:
        return Deferred(x, self.competition) if self.defers(x) else self.competition(x).values

    def defers(self, x: Tensor) -> bool:
        """Whether it does for such units now."""
        return not (
            self.training
            or self.competition.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or type(x) is not Tensor
            or is_transformed(x)
            or every_module._global_forward_hooks
            or every_module._global_forward_pre_hooks
            or has_hooks(self)
            or has_hooks(self.competition)
        )


def version_of(x: Tensor) -> int:
    """Rises with every write to a tensor; of those of inference mode nobody counts."""
    return -1 if x.is_inference() else x._version


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody sees a module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
