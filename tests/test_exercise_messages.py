"""What the exercise says: every message in both languages, and the choice of the language."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_trt.exercise import messages
from bert_trt.exercise.checks import check_task
from bert_trt.exercise.chinese import CHINESE
from bert_trt.exercise.messages import language_of_locale, say, set_language
from bert_trt.exercise.sum_tasks import TABLES
from bert_trt.exercise.tasks import BY_NUMBER, COMPILED, NOT_GRADED, NOT_STARTED, RIGHT, TASKS, WRONG
from bert_trt.options import LANGUAGES
from trt_helper import TrtNetworkHelper

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "bert_trt" / "exercise").glob("*.py"), ROOT / "exercise.py"])
# What say() is given as a variable.
NAMED = {
    *(task.title for task in TASKS),
    *(task.level for task in TASKS),
    *(NOT_STARTED, WRONG, RIGHT, COMPILED, NOT_GRADED, "none yet"),
    *TABLES,
}


def said() -> Iterator[tuple[str, set[str], str]]:
    """Each message in the sources, the values that it is given, and where it stands."""
    for path in FILES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "say":
                message = call.args[0]
                if isinstance(message, ast.Constant):
                    given = {keyword.arg or "**" for keyword in call.keywords}
                    yield str(message.value), given, f"{path.name}:{call.lineno}"


def fields(message: str) -> set[tuple[str, str | None, str | None]]:
    """The fields of a message, with format and conversion."""
    parts = string.Formatter().parse(message)
    return {(name, form, conversion) for _, name, form, conversion in parts if name is not None}


def test_every_message_is_in_the_table_and_the_table_has_no_other():
    assert {message for message, _, _ in said()} | NAMED == set(CHINESE)


def test_a_message_has_the_same_fields_in_both_languages():
    for english, chinese in CHINESE.items():
        assert fields(english) == fields(chinese), english
        assert all(name and name.isidentifier() for name, _, _ in fields(english)), english


def test_a_message_is_given_its_fields():
    for message, given, place in said():
        wanted = {name for name, _, _ in fields(message)}
        assert given == wanted or ("**" in given and given - {"**"} <= wanted), place


def test_no_text_that_is_said_is_left_in_english():
    """Findings and causes are made by say(), not written where they are raised."""
    for path in FILES:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if isinstance(call, ast.Call) and name in ("WrongAnswer", "Grade", "UserError"):
                for argument in call.args:
                    is_text = isinstance(argument, ast.Constant) and bool(argument.value)
                    assert not is_text, f"{path.name}:{call.lineno}"


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "", "LANGUAGE": "zh_CN:zh"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale(environment, language):
    assert language_of_locale(environment) == language


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are Chinese during a test."""
    monkeypatch.setattr(messages, "_language", "zh")


@pytest.mark.usefixtures("chinese")
def test_a_mistake_is_named_in_chinese(monkeypatch):
    def without_bias(self, x, weight, bias, name, quantized=None):
        constant = self.addConstant(weight, f"{name}.weight", shape=(1,) * (len(x.shape) - 2) + weight.shape)
        return self.addMatMul(x, constant, name, transpose_b=True)

    monkeypatch.setattr(TrtNetworkHelper, "addLinear", without_bias)
    answer = check_task(BY_NUMBER[1], 0, ROOT)
    assert answer.status == WRONG  # the JSON's word in any language
    assert answer.cause == "缺少偏置"
    assert "个元素中有" in answer.found


def test_the_language_is_chosen_once(monkeypatch):
    monkeypatch.setattr(messages, "_language", "en")
    for language, word in zip(LANGUAGES, ("wrong", "错误"), strict=True):
        set_language(language)
        assert messages.language() == language
        assert say("wrong") == word
