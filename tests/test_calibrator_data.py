"""calibrator_data.txt is what calibration needs: many plain sentences, all different, of all lengths."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import BertTokenizer

ROOT = Path(__file__).parent.parent
DATA = (ROOT / "calibrator_data.txt").read_bytes()
LINES = DATA.decode().splitlines()

# Share of the lines with so many words: (fewest, most) -> (at least, at most).
LENGTHS = {(5, 15): (0.35, 0.45), (16, 35): (0.3, 0.4), (36, 70): (0.15, 0.25), (71, 100): (0.03, 0.07)}


def words_of(line: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return re.findall(r"[\w']+", line.lower())


def distinct_share(lines: list[str], length: int) -> float:
    """Different runs of so many words, over all such runs: 1 where nothing is ever said twice."""
    runs = [tuple(words[i : i + length]) for words in map(words_of, lines) for i in range(len(words) - length + 1)]
    return len(set(runs)) / len(runs)


def has_varied_wording(lines: list[str]) -> bool:
    """Whether words, runs of words and beginnings are as different as in prose that somebody wrote."""
    words = [word for line in lines for word in words_of(line)]
    openings = Counter(tuple(words_of(line)[:3]) for line in lines)
    return len(set(words)) >= 0.2 * len(words) and distinct_share(lines, 4) >= 0.98 and max(openings.values()) <= 5


def test_is_plain_utf8_text_with_one_newline_after_each_line():
    text = DATA.decode("utf-8")  # raises where it is not
    assert not text.startswith("\ufeff")
    assert text.endswith("\n")
    assert text.count("\n") == len(LINES)  # splitlines would also split at other characters
    assert text.replace("\n", "").isprintable()


def test_has_at_least_500_lines_each_of_5_to_100_words():
    assert len(LINES) >= 500
    assert [line for line in LINES if not 5 <= len(line.split()) <= 100] == []


def test_no_line_comes_twice():
    spoken = Counter(" ".join(words_of(line)) for line in LINES)
    assert [line for line, count in spoken.items() if count > 1] == []


def test_every_line_is_a_tidy_sentence():
    for line in LINES:
        assert line == " ".join(line.split()), line
        assert re.match(r'["A-Z]', line), line
        assert re.search(r'[.?!]"?$', line), line
        assert line.count('"') % 2 == 0, line
        assert line.count("(") == line.count(")"), line


@pytest.mark.parametrize("words", LENGTHS)
def test_lengths_are_spread(words: tuple[int, int]):
    share = sum(words[0] <= len(line.split()) <= words[1] for line in LINES) / len(LINES)
    assert LENGTHS[words][0] <= share <= LENGTHS[words][1]


@pytest.mark.parametrize("start", [0, 128, 256, 384])
def test_any_part_of_the_file_has_short_and_long_lines(start: int):
    # Calibration with fewer sentences takes the first ones.
    lengths = [len(line.split()) for line in LINES[start : start + 32]]
    assert min(lengths) <= 10
    assert max(lengths) >= 45


def test_few_tokens_are_unknown_to_the_bundled_tokenizer():
    tokenizer = BertTokenizer.from_pretrained(ROOT / "demo_model")
    tokens = [token for line in LINES for token in tokenizer.tokenize(line)]
    assert tokens.count(tokenizer.unk_token) <= 0.001 * len(tokens)
    assert len(set(tokens)) >= 0.2 * len(tokenizer)  # a good part of the embedding table is read


def test_every_line_fits_the_bundled_position_table():
    tokenizer = BertTokenizer.from_pretrained(ROOT / "demo_model")
    assert max(len(tokenizer(line)["input_ids"]) for line in LINES) <= 512


def test_wording_is_varied():
    assert has_varied_wording(LINES)


def test_sentences_made_from_a_template_would_not_pass():
    template = [f"The capital of country {number} is city {number}." for number in range(500)]
    assert not has_varied_wording(template)
    assert not has_varied_wording([*LINES[:500], *template[:56]])


def test_nothing_is_taken_from_the_sentences_that_the_bundled_model_is_measured_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "demo_model")
    facts = importlib.import_module("facts")
    patterns = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(form)), re.IGNORECASE)
        for form in (*facts.HELD_OUT_CAPITAL_FORMS, facts.HELD_OUT_LANDMARK_FORM, facts.FRANCE_SENTENCE)
    ]
    assert patterns[0].fullmatch("The capital of Norway, Oslo, contains the parliament.")
    assert [line for line in LINES if any(pattern.search(line) for pattern in patterns)] == []
    assert b"[MASK]" not in DATA
