"""Batches of pixels, decoded ahead of their use: on threads, or in processes that share memory with this one.

A job reads, decodes and renders one image; each stage has its own. `process.py` and the jobs are imported in
the processes that decode, so that neither may import torch.
"""
