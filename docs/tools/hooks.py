"""What MkDocs adds to the pages in docs/: the README as the first one, those of experiments/, and generated ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs with the files of docs/."""
    from docs.tools import keys, results, scale

    pages = {
        "index.md": front_page(),
        "keys.md": keys.reference(),
        "scale.md": scale.page(),
        "results.md": results.overview(),
    }
    for path in results.files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            pages[name] = results.page(path)
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def front_page() -> str:
    """The README. Its links to docs/ and experiments/ are links to pages here; other files are named without a link."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = text.replace("](experiments/README.md)", "](results.md)")
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!http|experiments/)([^)]+/[^)]*|[A-Z]+(?:\.md|\.cff)?)\)", r"\1", text)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Called by MkDocs with a page's HTML: the shim of the offline search comes from the site, not from a network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js")


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Called by MkDocs with the page for what is not found, which is none of the pages above."""
    return on_post_page(output, None, config)
