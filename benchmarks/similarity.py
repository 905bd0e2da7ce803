"""The similarities against the public CLIP-Dissect code: the same labels, and how many times faster.

python benchmarks/similarity.py CLIP_DISSECT_CLONE [--units 768 --images 5000 --concepts 10000 --threads 2]

Both start from dense values (N, D) and cosines (N, K); top-k and softmax are timed on both sides. They take
turns in one process after one untimed call each; times are medians.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from memory import with_peak
from torch import Tensor

from lwta.dissect import similarity as ours

Scorer = Callable[[], Tensor]


def public_code(clone: Path) -> ModuleType:
    """``similarity.py`` of a CLIP-Dissect clone, its progress bars off."""
    spec = importlib.util.spec_from_file_location("public_similarity", clone / "similarity.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(clone / "similarity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["tqdm"] = iter
    return module


def tensors(images: int, units: int, concepts: int) -> tuple[Tensor, Tensor]:
    """Values and cosines (.2 +- .05) that share 32 factors, so that a best concept means something."""
    g = torch.Generator().manual_seed(0)
    factors = torch.randn(images, 32, generator=g)
    values = factors @ torch.randn(32, units, generator=g) / 5 + torch.randn(images, units, generator=g)
    shared = factors @ torch.randn(32, concepts, generator=g) / 8
    cosines = 0.2 + 0.05 * (shared + 0.7 * torch.randn(images, concepts, generator=g))
    return values, cosines


def timed(scorer: Scorer) -> tuple[float, Tensor]:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        scores = scorer()
    return time.perf_counter() - start, scores


def compare(name: str, mine: Scorer, public: Scorer, repeats: int) -> None:
    (cold, scores), own_peak = with_peak(lambda: timed(mine))
    (_, published), other_peak = with_peak(lambda: timed(public))
    times = [(timed(mine)[0], timed(public)[0]) for _ in range(repeats)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    apart = int((scores.argmax(1) != published.argmax(1)).sum())
    print(
        f"{name:14} ours {own:8.3f} s (first call {cold:.2f} s)  public {other:8.3f} s"
        f"  ratio {other / own:6.1f}"
        f"  other best concept {apart} of {len(scores)}"
        f"  largest difference {(scores - published).abs().max():.1e}"
        f"  memory beyond what was there: ours {own_peak:.2f} GB, public {other_peak:.2f} GB",
        flush=True,
    )


def compare_reorder(values: Tensor, cosines: Tensor, public: ModuleType, some: int) -> None:
    """``rank_reorder``: the public loop is timed on a few units, and its time per unit taken as it is."""
    top = ours.rank_reorder_top(len(values))

    def mine() -> Tensor:
        return ours.rank_reorder(ours.exemplars_of(values, top), cosines)

    cold, scores = timed(mine)
    own = statistics.median(timed(mine)[0] for _ in range(3))
    seconds, published = timed(lambda: public.rank_reorder(cosines, values[:, :some], device="cpu"))
    other = seconds * values.shape[1] / some
    apart = int((scores[:some].argmax(1) != published.argmax(1)).sum())
    print(
        f"rank_reorder   ours {own:8.3f} s (first call {cold:.2f} s)  public {other:8.3f} s, EXTRAPOLATED "
        f"from {seconds:.2f} s for {some} of {len(scores)} units  ratio {other / own:6.1f}"
        f"  other best concept {apart} of {some}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    parser.add_argument("--units", type=int, default=768)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--concepts", type=int, default=10000)
    parser.add_argument("--threads", type=int, help="torch's own number where not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--some", type=int, default=16, help="units of the public rank_reorder")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    public = public_code(args.clone)
    values, cosines = tensors(args.images, args.units, args.concepts)
    print(f"N = {args.images}, D = {args.units}, K = {args.concepts}, {torch.get_num_threads()} threads")
    for name, top in (("soft_wpmi", 100), ("wpmi", 28)):
        scorer, other = getattr(ours, name), getattr(public, name)
        compare(
            name,
            lambda scorer=scorer, top=top: scorer(ours.exemplars_of(values, top), cosines),
            lambda other=other: other(cosines, values, device="cpu"),
            args.repeats,
        )
    for name, other in (("cos", public.cos_similarity), ("cos_cubed", public.cos_similarity_cubed)):
        scorer = getattr(ours, name)
        compare(
            name,
            lambda scorer=scorer: scorer(values, cosines),
            lambda other=other: other(cosines, values, device="cpu"),
            args.repeats,
        )
    compare_reorder(values, cosines, public, args.some)


if __name__ == "__main__":
    main()
