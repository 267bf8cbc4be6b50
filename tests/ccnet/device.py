"""Where the Triton kernels run in tests: compiled on a GPU where there is one, else in Triton's interpreter on the CPU."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
