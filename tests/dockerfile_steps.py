"""Run the steps of the Dockerfile, then its command, in a clean root without a container engine.

The root stands for the FROM line: the same release of Debian with its own Python, made by debootstrap.
`python` and `pip` are those of a virtual environment in it, since Debian's own Python takes no packages. As
root:

    debootstrap --variant=minbase --include=python3-venv,ca-certificates trixie /tmp/root
    python tests/dockerfile_steps.py /tmp/root . --network none --command demo
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/usr/local/python"


def main() -> None:
    """Run every step and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("context", type=Path, help="the build's context: the folder of the Dockerfile")
    parser.add_argument("--network", choices=["host", "none"], default="host", help="of the command")
    parser.add_argument("--command", type=shlex.split, help="instead of CMD")
    asked = parser.parse_args()
    root: Path = asked.root
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    environment = {"PATH": f"{PYTHON}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    chroot = inside(root, [])
    subprocess.run([*chroot, "python3", "-m", "venv", PYTHON], env=environment, check=True)
    user, folder, entry, command = "0", "/", [""], [""]
    for name, rest in instructions(asked.context / "Dockerfile"):
        started = time.monotonic()
        if name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "WORKDIR":
            folder = rest
            (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(asked.context / source, root / folder.lstrip("/") / target)
        elif name == "RUN":
            run([*chroot, "sh", "-c", f"cd {folder} && {rest}"], environment)
        elif name == "USER":
            user = rest
        elif name in ("ENTRYPOINT", "CMD"):
            entry, command = (
                (json.loads(rest), command) if name == "ENTRYPOINT" else (entry, json.loads(rest))
            )
        elif name != "FROM":
            sys.exit(f"no step for {name}")
        print(f"{time.monotonic() - started:6.1f} s  {name} {rest[:80]}", flush=True)
    started = time.monotonic()
    words = shlex.join(entry + (asked.command or command))
    isolated = inside(root, ["--net"] if asked.network == "none" else [], f"--userspec={user}:{user}")
    run([*isolated, "sh", "-c", f"cd {folder} && id -u && {words}"], environment)
    print(f"{time.monotonic() - started:6.1f} s  {words}")


def inside(root: Path, unshared: list[str], *options: str) -> list[str]:
    """Return the command that runs another one in the root, with /proc and /dev as in a container."""
    mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"'
    return ["unshare", "--mount", *unshared, "sh", "-c", mounts, str(root), *options, str(root)]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions in order, with continued lines joined, without comments."""
    lines = [line for line in dockerfile.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined)]


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: the content of a folder, or a file, into the target."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name)


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a command; exit with its code if it fails."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {shlex.join(command)}")


if __name__ == "__main__":
    if os.getuid() != 0:
        sys.exit("only root can change the root folder")
    main()
