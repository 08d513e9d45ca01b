"""No process runs a Python file that a run directory or a server's offer names."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.nets.offered_recipe import MANIFEST, ImageManifest
from dist_net.nets.recipes.image_recipe import IMAGES, RECIPE_JSON
from dist_net.nets.recipes.recipe import own_release
from dist_net.wire.messages import RecipeOffer, RecipeRequest
from dist_net.wire.token import TRAINING, JoinToken
from dist_net.wire.transport import ServerSocket
from drawn_images import draw_shapes
from marked_code import MarkedCode

Start = Callable[..., Any]


def test_a_pool_does_not(start: Start, tmp_path: Path) -> None:
    code = MarkedCode(tmp_path)
    run = code.run(tmp_path / "run").path
    serving = start("serve", f"pets={run}", "--workers", "1", "--http", "127.0.0.1:0")
    assert serving.ends() != 0
    assert "evil.p" in serving.stderr
    assert not code.was_run


def test_a_host_that_joins_does_not(start: Start, tmp_path: Path) -> None:
    code = MarkedCode(tmp_path)
    folder = draw_shapes(tmp_path / "photos", 4)
    read, preprocessing = ImageFolder.read(folder), ImagePreprocessing((16, 16, 3), "crop")
    manifest = ImageManifest.of(ImageCache(Path(), read, preprocessing))
    files = {RECIPE_JSON: code.recipe.encode(), MANIFEST: manifest.to_json().encode()}
    payloads = tuple(part for name, text in files.items() for part in (name.encode(), text))
    offer = RecipeOffer("pets", IMAGES, f"{own_release()}; recipe x; data y", "[]", "", payloads)
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:
        expires_s = int(time.time()) + 600
        token = JoinToken(TRAINING, "00ad5eed", expires_s, server.contact_addresses).text
        joining = start("join", token, "--data", str(folder), "--workers", "1")
        while joining.process.poll() is None:
            node, message = server.receive(0.1) or (b"", None)
            if isinstance(message, RecipeRequest):
                server.send(node, offer)
    assert joining.ends() == 2
    assert '"kind": "recipe", "name": "none"' in joining.stderr  # of the value, which is cut
    assert not code.was_run
