"""Train the CLIP of the embedded world: ``python -m models.shapes_clip.train train``.

The architecture is open_clip's own, small: timm's smallest ResNet for images, two transformer blocks for
text. The vocabulary stays open_clip's, so that it loads as any other model; rows of words that no caption
uses are zero. The loss has two terms. One tells the word of each factor from its other words, as zero-shot
classification will. The other is CLIP's (Radford et al., 2021, arXiv 2103.00020) with every matching pair
of a batch as a positive: a short caption such as "red" is true of many images.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from models.shapes import FACTORS, Shapes, caption
from models.shapes_clip import FOLDER

SIZE = 48
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 40,
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": SIZE},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 40, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
}


class ShapesClip(LightningModule):
    """CLIP on images (n, 3, S, S), 8 bit, and their factors (n, F)."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.model: Any = open_clip.CLIP(**CONFIG["model_cfg"])
        with torch.no_grad():  # words start well apart: from open_clip's .02 some factors never part
            self.model.token_embedding.weight.mul_(10)
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"]
        )
        self.lr, self.used = lr, torch.zeros(self.model.vocab_size, dtype=torch.bool)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, factors = batch
        told = _told(len(factors))
        texts = self.tokenizer([_caption(row, keep) for row, keep in zip(factors, told, strict=True)])
        self.used[texts.unique()] = True
        seen = self.model.encode_image(_shifted(normalise(images)), normalize=True)
        read = self.model.encode_text(texts.to(self.device), normalize=True)
        scale = self.model.logit_scale.exp()
        # Text i is true of image j where they agree in every factor that the text tells.
        true = ((factors[:, None] == factors[None]) | ~told[:, None].to(self.device)).all(2).float()
        loss = _matched(scale * read @ seen.T, true) + self._words_loss(scale * seen, factors)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _words_loss(self, scaled: Tensor, factors: Tensor) -> Tensor:
        """Each image against the single words of each factor, as zero-shot classification will use them."""
        texts = self.tokenizer([word for values in FACTORS.values() for word in values])
        self.used[texts.unique()] = True
        words = self.model.encode_text(texts.to(self.device), normalize=True)
        parts = words.split([len(values) for values in FACTORS.values()])
        losses = [F.cross_entropy(scaled @ part.T, factors[:, f]) for f, part in enumerate(parts)]
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.model.parameters(), self.lr, weight_decay=0.02)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, self.lr, steps), "interval": "step"}]


def _matched(logits: Tensor, true: Tensor) -> Tensor:
    """Contrastive loss of texts x images, both ways, every true pair a positive."""
    to_images = (logits.log_softmax(1) * true).sum(1) / true.sum(1)
    to_texts = (logits.log_softmax(0) * true).sum(0) / true.sum(0).clamp_min(1)
    return -(to_images.mean() + to_texts.mean())


def normalise(images: Tensor) -> Tensor:
    """8-bit images as the model takes them."""
    return (images.float() / 255 - 0.5) / 0.25


def _told(count: int) -> Tensor:
    """Which factors each caption tells (n, F): all of them, or one, or a few."""
    number = len(FACTORS)
    order = torch.rand(count, number).argsort(1)
    length = torch.where(torch.rand(count) < 0.3, number, torch.randint(1, 4, (count,)))
    return order < length[:, None]


def _caption(row: Tensor, told: Tensor) -> str:
    """The told factors of an image in words."""
    drawn = zip(FACTORS.items(), row.tolist(), told.tolist(), strict=True)
    return caption({name: values[k] for (name, values), k, keep in drawn if keep})


def _shifted(images: Tensor, most: int = 2) -> Tensor:
    """The batch moved by up to ``most`` pixels, edges repeated."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    padded = F.pad(images, (most,) * 4, mode="replicate")
    side = images.shape[-1]
    return padded[..., most + down : most + down + side, most + right : most + right + side]


def rendered(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split (N, 3, S, S), 8 bit, and their factors (N, F)."""
    data = Shapes(split, SIZE)
    images = torch.stack([pil_to_tensor(data[i][0]) for i in tqdm(range(len(data)), split, disable=None)])
    return images, data.factors


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, images: Tensor, factors: Tensor) -> dict[str, float]:
    """Accuracy per factor: of its values, the word nearest to the image."""
    model.eval()
    seen = torch.cat([model.encode_image(normalise(part), normalize=True) for part in images.split(256)])
    scores = {}
    for place, (name, values) in enumerate(FACTORS.items()):
        read = model.encode_text(tokenizer(list(values)), normalize=True)
        scores[name] = ((seen @ read.T).argmax(1) == factors[:, place]).float().mean().item()
    return scores


def train(
    out: str = str(FOLDER),
    images: int = 40_000,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 4e-3,
    seed: int = 0,
) -> None:
    """Train, write ``open_clip_config.json`` and ``open_clip_model.safetensors``, print zero-shot accuracy.

    Args:
        out: folder to write into.
        images: rendered for training, from other indices than any classifier trains on.
        epochs: passes over them.
        batch_size: images per step.
        lr: peak of the one-cycle schedule.
        seed: of weights, captions and order.
    """
    seed_everything(seed)
    data = TensorDataset(*rendered(f"train[100000:{100_000 + images}]"))
    clip = ShapesClip(lr)
    trainer = Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(clip, DataLoader(data, batch_size, shuffle=True, drop_last=True))
    model: Any = clip.model.cpu()
    with torch.no_grad():
        model.token_embedding.weight[~clip.used] = 0
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    report(out)


def report(folder: str = str(FOLDER)) -> None:
    """Print zero-shot accuracy per factor, of the model in ``folder`` as open_clip loads it."""
    name = f"local-dir:{folder}"
    model = open_clip.create_model_from_pretrained(name, return_transform=False)
    for split, what in (("validation", "unseen images"), ("test", "held-out combinations")):
        scores = zero_shot(model, open_clip.get_tokenizer(name), *rendered(split))
        print(f"{what}: " + ", ".join(f"{factor} {score:.3f}" for factor, score in scores.items()))


if __name__ == "__main__":
    auto_cli([train, report])
