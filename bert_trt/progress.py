"""Runs a long command so that no ten seconds pass without a sign of it, also where the output is no terminal.

    python bert_trt/progress.py "installing" python -m pip install -r requirements.txt

It needs the standard library alone: the Makefile installs the other packages through it.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

SILENCE = 5.0  # seconds after which a line says that the command still runs


def run_with_progress(
    command: Sequence[str],
    label: str,
    show: Callable[[str], str | None] = str,
    environment: Mapping[str, str] | None = None,
    silence: float = SILENCE,
) -> tuple[int, str]:
    """Runs ``command`` and writes its progress to standard error.

    Args:
        command: the program and its arguments.
        label: what it does; begins the line that is written after every ``silence`` seconds without another.
        show: what to write for a line of the command's output; None for nothing.
        environment: the command's environment; default: this process's.
        silence: seconds.

    Returns:
        The command's exit code, and all that it wrote.
    """
    start = time.monotonic()
    lines: queue.Queue[str | None] = queue.Queue()

    def read(output: IO[str]) -> None:
        for line in output:
            lines.put(line)
        lines.put(None)  # the end

    written: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
        told = start  # when a line was last written
        try:
            while True:
                try:
                    line = lines.get(timeout=max(0.0, told + silence - time.monotonic()))
                except queue.Empty:
                    shown = f"{label}: {time.monotonic() - start:.0f} s"
                else:
                    if line is None:
                        break
                    written.append(line)
                    shown = show(line.rstrip())
                if shown is not None:
                    print(shown, file=sys.stderr, flush=True)
                    told = time.monotonic()
        except KeyboardInterrupt:  # on a terminal the command has got it too, from elsewhere it has not
            process.terminate()
            raise
    return process.returncode, "".join(written)


def main() -> int:
    """The command line."""
    if len(sys.argv) < 3:
        print("usage: progress.py LABEL COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        code, _ = run_with_progress(sys.argv[2:], sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
