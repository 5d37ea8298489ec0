"""The sizes of batches on a benchmark's command line; imports nothing that takes long."""

from __future__ import annotations

import argparse


def size(text: str) -> tuple[int, int]:
    """Reads ``8x128``: sequences and tokens of each."""
    try:
        batch, length = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected BATCHxLENGTH, such as 8x128") from None
    return batch, length
