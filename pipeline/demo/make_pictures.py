"""Write the packaged pictures of the demo: one tar shard per style, the class names, a README with licences.

    python -m pipeline.demo.make_pictures --emoji FOLDER [--classes 300] [--out pipeline/demo/pictures]

FOLDER has WebDataset shards of emoji drawings, one per style, with members `STYLE/NAME.jpg` and
`STYLE/NAME.txt` (the class name). Classes that every packaged style has are sampled with a seed and keep the
sampled order, so that the base half (the first) and the new half are alike. Same input, same bytes.
"""

import io
import tarfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

STYLES = {
    "noto": ("@iconify-json/noto 1.2.9", "Noto Emoji, Google", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1 1.2.5", "Noto Emoji (older drawings), Google", "Apache-2.0"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat 1.2.6", "Fluent Emoji, Microsoft", "MIT"),
}
SEED = 0


def read_style(shard: Path) -> dict[str, tuple[str, bytes]]:
    """Return (member stem, JPEG bytes) of one style by class name."""
    stems: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                stem, _, suffix = member.name.rpartition(".")
                stems.setdefault(stem, {})[suffix] = file.read()
    return {parts["txt"].decode(): (stem, parts["jpg"]) for stem, parts in stems.items()}


def write_shard(path: Path, style: dict[str, tuple[str, bytes]], names: list[str]) -> None:
    """Write image and class index of every name, in the order of the names."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for label, name in enumerate(names):
            stem, jpeg = style[name]
            for suffix, data in (("jpg", jpeg), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{stem}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def readme(count: int) -> str:
    """Return the README with contents, authors and licences."""
    rows = "\n".join(
        f"| `{style}.tar` | {author} | {package} | {licence}, `LICENSE-{licence}.txt` |"
        for style, (package, author, licence) in STYLES.items()
    )
    return f"""# Pictures of the demo

{count} classes, one 96 × 96 JPEG each in three drawing styles, as WebDataset shards (`.jpg`, `.cls`).
Rendered from the SVG drawings of the npm packages below on a pale background that says nothing of the class.
`classes.txt` names the classes, line 0 first; its first half are the base classes, the rest the new ones.

| shard | drawings by | npm package | licence |
|---|---|---|---|
{rows}

Written by `python -m pipeline.demo.make_pictures`.
"""


def main(
    emoji: Annotated[Path, typer.Option(help="folder with one tar shard per style")],
    classes: Annotated[int, typer.Option(min=2, help="classes to draw")] = 300,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path(__file__).parent / "pictures",
) -> None:
    """Write shards, class names and README."""
    styles = {style: read_style(emoji / f"{style}.tar") for style in STYLES}
    common = sorted(set.intersection(*(set(style) for style in styles.values())))
    if classes > len(common):
        raise SystemExit(f"only {len(common)} classes are in every style")
    names = [common[i] for i in np.random.default_rng(SEED).permutation(len(common))[:classes]]
    out.mkdir(parents=True, exist_ok=True)
    for style, drawings in styles.items():
        write_shard(out / f"{style}.tar", drawings, names)
    (out / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (out / "README.md").write_text(readme(classes), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
