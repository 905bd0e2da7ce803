"""The fused kernels of :mod:`lwta.kernels` as operators of torch, for units in blocks on a GPU.

The operators are opaque to torch.compile: nothing could be fused into their kernels, and what is not traced
is the same code eager, compiled and in Triton's interpreter. Scales are tensors of shape (), since
torch.compile takes a number among an operator's arguments for a constant. Triton is imported when one first
runs.
"""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lwta.noise import in_three

LIMIT = 64  # competitors; a block lies in the registers of one program
#: Kinds of device that the kernels serve; "cuda" is ROCm's name too.
DEVICES = ["cuda"]
_DTYPES = torch.float32, torch.float16, torch.bfloat16
_TRITON = find_spec("triton") is not None
_PROGRAMS = 1024  # that share out the sums over the batch


def serves(x: Tensor, competitors: int) -> bool:
    """Whether the kernels take such units; elsewhere, and in an exported network, other paths run."""
    if torch.compiler.is_exporting():
        return False
    return x.device.type in DEVICES and x.dtype in _DTYPES and 2 <= competitors <= LIMIT and _TRITON


@torch.library.custom_op("lwta::fused", mutates_args=())
def compete(
    h: Tensor,
    beta: Tensor,
    noise: Tensor,
    tau: Tensor,
    seed: Tensor | None,
    usage: Tensor | None,
    kl: Tensor | None,
    relaxed: bool,
    axis: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, winners (int64, size 1 along ``axis``), mean usage (B, U) and KL to uniform, float32.

    Args:
        h: blocks along ``axis - 1``, competitors along ``axis``.
        beta, noise, tau: scales, on the CPU or on the device of h, where none is read back.
        seed: int64, on either; None where there is no noise.
        usage, kl: scale of the logits of which they are wanted; where None they are empty.
        relaxed: which gradient, :func:`lwta.functional.lwta`.
        axis: counted from the front.
    """
    from lwta import kernels

    shape, units = _Shape(h, axis), h.contiguous()
    values = torch.empty_like(units)
    winner = torch.empty(shape.winner, dtype=torch.int64, device=h.device)
    measuring = usage is not None or kl is not None
    period, steps, parts = shape.shares() if measuring else (shape.total, 1, 1)
    grid = -(-period // shape.tile), parts
    sums = _room(h, usage, (parts, period, shape.competitors))
    divergence = _room(h, kl, grid)
    if shape.total:
        scales = [_scale(scale, h) for scale in (beta, noise, _drawn(seed, h), usage, kl)]
        arguments = units, values, winner, sums, divergence, *scales, shape.total, period, steps
        constants = shape.constants(kernels.COMPILED and h.is_cuda)
        with torch.cuda.device_of(h):
            kernels.forward[grid](*arguments, shape.inner, **constants)
    return _laid_out_as(h, values), winner, *shape.means(sums, divergence)


@compete.register_fake
def _(h, beta, noise, tau, seed, usage, kl, relaxed, axis):  # type: ignore[no-untyped-def]
    winner = h.new_empty((*h.shape[:axis], 1, *h.shape[axis + 1 :]), dtype=torch.int64)
    sums = h.new_empty(h.shape[axis - 1 : axis + 1] if usage is not None else 0, dtype=torch.float32)
    return torch.empty_like(h), winner, sums, h.new_empty(() if kl is not None else 0, dtype=torch.float32)


@torch.library.custom_op("lwta::fused_gradient", mutates_args=())
def gradient(
    upstream: Tensor,
    usage_upstream: Tensor | None,
    kl_upstream: Tensor | None,
    h: Tensor,
    beta: Tensor,
    noise: Tensor,
    tau: Tensor,
    seed: Tensor | None,
    usage: Tensor | None,
    kl: Tensor | None,
    relaxed: bool,
    axis: int,
) -> Tensor:
    """Gradient with respect to h of what :func:`compete` returns, given those of values, usage and KL."""
    from lwta import kernels

    shape, units = _Shape(h, axis), h.contiguous()
    out = torch.empty_like(units)
    if shape.total:
        above = [None if g is None else g.contiguous() for g in (upstream, usage_upstream, kl_upstream)]
        scales = [_scale(scale, h) for scale in (beta, noise, tau, _drawn(seed, h), usage, kl)]
        arguments = out, *above, units, *scales, shape.total, shape.blocks, shape.inner
        constants = shape.constants(kernels.COMPILED and h.is_cuda)
        with torch.cuda.device_of(h):
            kernels.backward[-(-shape.total // shape.tile),](*arguments, **constants, RELAXED=relaxed)
    return _laid_out_as(h, out)


@gradient.register_fake
def _(upstream, usage_upstream, kl_upstream, h, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(h)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, beta, noise, tau, seed, usage, kl, relaxed, axis = inputs
    ctx.save_for_backward(h, seed)
    ctx.scales, ctx.asked, ctx.rest = (beta, noise, tau), (usage, kl), (relaxed, axis)


def _gradient(ctx: Any, values: Tensor | None, winner: None, *upstream: Tensor | None) -> tuple[Any, ...]:
    h, seed = ctx.saved_tensors
    asked = [None if g is None else scale for g, scale in zip(upstream, ctx.asked, strict=True)]
    above = [None if scale is None else g for g, scale in zip(upstream, asked, strict=True)]
    values = torch.zeros_like(h) if values is None else values
    return gradient(values, *above, h, *ctx.scales, seed, *asked, *ctx.rest), *[None] * 8


compete.register_autograd(_gradient, setup_context=_setup)


class _Shape:
    """Sizes of blocks (P, U, S), and how they are shared out."""

    def __init__(self, h: Tensor, axis: int) -> None:
        before, self.competitors, self.inner = in_three(h, axis)
        if self.inner > 2**30:  # positions of a row are counted in 32 bits
            raise ValueError(f"after the units' axis there are {self.inner} positions, more than 2^30")
        self.blocks, self.total = h.shape[axis - 1], before * self.inner
        self.device, self.winner = h.device, (*h.shape[:axis], 1, *h.shape[axis + 1 :])
        self.chunk, self.tile, self.warps = tiling(self.competitors, self.inner == 1, h.element_size())

    def constants(self, compiled: bool) -> dict[str, Any]:
        chunks = _power_of_two(-(-self.competitors // self.chunk))
        sizes = {"U": self.competitors, "N": self.tile, "K": chunks, "C": self.chunk}
        flags = {"LAST": self.inner == 1, "NVIDIA": compiled and not torch.version.hip}
        return sizes | flags | {"num_warps": self.warps}

    def shares(self) -> tuple[int, int, int]:
        """Period, steps and parts: lane i of part j takes positions i + k period, for that part's steps k.

        The period is a whole number of samples, so that all positions of a lane are of one block.
        """
        sample = max(1, self.blocks * self.inner)
        period = sample * -(-4 * self.tile // sample)
        rounds = max(1, -(-self.total // period))
        steps = -(-rounds // max(1, _PROGRAMS * self.tile // period))
        return period, steps, -(-rounds // steps)

    def means(self, sums: Tensor | None, divergence: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of what the programs have summed; 0 over no positions, empty where not asked for."""
        usage, kl = (torch.empty(0, device=self.device) for _ in range(2))
        if sums is not None:
            usage = torch.zeros(self.blocks, self.competitors, device=self.device)
            if self.total:
                sums = sums.view(-1, self.blocks, self.inner, self.competitors)
                usage = sums.sum((0, 2)) * (self.blocks / self.total)
        if divergence is not None:
            kl = torch.zeros((), device=self.device)
            if self.total:
                kl = divergence.sum() / self.total + math.log(self.competitors)
        return usage, kl


def tiling(competitors: int, last: bool, size: int) -> tuple[int, int, int]:
    """Competitors in a chunk of a tile, positions of a tile, and warps, for units of ``size`` bytes.

    A thread has all of a position, half above 32 competitors, in chunks that it reads at once, so that they
    meet in its registers: 16 units or more where competitors are neighbours in memory, else one position.
    """
    at_once, chunk = 16 // size, competitors & -competitors
    if not last:
        return (_power_of_two(competitors), 128, 4) if competitors <= 32 else (64, 64, 8)
    if chunk < min(4, competitors):  # nothing to be read at once
        return _power_of_two(competitors), 2048 // _power_of_two(competitors), 4
    chunk = min(chunk, at_once if competitors <= 32 else 2 * at_once)
    return chunk, 128 * max(1, 16 // competitors) // max(1, chunk // at_once), 4


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()


def _room(h: Tensor, asked: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if asked is None else torch.empty(shape, dtype=torch.float32, device=h.device)


def _scale(scale: Tensor | None, h: Tensor) -> Tensor | float | None:
    return scale if scale is None or scale.device == h.device else float(scale)


def _drawn(seed: Tensor | None, h: Tensor) -> Tensor | None:
    # A kernel with the number among its arguments writes it; a copy from the CPU could wait for the device.
    if seed is None or seed.device == h.device:
        return seed
    return torch.full((), int(seed), dtype=torch.int64, device=h.device)


def _laid_out_as(h: Tensor, found: Tensor) -> Tensor:
    return found if h.is_contiguous() else torch.empty_like(h).copy_(found)
