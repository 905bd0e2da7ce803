"""What must be settled before any test imports Triton."""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore = [] if find_spec("triton") else ["lwta/kernels.py"]
