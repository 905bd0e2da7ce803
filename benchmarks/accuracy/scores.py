"""Judge a run on a split and write what was found beside it."""

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.accuracy.trial import write_whole
from benchmarks.accuracy.trials import commit
from lwta.errors import InputError
from models.judge import judge, split_images
from models.run import load_run


def judge_run(folder: str, split: str, evaluations: list[int], root: str, batch_size: int = 128) -> None:
    """Write RUN/SPLIT.json, the scores, and SPLIT.npz, the images classified rightly.

    Args:
        folder: of the run.
        split: validate or test.
        evaluations: numbers of samples; 0 is the argmax.
        root: data folder.
        batch_size: images per pass; samples repeat at the same one.

    Raises:
        InputError: where the test images were read before.
    """
    written = Path(folder) / f"{split}.json"
    if split == "test" and written.exists():
        raise InputError(f"{folder} was judged on the test images before, which are read once; see {written}")
    run = load_run(folder, root)
    judged = judge(run, split_images(run, split), batch_size, evaluations=evaluations)
    seen = (judged.targets >= 0).numpy()
    shown = judged.digests.numpy().tobytes() + judged.targets.numpy().tobytes()
    scores: dict[str, object] = {
        "images": int(seen.sum()),
        "images hash": hashlib.sha256(shown).hexdigest()[:12],
        "judged at": commit(),
    }
    for name, right in judged.right.items():
        scores[f"top1 {name}"] = float(right.numpy()[seen].mean())
        scores[f"calibration {name}"] = judged.calibration[name]
    activity, differing = judged.activity, list(judged.differing.values())
    scores |= {
        "active, competing sites": activity.position_competing,
        "active, all sites": activity.position_all,
        "participation ratio": activity.participation_ratio,
        "dead, worst layer": activity.dead_most,
        "winners that differ, least layer": min(differing, default=None),
        "winners that differ, mean layer": sum(differing) / len(differing) if differing else None,
    }
    right = {name: found.numpy()[seen] for name, found in judged.right.items()}
    part = written.with_suffix(".part.npz")
    np.savez(part, **right)
    part.replace(written.with_suffix(".npz"))
    write_whole(written, scores)  # last: it says that the other is whole
