"""Grades tasks 13 and 14, the kernels that normalise a sum: EmbLayerNorm and SkipLayerNorm.

They are compiled, run under compute-sanitizer and between guards as in kernel_tasks.py. The judge draws tensors of
each type that the kernels accept, compares every output with fp64, and where one differs, with the outputs that
typical mistakes give. It knows a kernel as a function of what it is given, so that tests can judge a model of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bert_trt.exercise.checks import Mistakes, compare, first_answer
from bert_trt.exercise.kernel_library import (
    BF16,
    ELEMENT_TYPES,
    FLOAT,
    HALF,
    ROUNDING,
    Kernel,
    KernelLibrary,
    prepare,
    type_name,
)
from bert_trt.exercise.kernel_tasks import VECTOR_WIDTHS
from bert_trt.exercise.layer_norms import layer_norm, layer_norm_mistakes
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import RIGHT, Grade, Task, WrongAnswer

TYPES = ((FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT), (BF16, BF16))
KERNELS = {
    13: Kernel("emb_layer_norm/emb_layer_norm.cu", "", TYPES, VECTOR_WIDTHS),
    14: Kernel("skip_layer_norm/skip_layer_norm.cu", "", TYPES, VECTOR_WIDTHS),
}
TABLES = {"words": 50, "token types": 2, "positions": 20}  # in the launcher's order; rows of each table
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
MOST_HALF_STEPS = 1.04  # that an element in 8 bits may be off
MANY_ROWS = 10000  # more than two waves of blocks: SkipLayerNorm loads its weights in another way then


@dataclass(frozen=True)
class Sum:
    """What a kernel is given: a sum to normalise, and which outputs to write. All tensors are on the CPU.

    Attributes:
        title: what is special about it.
        terms: the terms of the sum by name, (rows, width) or (width,); int8 where ``scales`` has one.
        dtype: the type of y and of the terms that are not int8.
        gamma: (width,).
        beta: (width,).
        epsilon: the epsilon.
        has_y: whether y is written.
        narrow: the type of the output in 8 bits; None for none.
        scale: its scale.
        factors: (width,) fp32, which multiply it first; None for none.
        scales: the scales of int8 terms by name.
        tables: for EmbLayerNorm, in place of ``terms``, each table by name.
        ids: for EmbLayerNorm, the ids (rows,) int32 by name; some are outside their tables.
        constant_weights: for SkipLayerNorm, whether it may read its weights early.
        hard: the likely cause where ordinary values are right and these are wrong; empty for ordinary ones.
    """

    title: str
    terms: dict[str, torch.Tensor]
    dtype: torch.dtype
    gamma: torch.Tensor
    beta: torch.Tensor
    epsilon: float
    has_y: bool = True
    narrow: torch.dtype | None = None
    scale: float = 1.0
    factors: torch.Tensor | None = None
    scales: dict[str, float] = field(default_factory=dict)
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: dict[str, torch.Tensor] = field(default_factory=dict)
    constant_weights: bool = False
    hard: str = ""

    def wide(self) -> dict[str, torch.Tensor]:
        """The terms in fp64. An id outside its table takes the first row."""
        found = {name: table.double()[self._inside(name)] for name, table in self.tables.items()}
        return found | {name: term.double() * self.scales.get(name, 1.0) for name, term in self.terms.items()}

    def _inside(self, name: str) -> torch.Tensor:
        ids = self.ids[name]
        return torch.where((ids >= 0) & (ids < len(self.tables[name])), ids, 0).long()

    def outside(self) -> tuple[torch.Tensor, str]:
        """Which rows (rows,) have an id outside a table, and the first such id in words."""
        rows = self.shape[0]
        outside, first = torch.zeros(rows, dtype=torch.bool), ""
        for name, table in self.tables.items():
            wrong = (self.ids[name] < 0) | (self.ids[name] >= len(table))
            if wrong.any() and not first:
                row = int(wrong.nonzero()[0])
                given = {"row": row, "id": int(self.ids[name][row]), "table": term_name(name), "size": len(table)}
                first = say("row {row} has the id {id} in the table of {table}, which has {size} rows", **given)
            outside |= wrong
        return outside, first

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, width)."""
        tensors = [*self.ids.values(), *self.terms.values()]
        return len(tensors[0]), len(self.gamma)

    @property
    def given(self) -> str:
        """The inputs, for messages."""
        inputs = ", ".join(f"{name} int8" for name in self.scales)
        outputs = [*(["y"] if self.has_y else []), *([type_name(self.narrow)] if self.narrow else [])]
        return say(
            "{title}: {rows} rows of {width}, {type}, weights {weights}, epsilon {epsilon:g}; outputs: {outputs}",
            title=self.title,
            rows=self.shape[0],
            width=self.shape[1],
            type=type_name(self.dtype) + (f", {inputs}" if inputs else ""),
            weights=type_name(self.gamma.dtype),
            epsilon=self.epsilon,
            outputs=" + ".join(outputs) + (say(" with factors") if self.factors is not None else ""),
        )


def term_name(name: str) -> str:
    """A term of the sum, for messages."""
    return say(name) if name in TABLES else name


@dataclass(frozen=True)
class Outputs:
    """What a kernel wrote, on the CPU: unwritten elements are NaN, or −1 in int8. None: not asked for."""

    y: torch.Tensor | None
    quantized: torch.Tensor | None  # int8, or E4M3 as fp32


Run = Callable[[Sum], Outputs]

# --- drawing ------------------------------------------------------------------------------------------------------

Form = tuple[bool, torch.dtype | None, bool]  # which outputs: y, one in 8 bits, factors for that
FORMS: tuple[Form, ...] = (
    (True, None, False),
    (True, torch.int8, False),
    (False, torch.int8, True),
    (True, torch.float8_e4m3fn, True),
    (False, torch.float8_e4m3fn, False),
)


def draw(
    number: int, rng: np.random.Generator, types: tuple[torch.dtype, torch.dtype], form: Form, rows: int
) -> Iterator[Sum]:
    """Random sums for a task: ordinary values, and sums beyond the largest fp16 number."""
    dtype, weight_dtype = types
    has_y, narrow, has_factors = form
    width = int(rng.choice(VECTOR_WIDTHS)) if rows < MANY_ROWS else 768

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).clamp(-5, 5)

    gamma, beta = (normal(width) + 1).to(weight_dtype), normal(width).to(weight_dtype)
    factors = torch.from_numpy(rng.uniform(0.2, 2, width).astype(np.float32)) if has_factors else None
    scale = float(np.float32(5 / LARGEST[narrow])) if narrow is not None else 1.0
    epsilon = float(rng.choice([1e-12, 4e-4]))
    ordinary = (dtype, gamma, beta, epsilon, has_y, narrow, scale, factors)
    if number == 13:
        tables = {name: normal(size, width).to(dtype) for name, size in TABLES.items()}
        yield Sum(say("ordinary values"), {}, *ordinary, tables=tables, ids=draw_ids(rng, rows))
        large = {name: (3000 * normal(size, width) + 30000).to(dtype) for name, size in TABLES.items()}
        hard = say("the sum is rounded to the type of the tables, or overflows in it: add up in float")
        yield Sum(
            say("sums of 90000"), {}, *ordinary, tables=large, ids=draw_ids(rng, rows, outside=False), hard=hard
        )
        return
    scales = {name: 0.03 for name in ("x", "skip") if rng.random() < 0.3}

    def term(name: str) -> torch.Tensor:
        if name not in scales:
            return normal(rows, width).to(dtype)
        return torch.from_numpy(rng.integers(-128, 128, (rows, width)).astype(np.int8))

    has_bias = rows == 1 or rng.random() < 0.8  # without a bias, x and 2 x give the same, so the first sum has one
    bias = {"bias": normal(width).to(weight_dtype)} if has_bias else {}
    constant = bool(rng.random() < 0.5)
    terms = {"x": term("x"), "skip": term("skip")} | bias
    yield Sum(say("ordinary values"), terms, *ordinary, scales=scales, constant_weights=constant)
    large = {name: (3000 * normal(rows, width) + 40000).to(dtype) for name in ("x", "skip")} | bias
    hard = say("the sum is rounded to the type of x, or overflows in it: add up in float")
    yield Sum(say("sums of 80000"), large, *ordinary, constant_weights=constant, hard=hard)


def draw_ids(rng: np.random.Generator, rows: int, outside: bool = True) -> dict[str, torch.Tensor]:
    """Ids of each table; with several rows, one of them is outside its table if ``outside``."""
    ids = {name: torch.from_numpy(rng.integers(0, size, rows).astype(np.int32)) for name, size in TABLES.items()}
    if outside and rows > 1:
        name = str(rng.choice(list(TABLES)))
        ids[name][int(rng.integers(rows))] = int(rng.choice([TABLES[name], -1, 2**31 - 1]))
    return ids


# --- judging ------------------------------------------------------------------------------------------------------


def judge(number: int, run: Run, rng: np.random.Generator) -> None:
    """Runs a kernel on sums from the random generator and compares it with fp64.

    Raises:
        WrongAnswer: something is wrong.
    """

    def check_form(types: tuple[torch.dtype, torch.dtype], form: Form, row_counts: Sequence[int]) -> None:
        for rows in row_counts:
            for given in draw(number, rng, types, form, rows):
                compare_outputs(run(given), given)

    few = [1, int(rng.integers(2, 40))]
    checks = [
        lambda types=types, form=form: check_form(types, form, [*few, int(rng.integers(60, 120))])
        for types in TYPES
        for form in FORMS
    ]
    many = [lambda types=types: check_form(types, FORMS[0], [MANY_ROWS]) for types in TYPES[1:3]]
    first_answer(checks + many)


def compare_outputs(found: Outputs, given: Sum) -> None:
    """Compares what a kernel wrote.

    Raises:
        WrongAnswer: an output is wrong.
    """
    terms = given.wide()
    outside, first = given.outside()
    inside = ~outside
    mistakes = {} if given.hard else sum_mistakes(given, terms)
    y = normalised(given, terms)
    factors = 1.0 if given.factors is None else given.factors.double()
    if found.y is not None:
        cause = given.hard or _unwritten(found.y, inside)
        answers: Mistakes = {why: (lambda s=s: s()[inside]) for why, s in mistakes.items()}
        if given.factors is not None:
            answers = {say("the factors multiply y as well"): lambda: (y * factors)[inside], **answers}
        compare("y", found.y[inside], y[inside], ROUNDING[given.dtype], answers, given.given, cause)
        check_outside("y", found.y[outside], first)
    if found.quantized is not None:
        assert given.narrow is not None
        _compare_quantized(found.quantized, y, given, mistakes, inside)
        check_outside("quantized", found.quantized[outside], first)


def _compare_quantized(
    found: torch.Tensor,
    y: torch.Tensor,
    given: Sum,
    mistakes: dict[str, Callable[[], torch.Tensor]],
    inside: torch.Tensor,
) -> None:
    """Compares the output in 8 bits, times its scale, with y; then each element with the nearest one of its type."""
    assert given.narrow is not None
    largest = LARGEST[given.narrow]
    factors = 1.0 if given.factors is None else given.factors.double()

    def bounded(values: torch.Tensor) -> torch.Tensor:
        low = -128.0 if given.narrow == torch.int8 else -largest
        return (values / given.scale).clamp(low, largest)[inside]

    steps = bounded(y * factors)
    cause = given.hard or _unwritten(found, inside)
    answers: Mistakes = {why: (lambda s=s: bounded(s() * factors)) for why, s in mistakes.items()}
    if given.factors is not None:
        answers = {say("the factors do not multiply the output in 8 bits"): lambda: bounded(y), **answers}
    answers = {
        say("the output in 8 bits is not divided by its scale"): lambda: bounded(y * factors * given.scale),
        **answers,
    }
    # Half a step, and what fp32 may differ by. E4M3 has 3 bits of mantissa.
    step = torch.ones_like(steps)
    if given.narrow == torch.float8_e4m3fn:
        step = torch.exp2(steps.abs().clamp(min=2.0**-6).log2().floor()) / 8
    wide = found.double()[inside]
    tallest = float(steps.abs().max().clamp(min=1e-30)) if steps.numel() else 1.0
    allowed = 0.55 * float(step.max()) / tallest if steps.numel() else 0.0
    compare("quantized", wide, steps, allowed, answers, given.given, cause)
    slack = ROUNDING[FLOAT] * tallest

    def half_steps(expected: torch.Tensor) -> torch.Tensor:
        return ((wide - expected).abs() - slack) * 2 / step

    off = half_steps(steps).max() if steps.numel() else torch.zeros(())
    if not off <= MOST_HALF_STEPS:
        # Where x and skip are int8 the kernel's T is fp16, whatever the type of y would be.
        total = sum(given.wide().values(), torch.zeros(given.shape, dtype=torch.float64))
        in_half = bounded(normalised(given, {"sum": total.half().double()}) * factors)
        if (half_steps(in_half) > MOST_HALF_STEPS).sum() * 10 < (half_steps(steps) > MOST_HALF_STEPS).sum():
            cause = say("the sum is rounded to the type of x, or overflows in it: add up in float")
        else:
            cause = say("the value is rounded twice, or not to the nearest: give quantize the fp32 value")
        raise WrongAnswer(
            say(
                "quantized is up to {steps:.2f} half steps off, expected 1; {given}",
                steps=float(off),
                given=given.given,
            ),
            cause,
        )


def check_outside(name: str, found: torch.Tensor, first: str) -> None:
    """Checks that rows with an id outside its table are NaN, −128 in int8.

    Raises:
        WrongAnswer: one is not.
    """
    lost = found == -128 if found.dtype == torch.int8 else found.isnan()
    if not lost.all():
        wanted = "-128" if found.dtype == torch.int8 else "NaN"
        raise WrongAnswer(
            say("{first}; expected {wanted} in its row of {name}", first=first, wanted=wanted, name=name),
            say("nanUnless is not called with the validity of the row's ids"),
        )


def _unwritten(found: torch.Tensor, inside: torch.Tensor) -> str:
    """The likely cause where rows are not written; empty if all are."""
    unwritten = (found == -1).all(-1) if found.dtype == torch.int8 else found.isnan().all(-1)
    if unwritten.all():
        return say("nothing is written: the kernel is empty, or returns before it stores")
    if unwritten[inside].any():
        return say("some rows are not written, or are NaN without an id outside its table")
    return ""


def normalised(given: Sum, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """The layer norm of the sum of terms, (rows, width) fp64."""
    total = torch.zeros(given.shape, dtype=torch.float64)
    for term in terms.values():
        total = total + term
    return layer_norm(total, given.gamma.double(), given.beta.double(), given.epsilon)


def sum_mistakes(given: Sum, terms: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """By the likely cause, what a mistake makes of y."""

    def with_terms(changed: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: normalised(given, terms | changed)

    mistakes = {
        say("missing in the sum: {name}", name=term_name(name)): with_terms({name: torch.zeros_like(term)})
        for name, term in terms.items()
    }
    mistakes |= {
        say("twice in the sum: {name}", name=term_name(name)): with_terms({name: 2 * term})
        for name, term in terms.items()
    }
    mistakes |= {
        say("{name} is int8, and its scale is missing", name=name): with_terms({name: terms[name] / scale})
        for name, scale in given.scales.items()
    }
    total = sum(terms.values(), torch.zeros(given.shape, dtype=torch.float64))
    of_norm = layer_norm_mistakes(given.gamma.double(), given.beta.double(), given.epsilon)
    mistakes |= {cause: (lambda change=change: change(total)) for cause, change in of_norm.items()}
    mistakes[say("the sum is stored without normalising it")] = lambda: total
    if "x" in terms:
        mistakes[say("x is added twice, and skip is missing")] = with_terms({"skip": terms["x"]})
    return mistakes


# --- running ------------------------------------------------------------------------------------------------------


class Lookup(ctypes.Structure):
    """``EmbeddingLookup`` of emb_layer_norm_kernels.h."""

    _fields_ = (("ids", ctypes.c_void_p), ("table", ctypes.c_void_p), ("size", ctypes.c_int64))


class EmbArguments(ctypes.Structure):
    """``EmbLayerNormArguments`` of emb_layer_norm_kernels.h."""

    _fields_ = (
        ("lookups", Lookup * 3),
        *((name, ctypes.c_void_p) for name in ("gamma", "beta", "y")),
        ("rows", ctypes.c_int64),
        ("hidden", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("weight_type", ctypes.c_int32),
        ("quantized", ctypes.c_void_p),
        ("output_scale", ctypes.c_float),
        ("quantized_type", ctypes.c_int32),
        ("output_factors", ctypes.c_void_p),
    )


class SkipArguments(ctypes.Structure):
    """``SkipLayerNormArguments`` of skip_layer_norm_kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "skip", "gamma", "beta", "bias", "y", "quantized")),
        ("rows", ctypes.c_int64),
        ("hidden", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("epsilon", "x_scale", "skip_scale", "output_scale")),
        ("type", ctypes.c_int32),
        ("weight_type", ctypes.c_int32),
        ("constant_weights", ctypes.c_bool),
        ("quantized_type", ctypes.c_int32),
        ("output_factors", ctypes.c_void_p),
    )


class Launcher(KernelLibrary):
    """Runs the kernel of a library."""

    def __call__(self, given: Sum) -> Outputs:
        """Runs the kernel on the GPU.

        Raises:
            WrongAnswer: CUDA reports an error, or something was written beside a tensor.
        """
        named = {"gamma": given.gamma, "beta": given.beta, "factors": given.factors} | given.terms
        named |= {f"{name} ids": ids for name, ids in given.ids.items()} | given.tables
        inputs = {name: tensor.cuda() for name, tensor in named.items() if tensor is not None}
        types = {"y": given.dtype if given.has_y else None, "quantized": given.narrow}
        outputs = {name: (given.shape, dtype) for name, dtype in types.items() if dtype is not None}

        def arguments(read: Sequence[int], written: Sequence[int]) -> ctypes.Structure:
            addresses = dict(zip((*inputs, *outputs), (*read, *written), strict=True))
            return arguments_of(given, addresses)

        found = self.run(list(inputs.values()), list(outputs.values()), arguments)
        tensors = dict(zip(outputs, (tensor.cpu() for tensor in found), strict=True))
        quantized = tensors.get("quantized")
        is_fp8 = given.narrow == torch.float8_e4m3fn
        return Outputs(tensors.get("y"), quantized.float() if quantized is not None and is_fp8 else quantized)

    def check_waits_for_ids(self) -> None:
        """Checks that EmbLayerNorm waits for the kernel in front of it.

        Raises:
            WrongAnswer: it does not.
        """
        rng = np.random.default_rng(0)
        tables = {name: torch.randn(size, 768, device="cuda", dtype=HALF) for name, size in TABLES.items()}
        ids, values = (
            {name: drawn.cuda() for name, drawn in draw_ids(rng, 64, outside=False).items()} for _ in range(2)
        )
        gamma, beta, y = torch.randn(3, 64 * 768, device="cuda", dtype=HALF)
        given = Sum("", {}, HALF, gamma[:768], beta[:768], 1e-12, tables=tables, ids=ids)
        named = (
            tables | {f"{name} ids": tensor for name, tensor in ids.items()} | {"gamma": gamma, "beta": beta, "y": y}
        )
        arguments = arguments_of(given, {name: tensor.data_ptr() for name, tensor in named.items()})
        self.check_waits(ids["words"], values["words"], y, arguments)


def arguments_of(given: Sum, addresses: dict[str, int]) -> ctypes.Structure:
    """The launcher's arguments; a tensor without an address is null."""
    rows, width = given.shape
    types = {
        "rows": rows,
        "hidden": width,
        "epsilon": given.epsilon,
        "type": ELEMENT_TYPES[given.dtype],
        "weight_type": ELEMENT_TYPES[given.gamma.dtype],
        "quantized_type": ELEMENT_TYPES[given.narrow or torch.int8],
        "output_scale": given.scale,
        "output_factors": addresses.get("factors"),
    }
    pointers = {name: addresses.get(name) for name in ("gamma", "beta", "y", "quantized")}
    if given.tables:
        lookups = (
            Lookup(addresses[f"{name} ids"], addresses[name], len(table)) for name, table in given.tables.items()
        )
        return EmbArguments(lookups=(Lookup * 3)(*lookups), **pointers, **types)
    return SkipArguments(
        **{name: addresses.get(name) for name in ("x", "skip", "bias")},
        x_scale=given.scales.get("x", 0.0),
        skip_scale=given.scales.get("skip", 0.0),
        constant_weights=given.constant_weights,
        **pointers,
        **types,
    )


def check(task: Task, seed: int) -> Grade:
    """Grades a kernel.

    Raises:
        WrongAnswer: it does not compile, or what it computes is wrong.
    """
    library = prepare(KERNELS[task.number])
    if isinstance(library, Grade):
        return library
    launcher = Launcher(library)
    judge(task.number, launcher, np.random.default_rng([seed, task.number]))
    if task.number == 13:
        launcher.check_waits_for_ids()
    return Grade(RIGHT)
