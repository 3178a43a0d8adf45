"""Take the pictures of the page that README and the documentation show: light, dark, and as wide as a phone.

make screenshots

The images are crops of photographs that scikit-image and scikit-learn ship; a class is a place of a photograph.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import click
from browsing import chromium, resize, running_page, set_scheme, wait_for
from PIL import Image

from mimeval.datasets.crops import open_crops

QUERY = "astronaut 0,128/2.png"
"""The view that is asked for, unless another is named."""
_WEBP_QUALITY = 80


@click.command()
@click.argument("artifacts", nargs=2, type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--query", default=QUERY, help="PLACE/VIEW.png of the crops.")
def main(artifacts: tuple[Path, Path], out: Path, query: str) -> None:
    """Write browse-light.webp, browse-dark.webp and browse-phone.webp into OUT."""
    with tempfile.TemporaryDirectory() as folder:
        write_crops(Path(folder) / "crops")
        arguments = (*artifacts, "--images", Path(folder) / "crops", "--cache", Path(folder) / "cache")
        with running_page(*arguments, log=Path(folder) / "log") as page, chromium() as driver:
            driver.get(page.url)
            wait_for(driver, "fetch('/api/state').then((a) => a.json()).then(({ full }) => full)", 600)
            compared, seen = f"{page.url}#image={query}", f"{page.url}#image={query}&heat=85"
            take(driver, compared, out / "browse-light.webp", (1280, 800), "light", 1.5)
            take(driver, seen, out / "browse-dark.webp", (1280, 800), "dark", 1.5)
            take(driver, seen, out / "browse-phone.webp", (390, 780), "light", 2)


def write_crops(folder: Path) -> None:
    """Write every crop into the folder of its place."""
    crops = open_crops().test
    for row, name in enumerate(crops.names):
        place, _, view = name.rpartition(" view ")
        file = folder / place / f"{view}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(crops.load(row))


def take(driver: Any, url: str, out: Path, size: tuple[int, int], scheme: str, scale: float) -> None:
    """Write what a browser of `size` px shows at `url`, all of it loaded."""
    set_scheme(driver, scheme)
    resize(driver, *size, scale=scale, phone=size[0] < 500)
    driver.get("about:blank")
    driver.get(url)
    wait_for(driver, "document.body.classList.contains('ready')")
    shown = "[...document.querySelectorAll('.tile:not([hidden])')].filter((tile) => tile.offsetParent)"
    wait_for(driver, f"{shown}.every((tile) => tile.classList.contains('loaded'))")
    if "heat" in url:
        wait_for(driver, "document.querySelectorAll('.results .heat').length > 24")
    wait_for(driver, "new Promise((done) => setTimeout(() => done(true), 500))")  # what fades in has done so
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").save(out, quality=_WEBP_QUALITY, method=6)
    click.echo(f"{out}  {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
