"""A study: which variants of which configs are trained, with which seeds, and what is made of them."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lwta.errors import InputError

#: Where a study is run; its relative paths begin here.
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        variant, seed: what is trained.
        folder: the run's, relative to the repository.
        config: of ``train.py``.
        fields: dotted fields set over the config's; ``{folder of VARIANT}`` in a text is the folder of that
            variant's run with the same seed, which is then trained first.
        needs: those folders.
    """

    variant: str
    seed: int
    folder: Path
    config: str
    fields: Mapping[str, Any]
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> list[str]:
        """As typed in the repository, the data folder left to ``$DATA``."""
        fields = {"seed_everything": self.seed, "run": str(self.folder), "data.root": "$DATA"} | dict(
            self.fields
        )
        words = [word for name, value in fields.items() for word in (f"--{name}", _text(value))]
        return ["python", "train.py", "fit", "--config", self.config, *words]


@dataclass
class Study:
    """What a study file says.

    Attributes:
        name: the file's.
        runs: folder of the runs.
        results: folder of rows, tables and plots.
        variants: name -> ``config``, ``fields`` and ``grid``, a list of values for each of some fields: a
            variant named NAME-VALUE for each of their combinations.
        seeds: of every variant.
        evaluations: numbers of samples that validation data are judged by; 0 is the argmax.
        final: row of the final table -> variant; these are trained with ``final_seeds``, judged by
            ``final_evaluations`` and tested.
        against: rows that the others are compared with.
        curves: line of the plot of accuracy against U -> {U: variant}.
    """

    name: str
    runs: Path
    variants: dict[str, dict[str, Any]]
    results: Path = Path("benchmarks/results/accuracy")
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluations: list[int] = field(default_factory=lambda: [0, 1, 10])
    final: dict[str, str] = field(default_factory=dict)
    final_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    final_evaluations: list[int] = field(default_factory=lambda: [0, 1, 10, 50])
    against: list[str] = field(default_factory=list)
    curves: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Study":
        """The study of a YAML file.

        Raises:
            InputError: where the file is missing, or names what it does not define.
        """
        try:
            written = yaml.safe_load(Path(path).read_text())
            study = cls(**{"name": Path(path).stem} | written)
        except (OSError, TypeError, yaml.YAMLError) as error:
            raise InputError(f"{path} is no study ({str(error).splitlines()[0]})") from None
        study.runs, study.results = Path(study.runs), REPOSITORY / study.results
        study.variants = {name: v for base in study.variants.items() for name, v in _combinations(*base)}
        named = [*study.final.values(), *(v for line in study.curves.values() for v in line.values())]
        for variant in named:
            if variant not in study.variants:
                raise InputError(f"{path} has no variant {variant!r}; it has {', '.join(study.variants)}")
        for row in study.against:
            if row not in study.final:
                raise InputError(f"{path} compares with {row!r}, which is no row of its final table")
        return study

    def trials(self) -> list[Trial]:
        """All of them, in the order of the file; those of ``final`` with further seeds come last."""
        chosen = list(dict.fromkeys(self.final.values()))
        later = [(v, s) for s in self.final_seeds for v in chosen if s not in self.seeds]
        return [self.trial(*one) for one in [*itertools.product(self.variants, self.seeds), *later]]

    def tested(self) -> list[Trial]:
        """Those of the final table and of the curves."""
        curves = [(v, s) for line in self.curves.values() for v in line.values() for s in self.seeds]
        table = [(v, s) for v in self.final.values() for s in self.final_seeds]
        return [self.trial(*one) for one in dict.fromkeys([*table, *curves])]

    def evaluations_of(self, variant: str) -> list[int]:
        """Numbers of samples that a variant is judged by."""
        return self.final_evaluations if variant in self.final.values() else self.evaluations

    def trial(self, variant: str, seed: int) -> Trial:
        """One variant with one seed."""
        given = self.variants[variant]
        needs: list[Path] = []

        def folder_of(found: re.Match[str]) -> str:
            if found[1] not in self.variants:
                raise InputError(f"{variant} asks for the folder of {found[1]!r}, which is no variant")
            needs.append(self.folder(found[1], seed))
            return str(needs[-1])

        fields = {
            key: re.sub(r"\{folder of ([^}]+)\}", folder_of, value) if isinstance(value, str) else value
            for key, value in given.get("fields", {}).items()
        }
        return Trial(variant, seed, self.folder(variant, seed), given["config"], fields, tuple(needs))

    def folder(self, variant: str, seed: int) -> Path:
        return self.runs / variant / f"seed{seed}"


def _combinations(name: str, given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    grid = given.get("grid", {})
    for values in itertools.product(*grid.values()):
        fields = given.get("fields", {}) | dict(zip(grid, values, strict=True))
        yield "-".join([name, *map(_text, values)]), given | {"fields": fields}


def _text(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)
