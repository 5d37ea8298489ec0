"""Runs a long command and prints its progress at least every ten seconds, also where the output is no terminal.

    python bert_trt/progress.py "installing" python -m pip install -r requirements.txt

It only needs the standard library, since the Makefile uses it to install the other packages.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

SILENCE = 5.0  # seconds without output after which a line says that the command still runs


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
        label: what the command does: the beginning of the line that is written after ``silence`` seconds of silence.
        show: returns the text to write for a line of the command's output; None for nothing.
        environment: the command's environment; default: this process's.
        silence: seconds.

    Returns:
        The command's exit code and its whole output.
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
        last_written = start  # the time at which the last line was written
        try:
            while True:
                try:
                    line = lines.get(timeout=max(0.0, last_written + silence - time.monotonic()))
                except queue.Empty:
                    shown = f"{label}: {time.monotonic() - start:.0f} s"
                else:
                    if line is None:
                        break
                    written.append(line)
                    shown = show(line.rstrip())
                if shown is not None:
                    print(shown, file=sys.stderr, flush=True)
                    last_written = time.monotonic()
        except KeyboardInterrupt:  # from a terminal the command has received the signal too, otherwise it has not
            process.terminate()
            raise
    return process.returncode, "".join(written)


def main() -> int:
    """Runs the command of the command line; returns its exit code."""
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
