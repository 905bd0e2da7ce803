"""Image-text encoders: any open_clip model, by name and tag, hub id or local folder."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from lwta.errors import InputError

#: Named sets of prompt templates that open_clip carries.
TEMPLATES = {"imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}

_PROMPTS = 256  # embedded at once
_LONG = 2000  # prompts that are worth a progress bar


class Encoder(NamedTuple):
    """An open_clip model with what it needs around it.

    Attributes:
        name: as asked for, with its tag; of a folder or file its last part, wherever it lies.
        model: in evaluation mode.
        transform: PIL image to the tensor that the model takes.
        tokenizer: texts to token ids.
    """

    name: str
    model: Any
    transform: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings (n, E) of transformed images (n, 3, H, W), of length 1, on the CPU."""
        embeddings = self.model.encode_image(pixels.to(_device(self.model)), normalize=True)
        return embeddings.float().cpu()

    def texts(self, words: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embeddings (K, E) of words, each the mean over the prompts, of length 1, on the CPU."""
        step = max(1, _PROMPTS // len(templates))  # words at once
        parts, quick = [], len(words) * len(templates) < _LONG  # a bar that comes and goes tells nothing
        with tqdm(total=len(words), desc="words", unit=" words", disable=quick or None) as bar:
            for start in range(0, len(words), step):
                part = list(words[start : start + step])
                weights = open_clip.build_zero_shot_classifier(
                    _Unpadded(self.model), self.tokenizer, part, list(templates), None, _device(self.model)
                )
                parts.append(weights.T.float().cpu())
                bar.update(len(part))
        return torch.cat(parts)

    @property
    def width(self) -> int:
        """E, from one embedding: open_clip's models keep it in different places."""
        return self.texts(["a"], ["{}"]).shape[1]

    def identity(self) -> str:
        """Name and a hash of the weights, of what is computed with them, and of how inputs are prepared."""
        prepared = open_clip.get_model_preprocess_cfg(self.model)
        digest = hashlib.sha256(json.dumps(prepared, sort_keys=True, default=str).encode())
        digest.update(repr(self.model).encode())
        digest.update(str(self.tokenizer(["A photo of a dog, un blé; 1,024 words"]).tolist()).encode())
        for key, value in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return f"{self.name} {digest.hexdigest()[:16]}"


class _Unpadded:
    """The text side of a model, which leaves out the padding that no prompt of a batch reaches.

    open_clip pads prompts to 77 tokens, of which a word in its template fills about ten. Where attention
    is causal and the embedding is read at the end of the text, what follows the end changes nothing.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        causal = type(model) is open_clip.CLIP and model.attn_mask is not None
        self.exact = causal and model.text_pool_type == "argmax"

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        if not (self.exact and normalize):
            return self.model.encode_text(tokens, normalize=normalize)
        length = int(tokens.argmax(1).max()) + 1  # the end of text has the largest id
        shorter = {
            "positional_embedding": self.model.positional_embedding[:length],
            "attn_mask": self.model.attn_mask[:length, :length],
        }
        found = functional_call(self.model, shorter, kwargs={"text": tokens[:, :length]})
        return found["text_features"] if isinstance(found, dict) else found[1]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def load_encoder(name: str, tag: str | None = None, device: str | torch.device = "cpu") -> Encoder:
    """Load an open_clip model with its weights.

    Args:
        name: an open_clip architecture (``ViT-B-32``) with ``tag``, ``hf-hub:OWNER/NAME``, or a folder
            that holds ``open_clip_config.json`` and weights (also as ``local-dir:FOLDER``).
        tag: weights of an architecture, as ``open_clip.list_pretrained()`` names them, or a file.
        device: where to put it.

    Raises:
        InputError: a name or tag that does not exist, a hub that cannot be reached, a folder without
            model, weights that do not fit.
    """
    folder, asked = name.removeprefix("local-dir:"), f"{name} {Path(tag).name}" if tag else name
    if name.startswith("local-dir:") or Path(name).is_dir():
        if not (Path(folder) / "open_clip_config.json").is_file():
            raise InputError(f"{folder} is no open_clip model: it has no open_clip_config.json")
        name, asked = f"local-dir:{folder}", f"local-dir:{Path(folder).resolve().name}"
    elif not name.startswith("hf-hub:"):
        _check_name(name, tag)
    if tag and ":" in name:
        raise InputError(f"{name} holds its own weights; leave the tag {tag!r} away")
    try:
        with _quiet():
            loaded: Any = open_clip.create_model_from_pretrained(name, pretrained=tag, device=device)
            tokenizer = open_clip.get_tokenizer(name)
    except ImportError as error:
        raise InputError(f"{name} needs a package that is not installed ({error}); pip install it") from error
    except Exception as error:  # whatever the hub, the file or the model's code says
        raise InputError(_refusal(name, tag, error)) from error
    model, transform = loaded
    return Encoder(asked, model.eval(), transform, tokenizer)


def _check_name(name: str, tag: str | None) -> None:
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        near = ", ".join(get_close_matches(name, known, 3, cutoff=0))
        raise InputError(
            f"open_clip knows no model {name!r}, and no such folder exists; the nearest names are {near}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if tag is None:
        raise InputError(f"{name} needs a tag that says which weights: {', '.join(tags) or 'a file'}")
    if not (get_pretrained_cfg(name.replace("/", "-"), tag) or Path(tag).is_file()):
        held = f"its tags are {', '.join(tags)}" if tags else "it has no tags, give a file"
        raise InputError(f"{name} has no weights {tag!r}, and no such file exists; {held}")


def _refusal(name: str, tag: str | None, error: Exception) -> str:
    """One sentence: what failed, and what to do without a network."""
    reason = str(error).strip().split("\n")[0]
    reason = shorten(reason, 200, placeholder=" ...")
    if name.startswith("local-dir:"):
        return f"the open_clip model in {name.removeprefix('local-dir:')} does not load ({reason})"
    if name.startswith("hf-hub:"):
        source = name.removeprefix("hf-hub:")
    elif tag is None or Path(tag).is_file():
        return f"the weights {tag} do not fit {name} ({reason})"
    else:
        weights = get_pretrained_cfg(name.replace("/", "-"), tag)
        hub = weights.get("hf_hub", "").rstrip("/")
        source = f"open_clip_model.safetensors or its .bin from {hub}" if hub else weights.get("url", "")
    if "://" in source or not name.startswith("hf-hub:"):
        put = (
            f"download {source} elsewhere and give the file with --clip {name} --tag FILE (of a judge "
            f"--judge {name} --judge_tag FILE)"
        )
    else:
        put = (
            f"download open_clip_config.json, the weights and the tokenizer of {source} elsewhere into one "
            "folder and give it with --clip FOLDER (of a judge --judge FOLDER)"
        )
    return f"{name} cannot be fetched ({reason}); {put}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' repeated notes on every retry; the error that follows says it once."""
    loggers = [logging.getLogger(name) for name in (None, "huggingface_hub", "huggingface_hub.utils._http")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def read_templates(templates: str | Sequence[str]) -> list[str]:
    """Prompt templates from one template, a list of them, or a name of :data:`TEMPLATES`.

    Raises:
        InputError: a template without the place for the word.
    """
    if isinstance(templates, str):
        templates = [t("{}") for t in TEMPLATES[templates]] if templates in TEMPLATES else [templates]
    for template in templates:
        around = template.replace("{}", "", 1)
        if around == template or {"{", "}"} & set(around):
            raise InputError(
                f"the template {template!r} needs exactly one {{}} for the concept, "
                f"or is one of {', '.join(TEMPLATES)}"
            )
    if not templates:
        raise InputError("templates names no template; {} takes the concept as it is")
    return list(templates)
