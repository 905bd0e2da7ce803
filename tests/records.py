"""Records of layers by the plain way: every batch in one go, nothing kept on disk."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lwta.dissect.activations import Readout, is_competing, readings
from lwta.dissect.record import Record


def collect(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sites: Mapping[str, int],
    readout: Readout,
    k: int = 100,
) -> dict[str, Record]:
    """The records of every layer of ``sites`` over a probe set, in one pass (:func:`readings`).

    Args:
        k: exemplars kept per unit.
    """
    records: dict[str, Record] = {}
    for indices, read in readings(model, batches, sites, readout):
        for name, found in read.items():
            if name not in records:
                units, device = found.values.shape[1], found.values.device
                records[name] = Record(units, k, is_competing(model, name), device)
            records[name].add(found, indices)
    return records
