"""Arrays in the cache are computed once, and again if their file is damaged."""

from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import FetchError
from dist_net.photos.cached_arrays import cached_array
from naming import naming


def seven(out: np.ndarray) -> None:
    out[...] = 7


def never(_: np.ndarray) -> None:
    raise AssertionError("computed again")


def test_an_array_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "features"
    assert cached_array(path, (2, 3), np.float32, seven).tolist() == [[7.0] * 3] * 2
    assert cached_array(path, (2, 3), np.float32, never).tolist() == [[7.0] * 3] * 2


@pytest.mark.parametrize("kept", [b"", b"PK\x03\x04 a zip file", b"\x93NUMPY\x01\x00v\x00{", None])
def test_a_file_that_is_damaged_or_of_another_shape_is_computed_again(
    kept: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "features"
    cached_array(path, (2, 3), np.float32, seven)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] if kept is None else kept)
    assert cached_array(path, (2, 3), np.float32, seven).tolist() == [[7.0] * 3] * 2
    assert cached_array(path, (4,), np.uint8, seven).tolist() == [7] * 4


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=naming(24, tmp_path / "file" / "features")):
        cached_array(tmp_path / "file" / "features", (2, 3), np.float32, seven)
