"""Pieces of a version's file of arrays, for workers of other hosts."""

from __future__ import annotations

import os
from pathlib import Path

from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays

LARGEST_PIECE = 8 << 20


def piece_of(description: ModelDescription | None, asked: FetchArrays) -> ArraysPiece:
    """What was asked for, shorter at the file's end; without payload if there is no such file."""
    nothing = ArraysPiece(asked.model, asked.version, asked.offset, 0, ())
    if description is None or not 0 < asked.size <= LARGEST_PIECE:
        return nothing
    try:
        with Path(description.arrays_path).open("rb") as file:
            piece = os.pread(file.fileno(), asked.size, asked.offset)
    except OSError:
        return nothing
    return nothing._replace(total=description.arrays_bytes, payloads=(piece,))
