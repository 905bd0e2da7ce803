"""One run of a study: its command, what identifies it, and the files that say how far it is."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lwta.errors import InputError

_PLACES = ("run", "data.root")  # where a run lies, not what it is


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        variant, seed: what is trained.
        folder: the run's.
        config: of ``train.py``.
        fields: dotted fields set over the config's.
        needs: variants whose runs with the same seed it starts from.
    """

    variant: str
    seed: int
    folder: Path
    config: str
    fields: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, and the seed."""
        return {"seed_everything": self.seed} | dict(self.fields)

    @property
    def words(self) -> list[str]:
        """Arguments of ``train.py``, but for the folders of run and data."""
        words = ["fit", "--config", self.config]
        for key, value in self.settings.items():
            words += [f"--{key}", as_word(value)]
        return words

    @property
    def command(self) -> str:
        """As typed in the repository."""
        return f"python train.py {shlex.join(self.words)} --run runs/NAME --data.root DATA"

    def recipe(self, repository: Path) -> str:
        """Hash of the config with the fields set: two trials of one recipe and commit train one network.

        What a config leaves to the defaults of the code is not in it, nor what it starts from but by name.

        Raises:
            InputError: where the config cannot be read.
        """
        try:
            held = _flat(yaml.safe_load((repository / self.config).read_text()))
        except (OSError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self}: its config {self.config} cannot be read ({reason})") from None
        for key, value in self.settings.items():
            held = {k: v for k, v in held.items() if k != key and not k.startswith(f"{key}.")}
            held |= _flat(value, key)
        told = {k: v for k, v in held.items() if k not in _PLACES}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def file(self, name: str) -> Path:
        """A file that says how far the trial is: started, trained, validate or test, as JSON."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """What :meth:`file` holds, None where it is not there."""
        path = self.file(name)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write :meth:`file`, whole or not at all."""
        write_whole(self.file(name), content)

    def check_recipe(self, recipe: str, known: Mapping[str, Any] | None) -> None:
        """Refuse what is known of this trial where it was of another recipe.

        Raises:
            InputError: naming the command it was trained by.
        """
        if known and known["recipe"] != recipe:
            raise InputError(
                f"{self} was trained otherwise ({known['command']}, or its config has changed since); "
                f"give the new variant a name of its own, or delete {self.folder} and the row"
            )


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, one in value.items() for k, v in _flat(one, f"{prefix}.{key}".strip(".")).items()}


def as_word(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)
