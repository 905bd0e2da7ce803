"""A study: which variants of which configs are trained, with which seeds, and what is made of them."""

import itertools
import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from benchmarks.accuracy.trial import Trial, as_word
from lwta.errors import InputError

#: Where a study is run; its relative paths begin here.
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Variant:
    """What is trained.

    Attributes:
        config: of ``train.py``.
        fields: dotted fields set over the config's. ``<folder of NAME>`` in a text is the folder of the run
            of another variant with the same seed, which is then trained first.
        grid: values for each of some fields; the variant stands for one of each of their combinations, named
            NAME-VALUE.
        evaluations: numbers of samples that it is judged by, in place of the study's.
    """

    config: str
    fields: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    evaluations: list[int] | None = None

    def combinations(self, name: str) -> list[tuple[str, "Variant"]]:
        """The variants that the grid stands for, by name."""
        found = []
        for values in itertools.product(*self.grid.values()):
            fields = self.fields | dict(zip(self.grid, values, strict=True))
            found.append(("-".join([name, *map(as_word, values)]), replace(self, fields=fields, grid={})))
        return found


@dataclass
class Study:
    """What a study file says.

    Attributes:
        name: the file's.
        runs: folder of the runs.
        variants: by name.
        results: folder of rows, tables and plots.
        seeds: of every variant.
        evaluations: numbers of samples that validation images are judged by; 0 is the argmax.
        final: row of the final table -> variant; these are trained with ``final_seeds`` too, judged by
            ``final_evaluations`` and tested.
        more_seeds: variant -> further seeds, where differences are small.
        against: rows that the others are compared with.
        curves: line of the plot of accuracy against U -> {U: variant}, of the first of ``seeds``; a line of
            one point at U = 1 is dense, and drawn level.
    """

    name: str
    runs: str
    variants: dict[str, Variant]
    results: str = "benchmarks/results/accuracy"
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluations: list[int] = field(default_factory=lambda: [0, 1, 10])
    final: dict[str, str] = field(default_factory=dict)
    final_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    more_seeds: dict[str, list[int]] = field(default_factory=dict)
    final_evaluations: list[int] = field(default_factory=lambda: [0, 1, 10, 50])
    against: list[str] = field(default_factory=list)
    curves: dict[str, dict[int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Study":
        """The study of a YAML file.

        Raises:
            InputError: where the file is missing, says what a study does not know, or names what it does
                not define.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("study", type=cls)
        try:
            written = {"name": Path(path).stem} | yaml.safe_load(Path(path).read_text())
            study: Study = parser.instantiate(parser.parse_object({"study": written})).study
        except (OSError, TypeError, ArgumentError, yaml.YAMLError) as error:
            raise InputError(f"{path} is no study ({' '.join(str(error).split())[:300]})") from None
        every = [one for name, variant in study.variants.items() for one in variant.combinations(name)]
        study.variants = dict(every)
        if len(every) != len(study.variants):
            raise InputError(f"{path} has two variants of one name; it has {', '.join(n for n, _ in every)}")
        study._check_names(path)
        return study

    def _check_names(self, path: str | Path) -> None:
        of_curves = [v for line in self.curves.values() for v in line.values()]
        for variant in [*self.final.values(), *self.more_seeds, *of_curves]:
            if variant not in self.variants:
                raise InputError(f"{path} has no variant {variant!r}; it has {', '.join(self.variants)}")
        for row in self.against:
            if row not in self.final:
                raise InputError(f"{path} compares with {row!r}, which is no row of its final table")

    def trials(self, only: str = "*") -> list[Trial]:
        """Those of the variants that match a glob, and the ones that these need, in an order to train them.

        Raises:
            InputError: where nothing matches, or variants need each other.
        """
        chosen = [(v, s) for v, s in itertools.product(self.variants, self.seeds)]
        chosen += [(v, s) for s in self.final_seeds for v in self.final.values()]
        chosen += [(v, s) for v, seeds in self.more_seeds.items() for s in seeds]
        matching = [one for one in dict.fromkeys(chosen) if fnmatchcase(one[0], only)]
        if not matching:
            raise InputError(f"no variant matches {only!r}; there are {', '.join(self.variants)}")
        ordered: dict[tuple[str, int], Trial] = {}
        for one in matching:
            self._add(*one, ordered, ())
        return list(ordered.values())

    def _add(self, variant: str, seed: int, ordered: dict[tuple[str, int], Trial], above: tuple) -> None:
        if variant in above:
            raise InputError(f"{variant} needs its own run first, by way of {', '.join(above)}")
        trial = self.trial(variant, seed)
        for needed in trial.needs:
            self._add(needed, seed, ordered, (*above, variant))
        ordered.setdefault((variant, seed), trial)

    def tested(self, only: str = "*") -> list[Trial]:
        """Those of the final table and of the curves whose variants match a glob.

        Raises:
            InputError: where there are none.
        """
        table = [
            (v, s) for v in self.final.values() for s in [*self.final_seeds, *self.more_seeds.get(v, [])]
        ]
        curves = [(v, self.seeds[0]) for line in self.curves.values() for v in line.values()]
        found = [one for one in dict.fromkeys([*table, *curves]) if fnmatchcase(one[0], only)]
        if not found:
            raise InputError(f"{self.name} has no final row and no curve that matches {only!r} to be tested")
        return [self.trial(*one) for one in found]

    def evaluations_of(self, variant: str) -> list[int]:
        """Numbers of samples that a variant is judged by."""
        if (own := self.variants[variant].evaluations) is not None:
            return own
        return self.final_evaluations if variant in self.final.values() else self.evaluations

    def trial(self, variant: str, seed: int) -> Trial:
        """One variant with one seed."""
        needs: list[str] = []

        def folder_of(found: re.Match[str]) -> str:
            if found[1] not in self.variants:
                raise InputError(f"{variant} asks for the folder of {found[1]!r}, which is no variant")
            needs.append(found[1])
            return str(self._place(found[1], seed))

        fields = {
            key: re.sub(r"<folder of ([^>]+)>", folder_of, value) if isinstance(value, str) else value
            for key, value in self.variants[variant].fields.items()
        }
        config, folder = self.variants[variant].config, self.folder(variant, seed)
        return Trial(variant, seed, folder, config, fields, tuple(needs))

    def folder(self, variant: str, seed: int) -> Path:
        """Where a run of this study lies."""
        return REPOSITORY / self._place(variant, seed)

    def _place(self, variant: str, seed: int) -> Path:
        return Path(self.runs) / variant / f"seed{seed}"
