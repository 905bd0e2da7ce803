"""Activation modules: local winner-takes-all, and top-k as its baseline."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwta import functional, fused
from lwta.errors import InputError
from lwta.functional import Winners
from lwta.gradient import one_hot
from lwta.measured import Measured, measured
from lwta.noise import draw_seed

#: Noise scale and temperature of the recipe, relative to normalised logits; measured in ``docs/recipe.md``.
NOISE, TAU = 0.05, 0.5


class Competition(nn.Module):
    """The competition behind :class:`LWTA`; returns :class:`~lwta.functional.Winners`.

    It stands as a module of its own so that a forward hook sees input, values and winners of every
    call, in call order, while :class:`LWTA` drops in for any activation. Nothing of a call is kept.

    Attributes:
        noise, tau: plain floats, free to be scheduled during training.
        normalize: divide the logits by the root mean square of the layer's inputs, that of the batch in
            training and its running mean in evaluation (the buffers ``spread`` and ``batches``), so that
            ``noise`` and ``tau`` are relative to them.
        seed: None, or the seed (int64 tensor) of the evaluation sample; see :func:`sampled`.
    """

    seed: Tensor | None
    spread: Tensor
    batches: Tensor

    def __init__(
        self,
        competitors: int,
        dim: int,
        beta: float = 1.0,
        noise: float = NOISE,
        tau: float = TAU,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.competitors, self.dim = competitors, dim
        self.beta, self.noise, self.tau = beta, noise, tau
        self.normalize = normalize
        self.seed = None
        if normalize:
            self.register_buffer("spread", torch.ones(()))
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @property
    def logit_scale(self) -> float:
        """What the inputs are multiplied with before they compete: beta, over their spread if normalised."""
        return self.beta / float(self.spread) if self.normalize else self.beta

    @property
    def running_scale(self) -> float | Tensor:
        """:attr:`logit_scale`, left a tensor where reading it waits for a GPU, or an export has no values."""
        unread = torch.compiler.is_exporting() or (self.normalize and self.spread.device.type != "cpu")
        return self.beta / self.spread if self.normalize and unread else self.logit_scale

    def _batch_scale(self, x: Tensor) -> float | Tensor:
        if not (self.normalize and self.training and x.numel()):
            return self.running_scale
        spread = x.detach().float().square().mean().sqrt().clamp_min(1e-6)
        self.batches.add_(1)
        # A plain mean at first, so that a short training does not remember the initial value.
        self.spread.add_((spread - self.spread) * (1 / self.batches).clamp_min(0.01))
        return self.beta / spread

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The weights of a dense network know no spread of logits: as for a new layer, batches will tell it.
        if self.normalize and not {f"{prefix}spread", f"{prefix}batches"} & set(state_dict):
            fresh = {"spread": torch.ones(()), "batches": torch.zeros((), dtype=torch.long)}
            state_dict = state_dict | {prefix + name: value for name, value in fresh.items()}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, asked: Collection[str] = ()) -> Winners | Measured:
        """Let units compete.

        Args:
            asked: "usage" for :meth:`mean_usage`, "kl" for the KL to uniform of :meth:`probabilities`. They
                come of the same pass where the fused kernels serve; elsewhere they are left to those methods.
        """
        # Before anything is counted: what is refused leaves the layer as it was.
        functional.check_dtype(x)
        functional.blocks_of(x.shape[self.dim], self.competitors)
        noise, seed, on_gpu = self.noise, self.seed, fused.serves(x, self.competitors)
        if self.training:
            seed = draw_seed(x.device if on_gpu else "cpu") if noise > 0 else None
        elif seed is None:
            noise = 0.0
        options: dict[str, Any] = {
            "dim": self.dim, "beta": self._batch_scale(x), "noise": noise, "tau": self.tau,
            "seed": seed, "relaxed": self.training,
        }  # fmt: skip
        if not (asked and on_gpu):
            return functional.lwta(x, self.competitors, **options)
        usage = self.running_scale / self.tau if "usage" in asked else None
        kl = self.running_scale / (self.noise or 1.0) if "kl" in asked else None
        return measured(x, self.competitors, **options, usage=usage, kl=kl)

    def probabilities(self, x: Tensor) -> Tensor:
        """Winner probabilities of the input ``x``, (..., B, U, ...), for losses.

        They are softmax(beta h / s), normalised by the running mean in training too. For a deterministic
        layer, s = 0, they are taken at s = 1: its own are one-hot and carry no gradient.
        """
        return functional.winner_probabilities(
            x, self.competitors, dim=self.dim, beta=self.logit_scale, noise=self.noise or 1.0
        )

    def mean_usage(self, x: Tensor) -> Tensor:
        """How often each unit wins over the batch ``x``, (B, U), for losses.

        At the gradient's temperature in place of s: with little noise, units that never win have no gradient.
        Normalised by the running mean in training too.
        """
        return functional.mean_usage(x, self.competitors, dim=self.dim, beta=self.logit_scale, noise=self.tau)

    def extra_repr(self) -> str:
        return (
            f"competitors={self.competitors}, dim={self.dim}, "
            f"beta={self.beta:g}, noise={self.noise:g}, tau={self.tau:g}, normalize={self.normalize}"
        )


class LWTA(nn.Module):
    """Local winner-takes-all activation: of each block of ``competitors`` units, one fires.

    Training draws Gumbel noise of scale ``noise`` and passes the relaxed gradient; evaluation takes
    the argmax, or a seeded sample inside :func:`sampled`, and passes the hard mask's gradient.

    Args:
        competitors: U; divides the number of units.
        dim: axis of the units: -1 for (N, D) and tokens, 1 for NCHW.
        beta, noise, tau: logit scale, noise scale s and temperature, :func:`lwta.functional.lwta`.
        normalize: of the logits, :class:`Competition`.

    Defaults are the recipe's of ``docs/recipe.md``; as published, ``noise=1.0, normalize=False``.

    Source: arXiv 2310.04929.

    >>> layer = LWTA(competitors=2, dim=-1).eval()
    >>> layer(torch.tensor([[-3.0, -1.0, 2.0, 5.0]]))
    tensor([[ 0., -1.,  0.,  5.]])
    """

    def __init__(
        self,
        competitors: int,
        dim: int,
        beta: float = 1.0,
        noise: float = NOISE,
        tau: float = TAU,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.competition = Competition(competitors, dim, beta, noise, tau, normalize)

    def forward(self, x: Tensor) -> Tensor:
        return self.competition(x).values


class TopK(nn.Module):
    """The ``k`` largest units at each position after GELU; the rest are zero. A baseline.

    Args:
        k: units kept at each position.
        dim: axis of the units.

    >>> TopK(k=1, dim=-1)(torch.tensor([[-3.0, 10.0, 2.0]]))
    tensor([[ 0., 10.,  0.]])
    """

    def __init__(self, k: int, dim: int) -> None:
        super().__init__()
        self.k, self.dim = k, dim

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(x)
        kept = y.topk(self.k, self.dim).indices
        return torch.zeros_like(y).scatter(self.dim, kept, y.gather(self.dim, kept))

    def extra_repr(self) -> str:
        return f"k={self.k}, dim={self.dim}"


class Firing(NamedTuple):
    """One call of one activation site.

    Attributes:
        values: what came out, units along ``dim``.
        fired: bool, same shape: the winner of each block at an LWTA site, whatever its value;
            exactly non-zero elsewhere.
        dim: axis of the units, counted from the front.
        inputs: what competed; None where nothing does (an in-place activation would have overwritten it).
        winner: place of each block's winner; None likewise.
        usage, kl: of :class:`~lwta.measured.Measured`; None where they were not asked for, or the fused
            kernels did not serve.
    """

    values: Tensor
    fired: Tensor
    dim: int
    inputs: Tensor | None = None
    winner: Tensor | None = None
    usage: Tensor | None = None
    kl: Tensor | None = None


def competitions(model: nn.Module) -> dict[str, Competition]:
    """The competitions of a model by the name of the LWTA module that holds them."""
    return {name: module.competition for name, module in model.named_modules() if isinstance(module, LWTA)}


def is_stochastic(model: nn.Module) -> bool:
    """Whether any competition of the model has noise, so that samples of it can differ."""
    return any(competition.noise > 0 for competition in competitions(model).values())


@contextmanager
def sampled(model: nn.Module, seed: int) -> Iterator[None]:
    """Within this context evaluation draws its winners, as a function of ``seed``, instead of the argmax.

    Each layer gets a seed of its own. The same seed gives the same winners for the same batch.
    """
    modules = list(competitions(model).values())
    before = [module.seed for module in modules]
    seeds = torch.Generator().manual_seed(seed)
    try:
        for module in modules:
            module.seed = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, generator=seeds)
        yield
    finally:
        for module, outer in zip(modules, before, strict=True):
            module.seed = outer


@contextmanager
def observe(
    model: nn.Module,
    sites: Mapping[str, int],
    seen: Callable[[str, Firing], None],
    asked: Collection[str] = (),
) -> Iterator[None]:
    """Call ``seen`` with the name and the :class:`Firing` of every call of the named modules, as it happens.

    Args:
        model: any module.
        sites: module name -> axis of the units. At an LWTA module the axis is its own.
        asked: of each competition, :meth:`Competition.forward`.

    Nothing is kept between calls, and what a later in-place operation would overwrite can be read in time.
    A compiled model runs eagerly meanwhile: what is already compiled does not see new hooks.

    Raises:
        InputError: where a module returns anything but a tensor.
    """
    handles = []
    try:
        for name, dim in sites.items():
            module = model.get_submodule(name)
            hook = _winners_hook if isinstance(module, LWTA) else _values_hook
            target = module.competition if isinstance(module, LWTA) else module
            if asked and target is not module:
                handles.append(target.register_forward_pre_hook(_asking_hook(asked), with_kwargs=True))
            handles.append(target.register_forward_hook(hook(name, seen, dim)))
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(
    model: nn.Module, sites: Mapping[str, int], asked: Collection[str] = ()
) -> Iterator[dict[str, list[Firing]]]:
    """Collect every call of the named modules while the context is open; arguments of :func:`observe`.

    Yields:
        name -> its calls, in call order. Clear the lists to start anew.
    """
    calls: dict[str, list[Firing]] = {name: [] for name in sites}
    with observe(model, sites, lambda name, firing: calls[name].append(firing), asked):
        yield calls


def _asking_hook(asked: Collection[str]):
    def hook(module: Competition, inputs: tuple[Tensor, ...], options: dict[str, Any]):
        return inputs, options | {"asked": asked}

    return hook


def _winners_hook(name: str, seen: Callable[[str, Firing], None], _: int):
    def hook(module: Competition, inputs: tuple[Tensor, ...], out: Winners | Measured) -> None:
        x, dim = inputs[0], functional.positive_axis(module.dim, inputs[0].ndim)
        mask = one_hot(out.winner.unsqueeze(dim + 1), module.competitors, dim + 1)
        losses = (out.usage, out.kl) if isinstance(out, Measured) else ()
        seen(name, Firing(out.values, mask.flatten(dim, dim + 1), dim, x, out.winner, *losses))

    return hook


def _values_hook(name: str, seen: Callable[[str, Firing], None], dim: int):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: object) -> None:
        if not isinstance(out, Tensor):
            raise InputError(
                f"the layer {name} returns a {type(out).__name__}, not a tensor; name a module inside it"
            )
        seen(name, Firing(out, out != 0, functional.positive_axis(dim, out.ndim)))

    return hook
