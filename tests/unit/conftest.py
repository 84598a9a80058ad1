"""What holds for unit tests."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when Triton is imported, which any test may bring about
