"""The whole labelling command against two bare forward passes, and against the public CLIP-Dissect.

ResNet-50 (five layers) and a ViT-B-32 CLIP, both with random weights: what they say means nothing, what
they cost is the same. Each contestant runs in a process of its own, alternating, from the parquet file to
its labels:

    bare    both networks over images that are already decoded and in memory: the limit
    ours    dissect.py label, with the text embeddings in the cache
    public  the public code's utils.save_activations and its similarity, text embeddings likewise on disk

    python benchmarks/whole.py CLIP_DISSECT_CLONE CIFAR10_FOLDER --rounds 3

Peak memory is that of the process and its children together (proportional set size).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import numpy as np
import torch

LAYERS = ["conv1", "layer1", "layer2", "layer3", "layer4"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clone", help="of github.com/Trustworthy-ML-Lab/CLIP-dissect")
    parser.add_argument("data", help="folder with CIFAR-10's parquet files")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--similarity", default="soft_wpmi")
    parser.add_argument("--part", choices=["bare", "ours", "texts", "public"])
    parser.add_argument("--folder", type=Path)
    return parser.parse_args()


# --- what is compared ----------------------------------------------------------------------------


def photographs(args: argparse.Namespace):
    """The probe images as a dataset of (PIL image, class)."""
    from models.probes import open_probe

    return open_probe(f"{args.data}:test[:{args.images}]", 224, None)


def write_models(folder: Path) -> None:
    """A CLIP folder with random weights, and the networks' weights, so that all start from the same."""
    import open_clip
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (folder / "clip").mkdir()
    save_file(
        open_clip.create_model("ViT-B-32").state_dict(), folder / "clip" / "open_clip_model.safetensors"
    )
    config = {
        "model_cfg": open_clip.get_model_config("ViT-B-32"),
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
        },
    }
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50.pt")


def bare(args: argparse.Namespace) -> float:
    """Seconds of two forward passes over decoded images."""
    import torchvision

    from lwta.dissect.encoder import load_encoder
    from models.images import read_image

    encoder = load_encoder(str(args.folder / "clip"))
    network = torchvision.models.resnet50(weights=None).eval()
    data = photographs(args)
    pixels = torch.stack([encoder.transform(read_image(data, i)[0]) for i in range(args.images)])
    with torch.no_grad():
        network(pixels[:2])
        encoder.model.encode_image(pixels[:2])
        start = time.perf_counter()
        for batch in pixels.split(args.batch):
            network(batch)
        for batch in pixels.split(args.batch):
            encoder.model.encode_image(batch)
    return time.perf_counter() - start


def ours(args: argparse.Namespace, images: str) -> None:
    import dissect

    dissect.main(
        [
            "label",
            "--model=torchvision:resnet50",
            f"--weights={args.folder / 'resnet50.pt'}",
            f"--layers={json.dumps(LAYERS)}",
            "--readout=mean",
            f"--probe={args.data}:test[:{images}]",
            f"--concepts={args.folder / 'words.txt'}",
            f"--clip={args.folder / 'clip'}",
            f"--similarity={args.similarity}",
            f"--batch_size={args.batch}",
            f"--cache={args.folder / 'cache'}",
            f"--out={args.folder / 'out'}",
            "--device=cpu",
        ]
    )


def public(args: argparse.Namespace) -> None:
    """Their functions, with random weights in place of downloads and parquet in place of a folder."""
    sys.path.insert(0, args.clone)
    import packaging.version

    # Their tokenizer asks it for a version of torch; newer setuptools carry it no longer.
    sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)  # type: ignore[assignment]
    import clip
    import clip.clip
    import clip.model
    import data_utils
    import similarity
    import torchvision
    import utils

    from models.images import read_image

    class Images(torch.utils.data.Dataset):
        def __init__(self, transform):
            self.data, self.transform = photographs(args), transform

        def __len__(self):
            return args.images

        def __getitem__(self, index):
            image, target = read_image(self.data, index)
            return self.transform(image), target

    def load(name, device):
        model = clip.model.CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).eval()
        return model, clip.clip._transform(224)

    def target(name, device):
        return torchvision.models.resnet50(weights=None).eval(), data_utils.get_resnet_imagenet_preprocess()

    clip.load, data_utils.get_target_model = load, target
    data_utils.get_data = lambda name, transform: Images(transform)
    out = args.folder / "public"
    names = {
        "clip_name": "ViT-B/32",
        "target_name": "resnet50",
        "d_probe": "cifar10",
        "concept_set": str(args.folder / "words.txt"),
        "pool_mode": "avg",
        "save_dir": str(out),
    }
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    text = Path(utils.get_save_names(target_layer="{}", **names)[2])
    kept = next((args.folder / "cache" / "texts").glob("*.npy"))
    torch.save(torch.from_numpy(np.load(kept)), text)
    clip.tokenize = lambda words: torch.empty(len(words), 77)  # of texts that are not encoded again
    utils.save_activations(**names, target_layers=LAYERS, batch_size=args.batch, device="cpu")
    words = (args.folder / "words.txt").read_text().split("\n")
    for layer in LAYERS:
        paths = utils.get_save_names(target_layer=layer, **names)
        scores = utils.get_similarity_from_activations(
            *paths, getattr(similarity, args.similarity), return_target_feats=False, device="cpu"
        )
        best = scores.max(1).indices.tolist()
        (out / f"{layer}.txt").write_text("\n".join(words[k] for k in best))


# --- measuring -----------------------------------------------------------------------------------


def tree_memory(root: int) -> int:
    """Bytes that a process and its descendants hold, shared pages counted once."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents[int(stat.parent.name)] = int(fields[1])
        except OSError:
            continue
    family, total = {root}, 0
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def measured(args: argparse.Namespace, part: str) -> dict[str, float]:
    """Run a contestant; its seconds and its peak memory in GB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", str(args.folder)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, running = [0], [True]

    def watch() -> None:
        while running[0]:
            peak[0] = max(peak[0], tree_memory(process.pid))
            time.sleep(0.5)

    thread = threading.Thread(target=watch)
    thread.start()
    told = process.communicate()[0]
    running[0] = False
    thread.join()
    if process.returncode:
        sys.exit(f"{part} failed")
    seconds = float(told.split("seconds:")[1]) if part == "bare" else time.perf_counter() - start
    return {"seconds": seconds, "gb": peak[0] / 1e9}


def main() -> None:
    args = arguments()
    if args.part == "bare":
        print("seconds:", bare(args))
    elif args.part == "ours":
        ours(args, str(args.images))
    elif args.part == "texts":
        ours(args, "20")
    elif args.part == "public":
        public(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    from wordfreq import top_n_list

    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        write_models(args.folder)
        words = [word for word in top_n_list("en", 2 * args.concepts) if any(map(str.isalpha, word))]
        (args.folder / "words.txt").write_text("\n".join(words[: args.concepts]))
        texts = measured(args, "texts")
        print(f"encoding {args.concepts} words, once: {texts['seconds']:.0f} s", flush=True)
        rounds: dict[str, list[dict[str, float]]] = {"bare": [], "ours": [], "public": []}
        for number in range(args.rounds):
            for part, found in rounds.items():
                for kept in ("activations", "images", "priors"):
                    shutil.rmtree(args.folder / "cache" / kept, ignore_errors=True)
                found.append(measured(args, part))
                print(
                    f"round {number}: {part} {found[-1]['seconds']:.1f} s, {found[-1]['gb']:.2f} GB",
                    flush=True,
                )
    median = {p: {k: statistics.median(f[k] for f in found) for k in found[0]} for p, found in rounds.items()}
    ours, bare, public = median["ours"], median["bare"], median["public"]
    print(f"ours over two bare passes: {ours['seconds'] / bare['seconds']:.3f}")
    print(f"public over ours: {public['seconds'] / ours['seconds']:.2f}")
    print(f"our peak memory over the public one's: {ours['gb'] / public['gb']:.2f}")


if __name__ == "__main__":
    main()
