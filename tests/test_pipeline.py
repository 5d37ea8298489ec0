"""The comparison with PyTorch, which decides about exit codes, and the table."""

import argparse
from typing import Any

import numpy as np
import pytest

from comparison import Comparison, best_words, relative_l2
from model_files import DemoIO
from options import capability_list, sequence_range

TOKENS = [f"word{number}" for number in range(50)]


def demo_of(output: np.ndarray, positions=(1,)) -> DemoIO:
    ids = np.zeros((1, output.shape[1]), np.int64)
    names = ("input_ids", "token_type_ids", "position_ids")
    return DemoIO("a [MASK]", dict.fromkeys(names, ids), output, np.zeros((1, 1, 1)), list(positions))


@pytest.fixture
def output() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 50)).astype(np.float32)


def test_relative_l2_is_the_textbook_formula():
    assert relative_l2(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)


def test_relative_l2_of_large_fp16_values_does_not_overflow():
    values = np.full(100, 60000, np.float16)
    assert relative_l2(values, values) == 0.0


def test_the_same_output_agrees(output):
    compared = Comparison.of(output, demo_of(output), TOKENS)
    assert (compared.rel_l2, compared.max_abs, compared.top1_same, compared.top10_same) == (0.0, 0.0, True, True)
    assert compared.agrees("fp32")
    assert sum(entry["probability"] for entry in compared.top10) < 1.0
    assert [entry["id"] for entry in compared.top10] == best_words(output[0, 1])
    assert compared.top10[0]["word"] == TOKENS[int(output[0, 1].argmax())]


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 1, 7), (0, 2, 49)])
def test_one_nan_anywhere_does_not_agree(output, place):
    broken = output.copy()
    broken[place] = np.nan
    for precision in ("fp32", "fp16", "bf16"):
        assert not Comparison.of(broken, demo_of(output), TOKENS).agrees(precision)


def test_all_zeros_do_not_agree(output):
    assert not Comparison.of(np.zeros_like(output), demo_of(output), TOKENS).agrees("bf16")


def swap(output: np.ndarray, first: int, second: int) -> np.ndarray:
    """Exchanges the words of two ranks at the mask, with almost no change of the numbers."""
    ranks = best_words(output[0, 1])
    close = output.copy()
    middle = (output[0, 1, ranks[first]] + output[0, 1, ranks[second]]) / 2
    close[0, 1, ranks[first]], close[0, 1, ranks[second]] = middle - 1e-7, middle + 1e-7
    return close


def test_fp32_needs_all_ten_words_fp16_the_first(output):
    reference = output.copy()
    ranks = best_words(reference[0, 1])
    reference[0, 1, ranks[4]] = reference[0, 1, ranks[3]] - 2e-7  # two words almost equally good
    compared = Comparison.of(swap(reference, 3, 4), demo_of(reference), TOKENS)
    assert compared.rel_l2 < 1e-5
    assert compared.top1_same
    assert not compared.top10_same
    assert not compared.agrees("fp32")
    assert compared.agrees("fp16")


def test_fp16_needs_the_first_word(output):
    reference = output.copy()
    ranks = best_words(reference[0, 1])
    reference[0, 1, ranks[1]] = reference[0, 1, ranks[0]] - 2e-7
    compared = Comparison.of(swap(reference, 0, 1), demo_of(reference), TOKENS)
    assert compared.rel_l2 < 1e-5
    assert not compared.agrees("fp16")


def test_every_mask_counts(output):
    other = output.copy()
    other[0, 2] = other[0, 2, ::-1]
    compared = Comparison.of(other, demo_of(output, (1, 2)), TOKENS)
    assert not compared.top1_same
    assert not compared.top10_same


def test_without_a_head_only_the_numbers_count(output):
    compared = Comparison.of(output, demo_of(output, ()), [])
    assert (compared.top1_same, compared.top10_same, compared.top10) == (None, None, [])
    assert compared.agrees("fp32")


@pytest.mark.parametrize(("text", "expected"), [("1,8,64", (1, 8, 64)), (" 2, 2 ,2", (2, 2, 2))])
def test_sequence_range(text, expected):
    chosen = sequence_range(text)
    assert (chosen.minimum, chosen.optimum, chosen.maximum) == expected
    assert chosen.as_tuple() == expected


@pytest.mark.parametrize("text", ["", "8", "1,2", "1,2,3,4", "0,1,2", "3,2,4", "1,5,4", "a,b,c", "1.5,2,3"])
def test_wrong_sequence_ranges(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"MIN,OPT,MAX|MIN <= OPT <= MAX"):
        sequence_range(text)


@pytest.mark.parametrize("text", ["", "86", "8.6,", "a.b", "8.6;8.9"])
def test_wrong_capabilities(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected e\.g\. 8\.6"):
        capability_list(text)


def test_capabilities():
    parsed: Any = capability_list("8.6, 12.0")
    assert parsed == ["8.6", "12.0"]
