"""A camera that learns: frames arrive in an inbox, and a wrong answer is corrected.

Start the pool first; see README.md. Then: python examples/camera/camera.py INBOX URL FRAME LABEL
"""

import json
import shutil
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

WAIT_S = 180.0  # a busy machine prefers answers to learning


def answer_to(inbox: Path, frame: Path, name: str, newer_than: int = -1) -> dict[str, Any]:
    """Put a frame into the inbox, whole; return its answer, by a version above ``newer_than``."""
    until_s = time.monotonic() + WAIT_S
    while True:
        arriving = f"{time.time_ns()}-{name}"
        shutil.copy(frame, inbox / f".{arriving}")
        (inbox / f".{arriving}").rename(inbox / arriving)
        while time.monotonic() < until_s:
            time.sleep(0.1)
            answers = inbox / "answers.jsonl"  # written with the first answer
            *lines, _ = answers.read_text().split("\n") if answers.exists() else [""]
            found = [each for each in map(json.loads, lines) if each["name"] == arriving]
            if found and found[-1].get("version", -1) > newer_than:
                return found[-1]
            if found:
                break
        else:
            sys.exit(f"no answer to {arriving} within {WAIT_S:g} s; does the pool run?")


def main() -> None:
    inbox, address, frame, label = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    before = answer_to(inbox, frame, "before.jpg")
    print("before:", before["label"], f"{before['probability']:.0%}")
    query = urllib.parse.urlencode({"label": label})
    url = f"{address}/v1/models/{urllib.parse.quote(before['model'])}/labels?{query}"
    with urllib.request.urlopen(urllib.request.Request(url, frame.read_bytes())) as reply:
        print("labelled:", json.load(reply)["label"])
    after = answer_to(inbox, frame, "after.jpg", before["version"])
    print("after:", after["label"], f"{after['probability']:.0%}")


if __name__ == "__main__":
    main()
