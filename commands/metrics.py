"""``metrics``: which metrics of labels can be trusted."""

import pandas as pd

from lwta.dissect.metric_checks import FREQUENCIES, check_metrics
from lwta.errors import InputError


def metrics(
    frequencies: list[float] = list(FREQUENCIES),  # noqa: B006
    images: int = 100_000,
    draws: int = 20,
) -> None:
    """Say which metrics of labels fall when half the positives are missing, and when false ones come.

    A unit that responds to its concept exactly is judged by such damaged concepts; a metric that does not
    fall takes labels that are too narrow, or too broad, for the right one.

    Args:
        frequencies: shares of the images that show the concept, each up to .5.
        images: how many are simulated.
        draws: of missing and of false positives.
    """
    if draws < 1:
        raise InputError(f"draws is at least 1, and {draws} is not")
    found = check_metrics(frequencies, images, draws)
    print(_shown(found).to_string(index=False))
    names = found["metric"].unique().tolist()
    failing = {name: _failing(found, name) for name in names}
    print(f"pass at every frequency: {', '.join(name for name in names if not failing[name]) or 'none'}")
    print(f"fail: {'; '.join(said for said in failing.values() if said) or 'none'}")


def _shown(found: pd.DataFrame) -> pd.DataFrame:
    """Change of each metric, as a share of its range, and in how many draws it fell."""
    told = {"metric": found["metric"], "frequency": found["frequency"].map("{:g}".format)}
    for kind in ("missing", "extra"):
        told[kind] = found[kind].map("{:+.4f}".format)
        told[f"{kind} falls"] = found[f"{kind}_falls"].map("{:.0%}".format)
    return pd.DataFrame(told | {"passes": ["yes" if passes else "no" for passes in found["passes"]]})


def _failing(found: pd.DataFrame, name: str) -> str:
    """At which frequencies a metric fails; empty where it passes at all."""
    shares = found.query("metric == @name and not passes")["frequency"].tolist()
    return f"{name} at {', '.join(f'{share:g}' for share in shares)}" if shares else ""
