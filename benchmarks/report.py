"""Functions of the benchmarks: versions, tables, and the files that they write."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from rich.table import Table

from bert_trt import tensorrt_product
from bert_trt.console import console
from bert_trt.files import atomic_write, check_outputs
from bert_trt.model_files import FILE_NAMES, ModelFolder

PRECISION_AND_FUSION = {"cpu": ("fp32", "none"), "cuda": ("fp16", "all")}  # of a whole task's network, by device


def versions(device: str) -> dict[str, str]:
    """Versions and hardware on which the figures depend."""
    entries = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "tensorrt": tensorrt_product.describe(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        entries["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return entries


def model_name(folder: ModelFolder) -> str:
    """The model's folder and sizes in one text."""
    return f"{folder.path.name} ({folder.config.num_layers} layers, H {folder.config.hidden_size})"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a Markdown file."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(*headings, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def check_results(
    json_path: Path | None,
    markdown_path: Path | None,
    model_dirs: Sequence[Path | None] = (),
    plot_path: Path | None = None,
) -> None:
    """Checks that --json, --markdown and --plot are different files, and no files of a model.

    Raises:
        UserError: two of them are the same file; the message names both.
    """
    files = [folder / name for folder in model_dirs if folder is not None for name in FILE_NAMES]
    outputs = {"--json": json_path, "--markdown": markdown_path, "--plot": plot_path}
    check_outputs(outputs, {f"the model's {file.name}": file for file in files})


def write_results(
    json_path: Path | None, record: dict[str, Any], markdown_path: Path | None = None, lines: Sequence[str] = ()
) -> None:
    """Writes the files of --json and --markdown.

    Raises:
        UserError: a file cannot be written.
    """
    for path, text in ((json_path, json.dumps(record, indent=2)), (markdown_path, "\n".join(lines))):
        if path is not None:
            with atomic_write(path) as file:
                file.write(f"{text}\n".encode())


def publish(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    record: dict[str, Any],
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Prints the one table of a benchmark, and writes the files of --json and --markdown; see ``write_results``."""
    print_table(title, headings, rows)
    lines = [f"# {title}", "", f"{record['versions']}", "", *markdown_table(headings, rows)]
    write_results(json_path, record, markdown_path, lines)
