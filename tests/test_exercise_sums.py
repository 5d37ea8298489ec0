"""The grading of tasks 13 and 14. Without a GPU, PyTorch imitates kernels: the right ones, and typical mistakes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_runs_for_tests import needs_gpu

from bert_trt.exercise import kernel_library, sum_tasks
from bert_trt.exercise.checks import check_task
from bert_trt.exercise.sum_tasks import Outputs, Sum, compare_outputs, judge
from bert_trt.exercise.tasks import BY_NUMBER, COMPILED, RIGHT, WRONG, WrongAnswer
from plugins import build, reference

ROOT = Path(__file__).parent.parent


def kernel(  # a sum and its layer norm in fp32 as a kernel computes it, with one part changed
    terms: dict[str, float] | None = None,  # factors of terms, in place of 1
    in_type: bool = False,  # the sum is rounded to the type of x
    int8_in_half: bool = False,  # the sum of int8 x and skip is rounded to fp16
    knows_ids: bool = True,
    knows_scales: bool = True,
    factors_of_y: bool = False,
    has_factors: bool = True,
    rounds_twice: bool = False,
    empty: bool = False,
    rows: slice = slice(None),
    stores_quantized: bool = True,
    sets_epsilon: bool = True,
    has_beta: bool = True,
    knows_scale: bool = True,
) -> Callable[[Sum], Outputs]:
    def run(given: Sum) -> Outputs:
        total = torch.zeros(given.shape)
        for name, term in given.wide().items():
            scale = 1 / given.scales[name] if name in given.scales and not knows_scales else 1.0
            total = total + (terms or {}).get(name, 1.0) * scale * term.float()
        total = total.to(given.dtype).float() if in_type else total
        total = total.half().float() if int8_in_half and len(given.scales) == 2 else total
        beta = given.beta if has_beta else torch.zeros_like(given.beta)
        y = reference.layer_norm(total, given.gamma, beta, given.epsilon if sets_epsilon else 0.0)
        outside, _ = given.outside()
        if knows_ids:
            y[outside] = math.nan
        factors = 1.0 if given.factors is None or not has_factors else given.factors
        stored = (y * factors if factors_of_y else y).to(given.dtype)
        written = torch.full_like(stored, math.nan)
        if not empty:
            written[rows] = stored[rows]
        quantized = None
        if given.narrow is not None:
            values = stored.float() if rounds_twice else y
            whole = reference.quantize(values * factors, given.scale if knows_scale else 1.0, given.narrow)
            quantized = torch.full_like(whole.float(), -1.0 if given.narrow == torch.int8 else math.nan)
            if stores_quantized and not empty:
                quantized[rows] = whole.float()[rows]
            quantized = quantized.to(torch.int8) if given.narrow == torch.int8 else quantized
        return Outputs(written if given.has_y else None, quantized)

    return run


@pytest.fixture
def narrow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are judged on a CPU, where wide rows and many of them would take long."""
    monkeypatch.setattr(sum_tasks, "VECTOR_WIDTHS", (64, 200))
    monkeypatch.setattr(sum_tasks, "MANY_ROWS", 300)


@pytest.mark.parametrize("number", [13, 14])
@pytest.mark.usefixtures("narrow_rows")
def test_a_right_kernel_is_right(number):
    for seed in range(2):
        judge(number, kernel(), np.random.default_rng(seed))


EMB_MISTAKES = {
    "no words": (kernel({"words": 0.0}), "missing in the sum: words"),
    "no token types": (kernel({"token types": 0.0}), "missing in the sum: token types"),
    "no positions": (kernel({"positions": 0.0}), "missing in the sum: positions"),
    "words twice": (kernel({"words": 2.0}), "twice in the sum: words"),
    "ids are not checked": (kernel(knows_ids=False), "nanUnless is not called"),
    "sum in the tables' type": (kernel(in_type=True), "overflows"),
    "empty": (kernel(empty=True), "the kernel is empty"),
    "first row only": (kernel(rows=slice(0, 1)), "some rows are not written"),
    "no output in 8 bits": (kernel(stores_quantized=False), "nothing is written"),
    "no factors": (kernel(has_factors=False), "the factors do not multiply"),
    "factors of y": (kernel(factors_of_y=True), "the factors multiply y as well"),
    "rounded twice": (kernel(rounds_twice=True), "rounded twice"),
    "not divided by the scale": (kernel(knows_scale=False), "not divided by its scale"),
    "no epsilon": (kernel(sets_epsilon=False), "epsilon is missing"),
    "no beta": (kernel(has_beta=False), "beta is missing"),
}
SKIP_MISTAKES = {
    "no bias": (kernel({"bias": 0.0}), "missing in the sum: bias"),
    "no x": (kernel({"x": 0.0}), "missing in the sum: x"),
    "no skip": (kernel({"skip": 0.0}), "missing in the sum: skip"),
    "bias twice": (kernel({"bias": 2.0}), "twice in the sum: bias"),
    "skip twice": (kernel({"skip": 2.0}), "twice in the sum: skip"),
    "no scale": (kernel(knows_scales=False), "is int8, and its scale is missing"),
    "sum in the type of x": (kernel(in_type=True), "overflows"),
}
MISTAKES = {(13, title): mistake for title, mistake in EMB_MISTAKES.items()} | {
    (14, title): mistake for title, mistake in SKIP_MISTAKES.items()
}


@pytest.mark.parametrize(("number", "title"), MISTAKES)
@pytest.mark.usefixtures("narrow_rows")
def test_a_mistake_is_wrong_and_its_cause_is_named(number, title):
    run, cause = MISTAKES[number, title]
    with pytest.raises(WrongAnswer) as raised:
        judge(number, run, np.random.default_rng(number))
    assert cause in raised.value.cause, raised.value.found


@pytest.mark.parametrize("narrow", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.usefixtures("narrow_rows")
def test_a_sum_of_int8_that_is_rounded_to_fp16_is_not_taken_for_an_output_that_is(narrow):
    """SkipLayerNorm's kernel for int8 x and skip has T = fp16, whatever the type of the model."""
    drawn = (
        next(
            iter(
                sum_tasks.draw(
                    14, np.random.default_rng(seed), (torch.float32, torch.float32), (False, narrow, False), 40
                )
            )
        )
        for seed in range(1000)
    )
    given = next(given for given in drawn if len(given.scales) == 2)
    compare_outputs(kernel()(given), given)
    with pytest.raises(WrongAnswer) as raised:
        compare_outputs(kernel(int8_in_half=True)(given), given)
    assert "the sum is rounded to the type of x" in raised.value.cause, raised.value.found


# --- real kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(build.find_compiler() is None, reason="needs a CUDA compiler")
def test_a_library_has_the_functions_that_the_judge_calls(tmp_path, monkeypatch):
    """Of a folder without the kernel, since that takes long to compile."""
    plugins = Path(shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("build")))
    monkeypatch.setattr(kernel_library, "PLUGINS", plugins)
    monkeypatch.setattr(kernel_library, "BUILD", tmp_path / "build")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for number, kernel in sum_tasks.KERNELS.items():
        stem = Path(kernel.source).stem
        name = "".join(word.capitalize() for word in stem.split("_"))
        (plugins / kernel.source).write_text(
            f'#include "{stem}/{stem}_kernels.h"\n'
            f"cudaError_t bert::launch{name}({name}Arguments const& a, cudaStream_t)\n"
            "{ return a.rows == 3 && a.outputFactors ? cudaSuccess : cudaErrorNotSupported; }\n"
        )
        assert check_task(BY_NUMBER[number], 0, ROOT).status == COMPILED
        (library,) = (tmp_path / "build").glob(f"{stem}-*.so")
        given = next(
            iter(sum_tasks.draw(number, np.random.default_rng(0), sum_tasks.TYPES[0], (True, None, True), 3))
        )
        addresses = dict.fromkeys(["gamma", "beta", "factors", *given.tables, *(f"{t} ids" for t in given.tables)], 1)
        launcher = sum_tasks.Launcher(library)
        launcher.launch(sum_tasks.arguments_of(given, addresses), 0)  # rows and factors arrive where C++ has them
        with pytest.raises(WrongAnswer, match="the launch fails: "):
            launcher.launch(sum_tasks.arguments_of(given, addresses | {"factors": 0}), 0)


@needs_gpu
@pytest.mark.parametrize("number", sum_tasks.KERNELS)
def test_the_solution_on_a_gpu(number):
    answer = check_task(BY_NUMBER[number], 0, ROOT)
    assert answer.status == RIGHT, answer


CHANGES = {  # of a solution: task, what is there, what it becomes, a part of the finding or of the cause
    "no positions": (13, "+ toFloat(parts[2][v].values[i]);", ";", "missing in the sum: positions"),
    "ids are not checked": (13, "nanUnless(rows.valid, ", "nanUnless(true, ", "nanUnless is not called"),
    "sum in fp16": (13, "toFloat(parts[0][v].values[i]) + toFloat(parts[1][v].values[i])",
                    "toFloat(fromFloat<T>(toFloat(parts[0][v].values[i]) + toFloat(parts[1][v].values[i])))",
                    "add up in float"),
    "no wait": (13, "    waitForPreviousKernel();", "", "waitForPreviousKernel() is missing"),
    "beyond the table": (13, "+ rows.starts[table], hidden", "+ rows.starts[table] + hidden, hidden",
                         "out of bounds"),
    "no bias": (14, "values[v][i] = toFloat(biases[v], i);", "values[v][i] = 0.0F;", "missing in the sum: bias"),
    "x twice": (14, "    skip.addTo(values);", "    x.addTo(values);", "x is added twice, and skip is missing"),
    "sum in the type of x": (14, "    skip.addTo(values);",
                             "    skip.addTo(values);\n    Shape::forEach([&](int v, int i) "
                             "{ values[v][i] = toFloat(fromFloat<T>(values[v][i])); });", "add up in float"),
}  # fmt: skip


@needs_gpu
@pytest.mark.parametrize("title", CHANGES)
def test_a_mistake_on_a_gpu(title, tmp_path, monkeypatch):
    number, before, after, cause = CHANGES[title]
    plugins = Path(shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("build")))
    source = plugins / sum_tasks.KERNELS[number].source
    text = source.read_text()
    assert before in text
    source.write_text(text.replace(before, after, 1))
    monkeypatch.setattr(kernel_library, "PLUGINS", plugins)
    monkeypatch.setattr(kernel_library, "BUILD", tmp_path / "build")
    answer = check_task(BY_NUMBER[number], 0, ROOT)
    assert answer.status == WRONG
    assert cause in answer.found + answer.cause, answer


def test_the_changes_are_of_the_solutions():
    """Without a GPU this is all that shows that a change no longer fits its source."""
    for number, before, after, _ in CHANGES.values():
        text = (ROOT / "plugins" / sum_tasks.KERNELS[number].source).read_text()
        assert before in text
        assert before != after
