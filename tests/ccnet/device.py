"""The device of the Triton kernels in tests: a GPU if there is one, else the CPU, where Triton's interpreter runs them."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
