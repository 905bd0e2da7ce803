"""Imports go one way: competition, then dissection and models, then the commands, then the command lines."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = ("commands", "train", "dissect")
FORBIDDEN = {
    "lwta/*.py": ("timm", "lightning", "open_clip", "captum", "models", "lwta.dissect", *ABOVE),
    "lwta/cpu/*.py": ("timm", "lightning", "open_clip", "captum", "models", "lwta.dissect", *ABOVE),
    "lwta/dissect/**/*.py": ("timm", "lightning", "models", *ABOVE),
    "models/**/*.py": ("lwta.dissect", *ABOVE),
    "commands/**/*.py": ("train", "dissect"),
}


def imported(path: Path) -> set[str]:
    """Dotted names a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_imports_go_one_way(pattern):
    files = list(ROOT.glob(pattern))
    assert files
    crossed = [
        (path.name, name)
        for path in files
        for name in imported(path)
        if any(name == other or name.startswith(f"{other}.") for other in FORBIDDEN[pattern])
    ]
    assert crossed == []
