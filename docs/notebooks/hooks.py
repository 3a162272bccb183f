"""For mkdocs: the 3D viewer that the web page has, where the pages of notebooks look for it."""

from pathlib import Path

from mkdocs.structure.files import File

ASSETS = Path(__file__).resolve().parents[2] / "collamo" / "inference" / "web" / "assets"


def on_files(files, config):
    """Add 3Dmol.js to the site."""
    name = "3Dmol-min.js"
    files.append(File.generated(config, f"assets/{name}", abs_src_path=str(ASSETS / name)))
    return files
