"""What holds for every test."""

import torch

# The models here are tiny: one thread is several times faster than two that wait for each other.
torch.set_num_threads(1)
