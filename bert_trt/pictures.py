"""Matplotlib for --plot."""

from __future__ import annotations

from typing import Any

from bert_trt.console import UserError


def load_pyplot() -> Any:
    """Matplotlib without a display.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError("--plot needs Matplotlib: pip install -r requirements-dev.txt") from error
    return pyplot
