"""The command line of benchmarks that run a model at several sizes of batch; imports nothing that takes long."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def size(text: str) -> tuple[int, int]:
    """Reads ``8x128``: sequences and tokens of each."""
    try:
        batch, length = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected BATCHxLENGTH, such as 8x128") from None
    return batch, length


def sizes_parser(description: str, sizes: Sequence[tuple[int, int]] = ()) -> argparse.ArgumentParser:
    """Reads a model folder, the sizes (B, S), which default to ``sizes``, and the files of the results."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "model_dir",
        type=Path,
        nargs="?",
        metavar="MODEL_DIR",
        help="written by model2onnx.py; default: random weights of BERT-base size",
    )
    parser.add_argument("--sizes", type=size, nargs="+", default=list(sizes), metavar="BxS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser
