"""The number of cores that taskset, Slurm and containers leave to this process."""

from dask.system import cpu_count


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's quota."""
    return int(cpu_count())
