"""The LightningModule: a sparse backbone, its losses and schedules, and what is measured of it."""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lwta.errors import InputError
from lwta.inference import sparsify
from lwta.layers import NOISE, TAU, competitions, watch
from lwta.winners import WinnersOnly
from models.backbone import create_backbone
from models.checkpoint import read_checkpoint
from models.checks import check_model
from models.competitors import Competitors
from models.loss import training_loss
from models.measure import SparsityMeter, accuracy_metrics, evaluation_name, predict
from models.optimizer import create_optimizer
from models.schedule import Schedule, Stages


class Classifier(LightningModule):
    """An image classifier in which a few units fire.

    Loss: cross entropy (label smoothing; hard or soft targets)
    + ``kl_weight`` * KL[q || uniform] - ``balance_weight`` * usage entropy, each averaged over layers.

    How units compete defaults to the recipe of ``docs/recipe.md``.

    Args:
        backbone: timm architecture.
        num_classes: linked from the data.
        class_names: linked from the data; kept in the checkpoint.
        backbone_args: further arguments of ``timm.create_model``.
        pretrained: start from timm's weights, or from a file that is fitted as timm fits them: the head may
            be of other classes, images of another size (:func:`models.backbone.create_backbone`).
        weights: start training from these, a run folder, dense or sparse, or a file
            (:func:`models.weights.load_start`).
        activation: what to put at the sites: lwta, topk, relu or gelu.
        competitors: U of lwta and topk, one number or, by glob of the site's name, several, the first that
            matches; null leaves the network dense, as timm builds it.
        active_fraction: where set, in place of one number of competitors: at each site the U that divides its
            width and is nearest to one over this, but for those that globs of competitors match.
        staged_competitors: of a network that is to become sparse by stages: {epoch: U, ...}, until that epoch
            each site trains with the divisor of its width nearest to U, if that is fewer than in the end.
            Validation is always of the network as it is to be.
        sites: globs over module names; null takes what :func:`models.placement.default_sites` does.
        placement: of those: last, what the last layer of a block reads; inner, all inside a block; all, as
            published for ResNets.
        dim: axis of the units where it cannot be told.
        beta: logit scale of the competition.
        normalize: divide its logits by their root mean square.
        noise: scale s of its Gumbel noise, a number or a schedule; 0 is deterministic.
        tau: temperature of the relaxed gradient, a number or a schedule.
        kl_weight, balance_weight: weights of the two terms, numbers or schedules; null balances by 1 where
            units compete.
        label_smoothing: of the training loss.
        optimizer, lr, weight_decay, optimizer_args: timm's ``create_optimizer_v2``.
        scheduler, warmup_epochs, min_lr, scheduler_args: timm's ``create_scheduler_v2``, per update.
        evaluation: 0 validates with the argmax, n with the mean probability of n seeded samples.
        test_evaluations: the same, each reported by ``test``.
        seed: of the network's noise in training and of the samples in evaluation.
        winners_only: test with what reads a competition computed from its winners alone, where that is
            measured to be faster (:func:`lwta.inference.sparsify`).
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        class_names: list[str] | None = None,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        weights: str | None = None,
        activation: Literal["lwta", "topk", "relu", "gelu"] = "lwta",
        competitors: Competitors | None = 24,
        active_fraction: float | None = None,
        staged_competitors: dict[int, int] | None = None,
        sites: list[str] | None = None,
        placement: Literal["all", "inner", "last"] = "last",
        dim: int | None = None,
        beta: float = 1.0,
        normalize: bool = True,
        noise: float | Schedule = NOISE,
        tau: float | Schedule = TAU,
        kl_weight: float | Schedule = 0.0,
        balance_weight: float | Schedule | None = None,
        label_smoothing: float = 0.1,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        optimizer_args: dict[str, Any] | None = None,
        scheduler: str = "cosine",
        warmup_epochs: float = 0,
        min_lr: float = 0.0,
        scheduler_args: dict[str, Any] | None = None,
        evaluation: int = 0,
        test_evaluations: tuple[int, ...] = (0, 1, 10),
        seed: int = 0,
        winners_only: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if active_fraction is not None and isinstance(competitors, int):
            competitors = None
        competing = activation == "lwta" and not (competitors is None and active_fraction is None)
        if balance_weight is None:
            balance_weight = self.hparams["balance_weight"] = 1.0 if competing else 0.0
        # Checkpoints hold plain values only, so that they load without running code.
        self.hparams.update({k: asdict(v) for k, v in self.hparams.items() if isinstance(v, Schedule)})
        self.schedules = {
            "noise": Schedule.of(noise),
            "tau": Schedule.of(tau),
            "kl_weight": Schedule.of(kl_weight),
            "balance_weight": Schedule.of(balance_weight),
        }
        check_model(self.hparams, self.schedules)
        self.backbone, self.report = create_backbone(
            backbone,
            num_classes,
            pretrained=pretrained,
            backbone_args=backbone_args,
            kind=activation,
            competitors=competitors,
            active_fraction=active_fraction,
            sites=sites,
            placement=placement,
            dim=dim,
            **({"beta": beta, "normalize": normalize} if activation == "lwta" else {}),
        )
        self.set_scales(epoch=0.0)
        competing_layers = competitions(self.backbone)
        units = {competing_layers[s.name]: s.units or 0 for s in self.report.swapped if s.kind == "LWTA"}
        self.stages = Stages(units, staged_competitors or {})
        if not competing and any(self.schedules[k].peak for k in ("kl_weight", "balance_weight")):
            raise InputError("kl_weight and balance_weight need competing units; this network has none")
        # A dense network is measured at the sites that would compete.
        self.sparsity = SparsityMeter(self.report.chosen)
        self.accuracy = nn.ModuleDict(
            {evaluation_name(n): accuracy_metrics(num_classes) for n in {evaluation, *test_evaluations}}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        return self.backbone(images)

    def set_scales(self, epoch: float) -> dict[str, float]:
        """Set noise and tau of every competition to their scheduled values; returns all four."""
        values = {name: schedule.at(epoch) for name, schedule in self.schedules.items()}
        for competition in competitions(self.backbone).values():
            competition.noise, competition.tau = values["noise"], values["tau"]
        return values

    # -- training -----------------------------------------------------------------------------

    def on_fit_end(self) -> None:
        self.stages.finish()

    def on_fit_start(self) -> None:
        rank_zero_info(str(self.report))

    def on_validation_start(self) -> None:
        self.stages.finish()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit":
            self.stages.set(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        self.stages.set(self.current_epoch)
        # Noise, dropout and mixing become functions of (seed, epoch, rank): a resumed run repeats them.
        key = [self.hparams["seed"], self.current_epoch, self.global_rank]
        state = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        scales = self.set_scales(self.current_epoch + batch_idx / self.trainer.num_training_batches)
        self._epochs_done = self.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches
        weights = {"kl": scales["kl_weight"], "usage_entropy": -scales["balance_weight"]}
        smoothing = self.hparams["label_smoothing"]
        loss, terms = training_loss(self.backbone, images, target, self.sparsity.dims, smoothing, weights)
        for name, term in terms.items():
            self.log(f"train/{name}", term, on_step=False, on_epoch=True, sync_dist=True)
        self._refuse_nan(loss, batch_idx)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        logged = {f"train/{k}": scales[k] for k in ("noise", "tau")}
        logged["train/lr"] = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore
        self.log_dict(logged, on_step=False, on_epoch=True)
        return loss

    def _refuse_nan(self, loss: Tensor, batch_idx: int) -> None:
        # Reading the loss waits for the device, so not at every step; once NaN, weights stay NaN.
        # on_save_checkpoint refuses NaN weights whatever was seen here.
        every = cast(int, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        due = batch_idx % every == 0 or self.trainer.is_last_batch
        if due and not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} in epoch {self.current_epoch}, batch {batch_idx}; "
                "lower model.lr or set trainer.gradient_clip_val (checkpoints of earlier epochs are kept)"
            )

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = create_optimizer(self.backbone, self.hparams, self.trainer.max_epochs or 1)
        if scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "name": "lr"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # timm's schedules are functions of the epoch, and take fractions of one. Counting updates
        # instead would need the loader before a resumed run knows its epoch.
        scheduler.step(self._epochs_done)

    # -- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        probabilities = self._evaluate(batch, batch_idx, self.hparams["evaluation"])
        loss = F.nll_loss(probabilities.clamp_min(1e-12).log(), batch[1])
        self.log("val/loss", loss, batch_size=len(batch[1]), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        made = any(isinstance(module, WinnersOnly) for module in self.backbone.modules())
        if self.hparams["winners_only"] and not made and batch_idx == 0:
            rank_zero_info(str(sparsify(self.backbone, batch[0], fold=False)))  # norms stay, to train on
        for samples in self.hparams["test_evaluations"]:
            self._evaluate(batch, batch_idx, samples)

    def _evaluate(self, batch: tuple[Tensor, Tensor], batch_idx: int, samples: int) -> Tensor:
        images, target = batch
        # Distinct seeds for distinct batches and ranks; 10,000 samples apart.
        seed = self.hparams["seed"] + 10_000 * (batch_idx * self.trainer.world_size + self.global_rank)
        if samples == 0:
            with watch(self.backbone, self.sparsity.dims) as calls:
                probabilities = predict(self.backbone, images, 0, seed)
            self.sparsity.update(calls)
        else:
            probabilities = predict(self.backbone, images, samples, seed)
        self._scores(samples).update(probabilities, target)
        return probabilities

    def _scores(self, samples: int) -> MetricCollection:
        return cast(MetricCollection, self.accuracy[evaluation_name(samples)])

    def on_validation_epoch_end(self) -> None:
        accuracy = self._scores(self.hparams["evaluation"])
        scores = accuracy.compute()
        accuracy.reset()
        self.log("val/top1", scores["top1"], prog_bar=True)
        self.log("val/top5", scores["top5"])
        self._log_sparsity("val", on_bar=True)

    def on_test_epoch_end(self) -> None:
        for samples in self.hparams["test_evaluations"]:
            accuracy, name = self._scores(samples), evaluation_name(samples)
            self.log_dict({f"test/{key}/{name}": value for key, value in accuracy.compute().items()})
            accuracy.reset()
        self._log_sparsity("test", on_bar=False)

    def _log_sparsity(self, stage: str, on_bar: bool) -> None:
        if not self.sparsity.overall.update_called:  # validated by samples: nobody was watched
            return
        measured = self.sparsity.compute()
        self.sparsity.reset()
        self.log(f"{stage}/active_fraction", measured.pop("active_fraction"), prog_bar=on_bar)
        self.log_dict({f"{stage}/{name}": value for name, value in measured.items()})

    # -- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(p.isfinite().all() for p in self.backbone.parameters()):
            raise InputError(
                f"the weights are no longer finite after epoch {self.current_epoch}; lower model.lr or set "
                "trainer.gradient_clip_val (checkpoints of earlier epochs are kept)"
            )
        # The scales that the weights were last trained with; sampling at evaluation needs them.
        checkpoint["scales"] = {name: (c.noise, c.tau) for name, c in competitions(self.backbone).items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, competition in competitions(self.backbone).items():
            competition.noise, competition.tau = checkpoint["scales"][name]

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Classifier":
        """The network of a checkpoint, in evaluation mode; pretrained weights are not fetched again."""
        checkpoint = read_checkpoint(path)
        fields: dict[str, Any] = dict(checkpoint["hyper_parameters"], pretrained=False)
        fields.pop("_instantiator", None)
        model = cls(**fields)
        model.hparams["pretrained"] = checkpoint["hyper_parameters"]["pretrained"]
        model.load_state_dict(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
        return model.eval()
