"""Print the lowest release that pyproject.toml allows of each dependency, as constraints for pip.

    python tests/oldest_requirements.py > constraints.txt
    pip install --constraint constraints.txt --editable '.[dev]'

`make test-oldest` does this. What the dependencies need themselves is left to pip, which takes the newest.
"""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirement: str) -> str:
    """Return the requirement with its lower bound pinned: `torch>=2.6,!=2.13.0` becomes `torch==2.6`.

    Extras are left out, since constraints have none: `moto[server]>=5.1` becomes `moto==5.1`.

    Raises:
        ValueError: the requirement does not begin with a lower bound.
    """
    name, found, bounds = requirement.partition(">=")
    if not found:
        raise ValueError(f"{requirement!r} in pyproject.toml: expected NAME>=VERSION")
    return f"{name.partition('[')[0]}=={bounds.partition(',')[0]}"


def main() -> None:
    """Print the constraints of what `.[dev]` installs."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        print(lowest(requirement))


if __name__ == "__main__":
    main()
