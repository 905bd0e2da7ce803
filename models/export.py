"""A trained network as a file for other programs: a program of torch.export, or ONNX."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lwta.errors import InputError
from models.zoo import first_line

_APART = 1e-4  # logits


def export_network(model: nn.Module, images: Tensor, path: Path, notes: dict[str, Any]) -> float:
    """Write a network, whose competitions take the argmax, and compare what the file computes.

    The file takes any number of images (N, 3, H, W), ``images``, and returns ``logits`` (N, C).

    Args:
        model: in evaluation mode; on a CPU, so that the file runs anywhere.
        images: to compare on, at least 2.
        path: ends in ``.onnx``, or in ``.pt2`` for :func:`torch.export.load`.
        notes: kept in the file as JSON, by name.

    Returns:
        The largest difference of a logit that the file computes from the network's.

    Raises:
        InputError: another ending, a network that cannot be exported or whose file computes logits more than
            1e-4 apart, training mode, or ONNX not installed.
    """
    if model.training:
        raise InputError("an exported network is one in evaluation; call model.eval() first")
    write = {".onnx": _onnx, ".pt2": _program}.get(path.suffix)
    if write is None:
        raise InputError(f"{path} is neither .onnx nor .pt2; name the file by one of them")
    texts = {name: json.dumps(note) for name, note in notes.items()}
    part = path.with_name(f"part-{path.name}")
    try:
        with torch.no_grad():
            sizes = ({0: torch.export.Dim("images")},)
            program = torch.export.export(model, (images,), dynamic_shapes=sizes)
            found = write(program, images, part, texts)
            apart = float((found - model(images)).abs().max())
        if not apart <= _APART:
            raise InputError(
                f"the {path.suffix} file's logits are {apart:.1e} from the network's, more than {_APART:g}; "
                "use the other format"
            )
        part.replace(path)
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever the architecture's own code says when it is traced
        raise InputError(f"the network cannot be exported to {path.suffix} ({first_line(error)})") from error
    finally:
        part.unlink(missing_ok=True)
    return apart


def _program(program: torch.export.ExportedProgram, images: Tensor, path: Path, notes: dict) -> Tensor:
    torch.export.save(program, path, extra_files=notes)
    return torch.export.load(path).module()(images)


def _onnx(program: torch.export.ExportedProgram, images: Tensor, path: Path, notes: dict) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch writes with it
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'lwta[export]'") from error
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert written is not None
    written.model.metadata_props.update(notes)
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
