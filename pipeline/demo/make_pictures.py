"""Write the packaged pictures of the demo: a Parquet file per style, class names, and a README with licences.

    python -m pipeline.demo.make_pictures --emoji FOLDER [--classes 600] [--out pipeline/demo/pictures]

FOLDER has WebDataset shards of emoji drawings, one per style, with members `STYLE/NAME.jpg` and
`STYLE/NAME.txt` (the class name). Classes that every packaged style has are sampled with a seed and keep the
sampled order, so that the base half (the first) and the new half are alike. Same input, same bytes.
"""

import io
import tarfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

STYLES = {
    "noto": ("@iconify-json/noto 1.2.9", "Noto Emoji, Google", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1 1.2.5", "Noto Emoji (older drawings), Google", "Apache-2.0"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat 1.2.6", "Fluent Emoji, Microsoft", "MIT"),
}
SEED = 0
SIDE = 64  # pixels; the demo's models read 48 and 64
EXAMPLE = "woman firefighter"  # written as a JPEG file of its own, for the pages


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


def write_parquet(path: Path, style: dict[str, tuple[str, bytes]], names: list[str]) -> None:
    """Write image (WebP) and class index of every name, as Hugging Face lays out image sets."""
    rows = []
    for label, name in enumerate(names):
        stem, jpeg = style[name]
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        picture.save(content, "WEBP", quality=90, method=6)
        rows.append({"image": {"bytes": content.getvalue(), "path": f"{stem}.webp"}, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def readme(count: int) -> str:
    """Return the README with contents, authors and licences."""
    rows = "\n".join(
        f"| `{style}.parquet` | {author} | {package} | {licence}, `LICENSE-{licence}.txt` |"
        for style, (package, author, licence) in STYLES.items()
    )
    return f"""# Pictures of the demo

{count} classes, one {SIDE} × {SIDE} WebP each in three drawing styles, as Parquet (`image`, `label`).
Rendered from the SVG drawings of the npm packages below, on a pale background that says nothing of the class.
`classes.txt` lists the class names in the order of their indices. The first half are the base classes, the
second half the new classes. `{EXAMPLE.replace(" ", "-")}.jpg` is a Noto drawing as a file of its own.

| file | drawings by | npm package | licence |
|---|---|---|---|
{rows}

Written by `python -m pipeline.demo.make_pictures`.
"""


def main(
    emoji: Annotated[Path, typer.Option(help="folder with one tar shard per style")],
    classes: Annotated[int, typer.Option(min=2, help="classes to draw")] = 600,
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
        write_parquet(out / f"{style}.parquet", drawings, names)
    (out / f"{EXAMPLE.replace(' ', '-')}.jpg").write_bytes(styles["noto"][EXAMPLE][1])
    (out / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (out / "README.md").write_text(readme(classes), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
