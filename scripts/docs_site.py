"""Hooks of mkdocs: the README becomes the first page, and links that leave docs/ lead to sources.

``SOURCE_URL`` (see mkdocs.yml) is the address of the repository's files. Without it, links to
files outside the site become plain text.
"""

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
"""Files of the repository's root that are pages, and their names in the site."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<target>(?!\w+:|#)[^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name, path in PAGES.items():
        files.append(File.generated(config, path, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Rewrite the links to files outside docs/, and those of the pages of the root."""
    of_root = {path: ROOT / name for name, path in PAGES.items()}
    source = of_root.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    site = {path: uri for uri, path in of_root.items()}

    def rewritten(link: re.Match[str]) -> str:
        name, mark, anchor = link["target"].partition("#")
        path = Path(os.path.normpath(source.parent / name))
        uri = site.get(path)
        if uri is None and path.is_relative_to(ROOT / "docs"):
            uri = path.relative_to(ROOT / "docs").as_posix()
        if uri is not None:
            start = Path(page.file.src_uri).parent
            return f"{link['image']}[{link['text']}]({os.path.relpath(uri, start)}{mark}{anchor})"
        if not path.exists():
            return link[0]  # for mkdocs to report
        url = config.extra["source_url"]
        return f"[{link['text']}]({url}/{path.relative_to(ROOT)})" if url else link["text"]

    # Code in a table needs "\\|" on GitHub, and "|" in the site.
    code = re.sub(r"`[^`\n]+`", lambda found: found[0].replace(r"\|", "|"), markdown)
    return LINK.sub(rewritten, code)
