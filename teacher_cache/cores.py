"""How many cores there are for this process: what taskset, Slurm and containers leave it of the machine's."""

from dask.system import cpu_count


def usable_cores() -> int:
    """The cores that this process may use now, by its affinity and its container's quota; at least one."""
    return int(cpu_count())
