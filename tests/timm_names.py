"""A pytest plugin that runs timm's own model tests over the sparse names; CONTRIBUTING.md has the command.

The tests choose networks by ``timm.list_models``; here it answers with ``lwta_NAME`` for each NAME. So the
tests' own filters hold. ``LWTA_NAMES``, globs apart by spaces, narrows the NAMEs.
"""

import os
from fnmatch import fnmatchcase
from typing import Any

import pytest
import timm

from models.timm_names import PREFIX

_dense_names = timm.list_models
_wanted = os.environ.get("LWTA_NAMES", "*").split()


def _sparse_names(*args: Any, **options: Any) -> list[str]:
    names = [name for name in _dense_names(*args, **options) if not name.startswith(PREFIX)]
    return [PREFIX + name for name in names if any(fnmatchcase(name.split(".")[0], glob) for glob in _wanted)]


def pytest_configure() -> None:
    """For the tests that are collected from now on."""
    if not _wanted:
        raise pytest.UsageError("LWTA_NAMES is set and names nothing; give names or globs apart by spaces")
    timm.list_models = _sparse_names
