"""benchmarks/corpus_throughput.py: which processes it counts, its lines, and its ratios."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("corpus_throughput")


def test_processes_of_processes_are_counted(benchmark_module):
    """The child spends half a second of CPU, its own child does nothing."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)\n"
        "while time.process_time() < 0.5: pass\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert benchmark_module.tree(process.pid) == [process.pid, grandchild]
        assert {process.pid, grandchild} < set(benchmark_module.tree(os.getpid()))
        usage = benchmark_module.Usage()
        usage.sample(process.pid)
        process.communicate("\n")
    assert 0.4 < usage.cpu[-1] < 5  # ticks of 10 ms
    assert usage.peaks.keys() == {benchmark_module.DRIVER, benchmark_module.RAY}
    assert 1 < usage.peaks[benchmark_module.RAY] < 100  # MiB


def test_a_word_of_each_line_is_masked(benchmark_module, tmp_path):
    benchmark_module.write_lines(tmp_path / "x.txt", 1000, is_fill_mask=True, short=True)
    lines = (tmp_path / "x.txt").read_text().splitlines()
    assert len(lines) == 1000
    assert all(line.split().count("[MASK]") == 1 and len(line.split()) <= 6 for line in lines)


def test_ratios_are_of_medians(benchmark_module):
    speed = benchmark_module.Speed
    speeds = {"loop": [speed(100, 0.02)] * 3, "x": [speed(150, 0.02), speed(190, 0.016), speed(400, 0.01)]}
    assert benchmark_module.speed_rows(speeds) == [
        ["loop", "100.0", "1.00", "20.00", "1.00"],
        ["x", "190.0", "1.90", "16.00", "1.25"],
    ]
