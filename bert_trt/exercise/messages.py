"""What the exercise says, in English and Chinese.

The sources have the English text where it is said: ``say("the bias is missing")``. chinese.py has its translation.
What TensorRT, Python, the compiler and pytest say is passed on as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bert_trt.exercise.chinese import CHINESE
from bert_trt.options import ENGLISH, LANGUAGES

# In gettext's order: the first one that is set decides.
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")

_language = ENGLISH


def language_of_locale(environment: Mapping[str, str] = os.environ) -> str:
    """The language of the locale: ``zh`` for a Chinese one, else ``en``."""
    locale = next((environment[name] for name in VARIABLES if environment.get(name)), "")
    return next((known for known in LANGUAGES if locale.lower().startswith(known)), ENGLISH)


def set_language(chosen: str) -> None:
    """Chooses the language of ``say`` in this process."""
    global _language  # noqa: PLW0603
    _language = chosen


def language() -> str:
    """The chosen language."""
    return _language


def say(message: str, **values: Any) -> str:
    """A message in the chosen language.

    Args:
        message: the English text, with fields as of ``str.format``.
        values: the fields' values.
    """
    chosen = message if _language == ENGLISH else CHINESE[message]
    return chosen.format(**values) if values else chosen
