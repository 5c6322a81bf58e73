"""Caches that two versions of zarr wrote, and the script that writes them."""
