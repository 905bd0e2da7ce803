"""Gumbel noise that is a function of a seed."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_seed(device: torch.device | str = "cpu") -> Tensor:
    """A fresh int64 seed, shape (), from torch's default generator of a device.

    It is drawn where it is read: reading one on the CPU waits for no device, and a GPU's kernels read theirs
    there, so that a captured graph draws anew at each replay. Under ``torch.compile`` Inductor draws from a
    stream of its own, seeded by ``torch.manual_seed`` too.
    """
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)


@torch.library.custom_op("lwta::gumbel", mutates_args=())
def _gumbel(like: Tensor, seed: Tensor, axis: int) -> Tensor:
    if like.device.type == "cpu" and like.dtype == torch.float32:
        from lwta.cpu import noise  # compiles at first use

        return torch.from_numpy(noise.gumbel(in_three(like, axis), int(seed))).view(like.shape)
    generator = torch.Generator(like.device).manual_seed(int(seed))
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    # rand may return exactly 0, whose log is -inf; the smallest normal number stands in for it.
    return uniform.clamp_min_(torch.finfo(like.dtype).tiny).log_().neg_().log_().neg_()


@_gumbel.register_fake
def _(like: Tensor, seed: Tensor, axis: int) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def in_three(blocks: Tensor, axis: int) -> tuple[int, int, int]:
    """(P, U, S): the sizes before the competitors' axis in one, that axis, those after it in one."""
    return math.prod(blocks.shape[:axis]), blocks.shape[axis], math.prod(blocks.shape[axis + 1 :])


def gumbel_like(blocks: Float[Tensor, "*shape"], seed: Int[Tensor, ""], axis: int) -> Float[Tensor, "*shape"]:
    """Gumbel(0, 1) noise for units in blocks, their shape, dtype and device.

    Args:
        blocks: competitors along ``axis``, as :func:`lwta.functional.to_blocks` has them.
        seed: int64, on the CPU; the noise is a function of it, of the shape, the axis, the dtype and the kind
            of device.
        axis: counted from the front.

    >>> x, seed = torch.zeros(5, 4), torch.tensor(7)
    >>> bool((gumbel_like(x, seed, axis=1) == gumbel_like(x, seed, axis=1)).all())
    True
    """
    return _gumbel(blocks, seed, axis)
