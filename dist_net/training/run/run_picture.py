"""The page of a run as one HTML file without a server, also in a notebook."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.timeline_files import FollowedDirectory

PAGE = Path(__file__).parents[2] / "serving" / "http" / "page"
MODULES = ("elements", "words", "plots", "timeline", "pictures", "followed", "run")
"""The scripts of the page, each after its imports."""

IMPORTS = re.compile(r'^import .*?from "[^"]*";\n', re.MULTILINE | re.DOTALL)


class RunPicture:
    """The page of a run: ``html`` is one file, which a notebook shows as the result of a cell.

    ``message``: the first message of ``FollowedDirectory`` to a viewer, a JSON object.
    """

    def __init__(self, message: str) -> None:
        self.html = _page(message)

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 44rem; border: 0"
        return f'<iframe title="run" style="{style}" srcdoc="{escape(self.html)}"></iframe>'


def show(run: str | Path | None = None) -> RunPicture:
    """Return the page of a run's directory, as it is now, for a notebook.

    The default is the newest run under ``runs/``. Raise RunDirectoryError if there is none.
    """
    directory = RunDirectory.newest(False) if run is None else RunDirectory.open(Path(run))
    return RunPicture(FollowedDirectory(directory).since("")[1])


def picture_of_epochs(epochs: Sequence[Mapping[str, float]]) -> RunPicture:
    """Return the curves of epochs, which have ``seconds``, and metrics by Keras's names."""
    lines = [
        {"kind": kind, "samples": number, "epoch": number, "seconds": figures["seconds"]}
        | {name: figures.get(f"{prefix}{name}") for name in ("loss", "accuracy")}
        for number, figures in enumerate(epochs, 1)
        for kind, prefix in (("train", ""), ("test", "val_"))
        if f"{prefix}loss" in figures
    ]
    return RunPicture(json.dumps({"about": {"name": "of fit"}, "lines": lines}))


def _page(message: str) -> str:
    html = (PAGE / "run.html").read_text(encoding="utf-8")
    icon = b64encode((PAGE / "icon.svg").read_bytes()).decode()
    scripts = (IMPORTS.sub("", (PAGE / f"{each}.js").read_text("utf-8")) for each in MODULES)
    script = re.sub(r"^export ", "", "".join(scripts), flags=re.MULTILINE)
    styles = "".join((PAGE / each).read_text("utf-8") for each in ("page.css", "run.css"))
    html = html.replace('"icon.svg"', f'"data:image/svg+xml;base64,{icon}"')
    html = re.sub(r'  <link rel="(stylesheet|modulepreload)" href=".*">\n', "", html)
    script, styles, html = (re.sub(r"\n\s+", "\n", each) for each in (script, styles, html))
    data = message.replace("<", "\\u003c")  # no text of the run ends the element
    script = f"globalThis.exportedRun = {data};\n{script}"
    head = f'<style>{styles}</style>\n  <script type="module">{script}</script>'
    return html.replace('<script type="module" src="run.js"></script>', head)
