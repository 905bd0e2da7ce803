"""Train, validate and test sparse networks from config: ``train.py {fit,validate,test} --help``."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from lwta.errors import InputError
from models.checkpoint import read_checkpoint, run_checkpoint
from models.classifier import Classifier
from models.data import ImageData
from models.input_size import fixed_image_size
from models.optimizer import create_optimizer
from models.weights import load_start


class RunCLI(LightningCLI):
    """LightningCLI that keeps everything of a run in one folder, ``--run runs/NAME``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {k: v for k, v in LightningCLI.subcommands().items() if k != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, required=True, help="folder of the run, runs/NAME")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        for name in ("num_classes", "class_names"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass, subcommand, **kwargs):
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})  # checkpoints load without running code
        return parser

    def _parse_ckpt_path(self) -> None:
        # Lightning would put a checkpoint's hyperparameters over the config's; here the config
        # holds. The file is read now, so that a bad one is refused before anything is written.
        config = self.config[str(self.config.subcommand)]
        if config.ckpt_path is None and self.config.subcommand != "fit":
            config.ckpt_path = str(run_checkpoint(config.run))
        if config.ckpt_path is not None:
            check_same_network(config.ckpt_path, config.model)
        elif config.trainer.get("fast_dev_run"):
            return
        elif (last := Path(config.run) / "checkpoints" / "last.ckpt").exists():
            raise InputError(
                f"{config.run} already holds a run; resume it with --ckpt_path {last} "
                "or name another folder with --run"
            )

    def instantiate_classes(self) -> None:
        """Build the run; what its checkpoint holds is not fetched again."""
        config = self.config[str(self.config.subcommand)]
        wanted = config.model.pretrained
        if config.ckpt_path is not None:
            config.model.pretrained = False
        super().instantiate_classes()
        config.model.pretrained = self.model.hparams["pretrained"] = wanted

    def before_fit(self) -> None:
        """Refuse what only shows once the data is there, before the run folder is made."""
        if not self.trainer.max_epochs or self.trainer.max_epochs < 1:
            raise InputError("the learning-rate schedule needs trainer.max_epochs, at least 1")
        if self.model.stages.end >= self.trainer.max_epochs:
            raise InputError(
                f"staged_competitors end at epoch {self.model.stages.end} and trainer.max_epochs is "
                f"{self.trainer.max_epochs}, so the network would never train as it is to be; end them before"
            )
        weights = self.model.hparams["weights"]
        if weights is not None and self.config[str(self.subcommand)].ckpt_path is None:
            load_start(self.model.backbone, weights)
        create_optimizer(self.model.backbone, self.model.hparams, self.trainer.max_epochs)
        self.datamodule.check_training()
        built = fixed_image_size(self.model.backbone)
        side = self.datamodule.config["image_size"]
        if built not in (None, (side, side)):
            raise InputError(
                f"data.image_size is {side} and the backbone is built for {built[0]} x {built[1]}; "
                "set model.backbone_args.img_size or data.image_size"
            )

    def instantiate_trainer(self, **kwargs):
        config = self.config_init[str(self.subcommand)]
        if config.trainer.logger in (None, True):
            kwargs["logger"] = [
                CSVLogger(config.run, name="metrics"),
                TensorBoardLogger(config.run, name="tensorboard"),
            ]
        if config.trainer.enable_checkpointing is not False:
            self.trainer_defaults = {"callbacks": checkpoints(config.run)}
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, ImportError) as error:  # an accelerator that is no name, or not installed
            raise InputError(f"the trainer cannot be set up ({str(error).splitlines()[0]})") from error


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config to ``runs/NAME/config.yaml`` once training has begun.

    Not before: a resume that is refused leaves the config of its run as it was.
    """

    def setup(self, trainer, pl_module, stage) -> None:
        pass

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            path = Path(self.config.run) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config.ckpt_path = None  # resuming once must not make ``test`` judge the resumed checkpoint
            self.parser.save(config, path, skip_unset=False, overwrite=True)


def check_same_network(path: str, config) -> None:
    """Read a checkpoint and refuse one of another network than the config describes."""
    trained = read_checkpoint(path)["hyper_parameters"]
    swapped = ("activation", "competitors", "active_fraction", "sites", "placement", "dim")
    for name in ("backbone", "backbone_args", *swapped, "normalize", "optimizer"):
        if trained.get(name, config[name]) != config[name]:  # older checkpoints lack newer fields
            other = f", or start anew from its weights by --model.weights {path}" if name in swapped else ""
            raise InputError(
                f"checkpoint {path} has model.{name}={trained[name]} and the config {config[name]}; "
                f"use the config of its run{other}"
            )


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best checkpoint again after the run folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        if (folder / Path(state_dict["best_model_path"]).name).is_file():
            moved = {key: here(value) for key, value in state_dict.items() if key.endswith("model_path")}
            best = {here(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = state_dict | moved | {"dirpath": str(folder), "best_k_models": best}
        super().load_state_dict(state_dict)


def checkpoints(run: str) -> list[Callback]:
    """best.ckpt by validation accuracy, and last.ckpt after every epoch."""
    folder = Path(run) / "checkpoints"
    # At the end of the training epoch: a checkpoint of the validation before it counts the epoch as
    # unfinished, and resuming would hand the next epoch this one's order of images.
    shared: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    # Two callbacks: save_last of one would write last.ckpt only when the best one changes.
    best = RunCheckpoint(folder, "best", monitor="val/top1", mode="max", **shared)
    last = RunCheckpoint(folder, "last", **shared)
    return [best, last]


def main(args: list[str] | None = None) -> None:
    """Run the command line; a bad input ends it with one sentence and exit code 1."""
    # Lightning's own calls of what its dependencies have deprecated; nothing a user could change.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    try:
        RunCLI(
            Classifier,
            ImageData,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            args=args,
        )
    except (InputError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except PermissionError as error:
        sys.exit(f"error: no permission to write {error.filename}; choose another folder with --run")
    except SIGTERMException:
        print("error: terminated; resume from checkpoints/last.ckpt of the run", file=sys.stderr)
        sys.exit(143)


if __name__ == "__main__":
    main()
