"""Grades tasks 1 to 7: networks of one step, run by network_runner.py and compared with PyTorch in fp64.

Each case is a small network around the student's method, with shapes, weights and inputs from the seed. Its dynamic
axes are run with two lengths. Then the network is read back: the weights must be in it as constants, and it must have
the layers that the task is about, so that no function passes that is empty or knows the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch

from bert_trt.element_types import ELEMENT_TYPES, convert_weight
from bert_trt.exercise.checks import Mistakes, compare, first_answer, is_close
from bert_trt.exercise.layer_norms import cancelled, layer_norm, layer_norm_mistakes
from bert_trt.exercise.messages import say
from bert_trt.exercise.tasks import RIGHT, Grade, Task, WrongAnswer
from bert_trt.layers import NativeLayers, Products
from bert_trt.layers.layouts import PaddedLayout, SingleLayout
from bert_trt.model_files import MASK_NAME, BertConfig
from bert_trt.network import NetworkContents
from bert_trt.network_runner import NetworkRunner, constant_values, input_names, read_layer
from bert_trt.options import FILL_MASK
from bert_trt.plan import create_builder
from bert_trt.recording import define_network
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper

FLOAT, HALF = trt.DataType.FLOAT, trt.DataType.HALF
ROUNDING = {"fp32": 4e-6, "fp16": 4e-3}  # a few units in the last place, relative to the largest value
STORED: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
NAME = "step"  # of the step that the student adds

Add = Callable[[TrtNetworkHelper, list[trt.ITensor]], trt.ITensor]
Answer = Callable[[list[torch.Tensor]], torch.Tensor]  # fp64 tensors in, fp64 out


@dataclass(frozen=True)
class Input:
    """An input of a case: (lower bound or mean) values of a shape whose axis ``dynamic`` is -1 in the network."""

    values: np.ndarray
    dynamic: tuple[int, ...] = ()
    dtype: trt.DataType | None = None  # None: the helper's

    def of_length(self, length: int) -> np.ndarray:
        """The values with this length along the dynamic axes."""
        values = self.values
        for axis in self.dynamic:
            values = values.take(range(length), axis)
        return values


@dataclass(frozen=True)
class Case:
    """A network around the student's method.

    Attributes:
        title: what is special about it, for the message.
        inputs: the network's inputs, with the longest lengths.
        add: adds the step; the student's method is called in it.
        answer: the reference.
        precision: the helper's type.
        mistakes: the answers of typical mistakes.
        constants: weights that must be in the network, by name.
        kinds: layers of which the network must have at least one of each group.
        otherwise: the likely cause where no mistake gives the answer.
        dtype: the expected type of the result; None: the helper's.
        inspect: further checks of the layers, each (kind, layer).
        exact: allow no difference at all.
        factor: how much more than the usual rounding errors is allowed.
    """

    title: str
    inputs: list[Input]
    add: Add
    answer: Answer
    precision: str = "fp32"
    mistakes: dict[str, Answer] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    kinds: tuple[tuple[str, ...], ...] = ()
    otherwise: str = ""
    dtype: trt.DataType | None = None
    inspect: Callable[[list[tuple[str, Any]]], None] | None = None
    exact: bool = False
    factor: float = 1.0

    def run(self) -> None:
        """Makes the network, runs it, and looks at what it holds.

        Raises:
            WrongAnswer: something is wrong.
            UserError: TensorRT refuses a layer.
        """
        log = TrtLog()
        builder, network = create_builder(log)
        helper = TrtNetworkHelper(network, log, ELEMENT_TYPES[self.precision].trt)
        tensors = [
            helper.addInput(
                f"x{index}",
                one.dtype or helper.dtype,
                [-1 if axis in one.dynamic else length for axis, length in enumerate(one.values.shape)],
            )
            for index, one in enumerate(self.inputs)
        ]
        result = check_result(self.add(helper, tensors), self.dtype or helper.dtype)
        helper.markOutput(result, "result")
        layers = [read_layer(network, index) for index in range(network.num_layers)]
        contents = NetworkContents(helper.weights)
        runner = NetworkRunner(network, contents=contents, checks_batch=False)
        for length in self.lengths():
            self.compare(runner, length)
        if self.inspect is not None:
            self.inspect(layers)
        for names in self.kinds:
            if not any(kind in names for kind, _ in layers):
                raise WrongAnswer(
                    say("{title}: the network has no {kinds} layer", title=self.title, kinds=" or ".join(names))
                )
        check_constants(layers, contents, self.constants, self.title)
        del builder  # lives as long as its network

    def lengths(self) -> list[int]:
        """The lengths of the dynamic axes to run with."""
        longest = [one.values.shape[axis] for one in self.inputs for axis in one.dynamic]
        return sorted({min(longest), max(1, min(longest) // 2)}, reverse=True) if longest else [0]

    def compare(self, runner: NetworkRunner, length: int) -> None:
        """Runs the network with inputs of one length and compares the result."""
        values = [one.of_length(length) for one in self.inputs]
        found = run(runner, {f"x{index}": array for index, array in enumerate(values)}, self.title)["result"]
        wide = [
            as_stored(array, self.precision) if one.dtype is None else torch.from_numpy(array)
            for one, array in zip(self.inputs, values, strict=True)
        ]
        mistakes: Mistakes = {
            cause: (lambda answer=answer: answer(wide).double()) for cause, answer in self.mistakes.items()
        }
        shapes = ", ".join(f"x{index} {list(array.shape)}" for index, array in enumerate(values))
        given = f"{self.title}, {self.precision}: {shapes}"
        allowed = 0.0 if self.exact else self.factor * ROUNDING[self.precision]
        unchanged: Mistakes = {say("the function returns its input as it is"): wide[0].double}
        compare("result", found, self.answer(wide).double(), allowed, unchanged | mistakes, given, self.otherwise)


def run(runner: NetworkRunner, inputs: dict[str, np.ndarray], title: str) -> dict[str, torch.Tensor]:
    """Runs a network.

    Raises:
        WrongAnswer: it cannot be run with these inputs; TensorRT would fail as well.
    """
    try:
        return runner.run(inputs)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise WrongAnswer(
            say(
                "{title}: the network does not run with {shapes}: {error}",
                title=title,
                shapes=shapes,
                error=str(error).splitlines()[0],
            )
        ) from error


def as_stored(values: np.ndarray, precision: str) -> torch.Tensor:
    """The values after rounding to the type, in fp64."""
    return torch.from_numpy(values.astype(STORED[precision]).astype(np.float64))


def check_result(result: object, dtype: trt.DataType, name: str = NAME) -> trt.ITensor:
    """Checks that a method returned a tensor of the right name and type.

    Raises:
        WrongAnswer: it did not.
    """
    if result is None:
        raise WrongAnswer(say("the method returns None"), say("return is missing"))
    if not isinstance(result, trt.ITensor):
        kind = type(result).__name__
        cause = say("a layer is no tensor: return layer.get_output(0)") if "Layer" in kind else ""
        raise WrongAnswer(say("the method returns a {kind}; expected an ITensor", kind=kind), cause)
    if result.name != name:
        raise WrongAnswer(
            say("the tensor that is returned is called {found!r}; expected {name!r}", found=result.name, name=name),
            say(
                "the last layer does not have the name that was given: self._check_layer(layer, name, inputs) sets it"
            ),
        )
    if result.dtype != dtype:
        cause = (
            say("the cast back from fp32 is missing") if result.dtype == FLOAT else say("a tensor has the wrong type")
        )
        raise WrongAnswer(
            say("the result is {found}; expected {wanted}", found=result.dtype.name, wanted=dtype.name), cause
        )
    return result


def check_constants(
    layers: Sequence[tuple[str, Any]], contents: NetworkContents, wanted: dict[str, np.ndarray], title: str
) -> None:
    """Checks that each weight, or its transpose, is a constant of the network.

    Raises:
        WrongAnswer: one is not.
    """
    constants = [
        (layer.get_output(0).dtype, constant_values(layer, contents)) for kind, layer in layers if kind == "CONSTANT"
    ]
    for name, values in wanted.items():
        forms = (values, values.T)
        if not any(
            stored.size == values.size
            and any(
                np.array_equal(
                    np.asarray(stored, np.float32).reshape(-1),
                    np.asarray(convert_weight(np.ascontiguousarray(form), dtype, name), np.float32).reshape(-1),
                )
                for form in forms
            )
            for dtype, stored in constants
        ):
            raise WrongAnswer(
                say(
                    "{title}: no constant of the network holds the {name} {shape}",
                    title=title,
                    name=name,
                    shape=list(values.shape),
                )
            )


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers of a normal distribution, fp32."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def sizes(rng: np.random.Generator, count: int, low: int = 3, high: int = 24) -> list[int]:
    """Different random sizes."""
    return [int(number) for number in rng.choice(np.arange(low, high), count, replace=False)]


def double(values: np.ndarray, precision: str = "fp32") -> torch.Tensor:
    """A weight as the network has it, fp64."""
    return as_stored(values, precision)


# --- 1 addLinear ------------------------------------------------------------------------------------------------


def linear_cases(rng: np.random.Generator) -> list[Case]:
    """A matrix that is not square, a square one, no bias, rank 2, fp16."""
    batch, length, width_in, width_out = sizes(rng, 4)

    def case(title: str, shape: tuple[int, ...], out: int, precision: str = "fp32", has_bias: bool = True) -> Case:
        weight = normal(rng, out, shape[-1])
        bias = normal(rng, out) if has_bias else None
        w = double(weight, precision)
        b = double(bias, precision) if bias is not None else torch.zeros((), dtype=torch.float64)
        mistakes: dict[str, Answer] = {}
        if has_bias:
            mistakes[say("the bias is missing")] = lambda x: x[0] @ w.T
            mistakes[say("the bias is subtracted")] = lambda x: x[0] @ w.T - b
        if shape[-1] == out:
            cause = say("the weight is not transposed: PyTorch stores (out, in), and the product is x @ weightᵀ")
            mistakes[cause] = lambda x: x[0] @ w + b
            mistakes[say("{cause}; and the bias is missing", cause=cause)] = lambda x: x[0] @ w
        constants = {"weight": weight} | ({"bias": bias} if bias is not None else {})
        return Case(
            title,
            [Input(normal(rng, *shape), (len(shape) - 2,))],
            lambda helper, x: helper.addLinear(x[0], weight, bias, NAME),
            lambda x: x[0] @ w.T + b,
            precision,
            mistakes,
            constants,
            (("MATRIX_MULTIPLY",),),
        )

    return [
        case(
            say("weight ({width_out}, {width_in})", width_out=width_out, width_in=width_in),
            (batch, length, width_in),
            width_out,
        ),
        case(say("weight ({width_in}, {width_in})", width_in=width_in), (batch, length, width_in), width_in),
        case(say("without a bias"), (batch, length, width_in), width_out, has_bias=False),
        case(say("x of rank 2"), (length, width_in), width_out),
        case(say("in fp16"), (batch, length, width_in), width_out, "fp16"),
    ]


# --- 2 addSoftmax -----------------------------------------------------------------------------------------------


def softmax_cases(rng: np.random.Generator) -> list[Case]:
    """The last axis, another one, a mask, fp16."""
    batch, heads, length = sizes(rng, 3, 3, 9)

    def computes_in_fp32(layers: list[tuple[str, Any]]) -> None:
        for kind, layer in layers:
            if kind == "SOFTMAX" and layer.get_input(0).dtype != FLOAT:
                raise WrongAnswer(
                    say("the softmax layer reads {found}; expected FLOAT", found=layer.get_input(0).dtype.name),
                    say("softmax is computed in fp16: over a long sequence the sum would lose its digits"),
                )

    def case(title: str, shape: tuple[int, ...], axis: int, precision: str = "fp32", masked: bool = False) -> Case:
        rank = len(shape)
        mistakes: dict[str, Answer] = {
            say("the softmax is along axis {other}, expected axis {axis}", other=other, axis=axis % rank)
            + (say(", TensorRT's default: set the layer's axes") if other == max(0, rank - 3) else ""): (
                lambda x, other=other: (x[0] + (x[1] if masked else 0)).softmax(other)
            )
            for other in range(rank)
            if other != axis % rank
        }
        inputs = [Input(normal(rng, *shape, scale=2), (rank - 2,) if not masked else ())]
        if masked:
            mask = np.where(rng.random((shape[0], 1, 1, shape[-1])) < 0.5, -1e30, 0.0).astype(np.float32)
            mask[..., 0] = 0
            inputs.append(Input(mask, (), FLOAT))
            mistakes[say("the mask (bias) is not added")] = lambda x: x[0].softmax(axis)
            mistakes[say("the mask (bias) is added after the softmax")] = lambda x: x[0].softmax(axis) + x[1].double()
        return Case(
            title,
            inputs,
            lambda helper, x: helper.addSoftmax(
                x[0], NAME, *(() if axis == -1 else (axis,)), bias=x[1] if masked else None
            ),
            lambda x: (x[0] + (x[1] if masked else 0)).softmax(axis),
            precision,
            mistakes,
            {},
            (("SOFTMAX",),),
            inspect=computes_in_fp32,
        )

    return [
        case("scores", (batch, heads, length, length), -1),
        case(say("along axis 1"), (length, heads, batch), 1),
        case(say("with a mask"), (batch, heads, length, length), -1, masked=True),
        case(say("in fp16"), (batch, heads, length, length), -1, "fp16"),
        case(say("in fp16 with a mask"), (batch, heads, length, length), -1, "fp16", masked=True),
    ]


# --- 3 addGELU --------------------------------------------------------------------------------------------------


def gelu_cases(rng: np.random.Generator) -> list[Case]:
    """The three kinds."""
    batch, length, width = sizes(rng, 3)

    def erf(x: torch.Tensor) -> torch.Tensor:
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    def tanh(x: torch.Tensor) -> torch.Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    mistakes: dict[str, Answer] = {
        say("GELU by the error function, where the approximation by tanh is asked for"): lambda x: erf(x[0]),
        say("GELU by tanh, where the error function is asked for"): lambda x: tanh(x[0]),
        say("ReLU in place of GELU"): lambda x: x[0].relu(),
        say("x · sigmoid(1.702 x) in place of GELU"): lambda x: x[0] * torch.sigmoid(1.702 * x[0]),
        say("the argument of erf is x: 1/√2 is missing"): lambda x: x[0] / 2 * (1 + torch.erf(x[0])),
        say("the argument of erf is √2 x, expected x / √2"): lambda x: (
            x[0] / 2 * (1 + torch.erf(x[0] * math.sqrt(2)))
        ),
        say("the factor 1/2 is missing"): lambda x: 2 * erf(x[0]),
        say("1 is not added to erf"): lambda x: x[0] / 2 * torch.erf(x[0] / math.sqrt(2)),
        say("Φ(x) without the factor x"): lambda x: erf(x[0]) / x[0],
    }

    def is_elementary(layers: list[tuple[str, Any]]) -> None:
        if any(kind == "ACTIVATION" for kind, _ in layers):
            raise WrongAnswer(
                say("decomposed: the network has an ACTIVATION layer; expected elementary layers"),
                say("kind decomposed is made by TensorRT's own GELU"),
            )

    def case(kind: str, precision: str = "fp32") -> Case:
        return Case(
            say("kind {kind}", kind=kind),
            [Input((rng.random((batch, length, width)) * 8 - 5).astype(np.float32), (1,))],
            lambda helper, x: helper.addGELU(x[0], NAME, kind),
            lambda x: tanh(x[0]) if kind == "tanh" else erf(x[0]),
            precision,
            mistakes,
            {},
            (("UNARY",), ("ELEMENTWISE",)) if kind == "decomposed" else (("ACTIVATION", "UNARY"),),
            inspect=is_elementary if kind == "decomposed" else None,
        )

    return [case("erf"), case("tanh"), case("decomposed"), case("erf", "fp16")]


# --- 4 addEmbedding ---------------------------------------------------------------------------------------------


def embedding_cases(rng: np.random.Generator) -> list[Case]:
    """Ids (S,) and (B, S), a square table, and addGather along the second axis."""
    batch, length, rows, width = sizes(rng, 4)

    def case(title: str, shape: tuple[int, ...], wide: int, axis: int = 0) -> Case:
        table = normal(rng, rows, wide)
        if axis == 0:
            ids = rng.integers(0, rows, shape).astype(np.int32)
            inputs = [Input(ids, (len(shape) - 1,), trt.DataType.INT32)]
        else:
            ids = rng.integers(0, wide, shape).astype(np.int32)
            inputs = [Input(ids, (), trt.DataType.INT32), Input(normal(rng, rows, wide))]

        def take(along: int, x: list[torch.Tensor]) -> torch.Tensor:
            source = double(table) if axis == 0 else x[1]
            index = x[0].long()
            if along == 0:
                return source[index.clamp(max=source.shape[0] - 1)]
            return source[:, index.clamp(max=source.shape[1] - 1)]

        def add(helper: TrtNetworkHelper, x: list[trt.ITensor]) -> trt.ITensor:
            if axis:
                return helper.addGather(x[1], x[0], axis, NAME)
            return helper.addEmbedding(x[0], helper.addConstant(table, "table"), NAME)

        mistakes: dict[str, Answer] = {
            say(
                "the elements are taken along axis {other}, expected axis {axis}", other=1 - axis, axis=axis
            ): lambda x: take(1 - axis, x),
            say("the result has the right elements with its axes in another order"): lambda x: take(
                axis, x
            ).transpose(0, -1),
        }
        return Case(
            title,
            inputs,
            add,
            lambda x: take(axis, x),
            mistakes=mistakes,
            constants={"table": table} if axis == 0 else {},
            kinds=(("GATHER",),),
            exact=True,
        )

    return [
        case(say("table ({rows}, {width}), ids of rank 2", rows=rows, width=width), (batch, length), width),
        case(say("table ({rows}, {rows}), ids of rank 1", rows=rows), (length,), rows),
        case(say("addGather along axis 1"), (rows,), rows, axis=1),
    ]


# --- 5 addLayerNorm ---------------------------------------------------------------------------------------------


def layer_norm_cases(rng: np.random.Generator) -> list[Case]:
    """Ordinary rows, variances near epsilon, a large mean, values whose squares overflow fp16."""
    batch, length, width = sizes(rng, 3, 8)
    epsilon = float(rng.choice([2e-7, 3e-6, 4e-4]))

    def computes_in_fp32(layers: list[tuple[str, Any]]) -> None:
        for kind, layer in layers:
            if kind == "NORMALIZATION" and layer.get_input(0).dtype != FLOAT:
                raise WrongAnswer(
                    say("the normalization layer reads {found}; expected FLOAT", found=layer.get_input(0).dtype.name),
                    say("the statistics are computed in fp16, where squares overflow from 256 on"),
                )
            if kind == "NORMALIZATION" and np.float32(layer.epsilon) != np.float32(epsilon):
                raise WrongAnswer(
                    say(
                        "the normalization layer has the epsilon {found:.7g}; expected {epsilon:.7g}",
                        found=layer.epsilon,
                        epsilon=epsilon,
                    ),
                    say("the layer's epsilon is not set"),
                )

    def case(title: str, x: np.ndarray, precision: str = "fp32", otherwise: str = "", factor: float = 1.0) -> Case:
        gamma, beta = normal(rng, x.shape[-1]) + 1, normal(rng, x.shape[-1])
        g, b = double(gamma), double(beta)
        mistakes: dict[str, Answer] = {
            cause: (lambda x, mistaken=mistaken: mistaken(x[0]))
            for cause, mistaken in layer_norm_mistakes(g, b, epsilon).items()
        }
        return Case(
            title,
            [Input(x, (1,))],
            lambda helper, x: helper.addLayerNorm(x[0], gamma, beta, epsilon, NAME),
            lambda x: layer_norm(x[0], g, b, epsilon),
            precision,
            mistakes,
            {"gamma": gamma, "beta": beta},
            (("NORMALIZATION", "REDUCE"),),
            otherwise,
            inspect=computes_in_fp32,
            factor=factor,
        )

    def rows(scale: float = 1.0) -> np.ndarray:
        return normal(rng, batch, length, width, scale=scale)

    overflow = say("the squares overflow fp16: compute in fp32")
    return [
        case(say("ordinary rows"), rows() + 2),
        case(
            say("variance near epsilon"), rows(math.sqrt(epsilon)), otherwise=say("epsilon is not what was asked for")
        ),
        case(say("mean 100, deviation 1"), rows() + 100, otherwise=cancelled(), factor=10),
        case(say("in fp16"), rows(), "fp16"),
        case(say("in fp16, values of thousands"), rows(4000.0), "fp16", overflow),
    ]


# --- 6 self_attention -------------------------------------------------------------------------------------------


class RandomWeights:
    """Random parameters by name, drawn when they are first asked for; stands in for ``WeightFile``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.drawn: dict[str, np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A parameter."""
        if name not in self.drawn:
            scale = 1.0 if len(shape) == 1 else 1.5 / math.sqrt(shape[-1])
            self.drawn[name] = normal(self._rng, *shape, scale=scale)
        return self.drawn[name]


def attention_config(heads: int, size: int) -> BertConfig:
    """A model of which only the width and the number of heads matter."""
    hidden = heads * size
    return BertConfig(
        vocab_size=8, hidden_size=hidden, num_layers=1, num_heads=heads, intermediate_size=hidden, max_positions=64,
        type_vocab_size=2, layer_norm_eps=1e-12, activation="erf", tied_decoder=True, task=FILL_MASK,
        embedding_size=hidden, has_projection=False, has_relative_positions=False, head_activation="erf",
        pooler_activation="identity", labels=(), score_function="", pooling="", embedding_layers=(), normalize=False,
        truncated_length=64,
    )  # fmt: skip


Steps = dict[str, torch.Tensor]  # by the tensor's name, in the order of computation


def attend(
    x: torch.Tensor,
    weights: dict[str, torch.Tensor],
    heads: int,
    mask: torch.Tensor | None = None,
    factor: float | None = None,
    axis: int = -1,
    order: str = "qkv",
    transposes: bool = True,
) -> Steps:
    """Attention, (B, S, H) -> the steps by name; the arguments change one part of it each, for the mistakes."""
    batch, length, hidden = x.shape
    size = hidden // heads

    def split(part: str) -> torch.Tensor:
        y = x @ weights[f"{part}.weight"].T + weights[f"{part}.bias"]
        if not transposes:
            return y.reshape(batch, heads, length, size)
        return y.reshape(batch, length, heads, size).transpose(1, 2)

    names = {"q": "query", "k": "key", "v": "value"}
    query, key, value = (split(names[letter]) for letter in order)
    scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(size) if factor is None else factor)
    visible = scores if mask is None else scores + (mask[:, None, None, :].double() - 1) * 1e30
    probabilities = visible.softmax(axis)
    context = probabilities @ value
    result = context.transpose(1, 2) if transposes else context
    return {
        f"{NAME}.scores": scores,
        f"{NAME}.probabilities": probabilities,
        f"{NAME}.context": context,
        NAME: result.reshape(batch, length, hidden),
    }


@dataclass(frozen=True)
class AttentionAnswer:
    """What a student's self_attention computed.

    Attributes:
        title: the case, for messages.
        found: its tensors by name; the last one is the result.
        expected: the reference's tensors by the same names.
        mistakes: by the likely cause, the tensors that a mistake gives.
    """

    title: str
    found: Steps
    expected: Steps
    mistakes: dict[str, Steps]

    def check(self) -> None:
        """Compares the result, and if it is wrong, the tensors in the order of computation.

        Raises:
            WrongAnswer: the result is wrong; it names the first tensor that differs.
        """
        last = list(self.found)[-1]
        try:
            self._compare(last, "")
        except WrongAnswer as answer:
            for name in self.found:
                self._compare(name, answer.cause)
            raise

    def _compare(self, name: str, cause: str) -> None:
        expected = self.expected[name]
        found = self.found[name]
        found = found[None] if found.dim() == expected.dim() - 1 else found  # one sequence has no batch axis
        allowed = 4 * ROUNDING["fp32"]
        if is_close(found.double(), expected, allowed):
            return
        mistakes: Mistakes = {
            why: (lambda steps=steps: steps[name]) for why, steps in self.mistakes.items() if cause in ("", why)
        }
        compare(name, found, expected, allowed, mistakes, self.title, cause)


def check_attention(rng: np.random.Generator, padded: bool) -> None:
    """Grades self_attention for one sequence, or for a padded batch with a mask.

    Raises:
        WrongAnswer: a tensor differs; the first one is named.
    """
    heads, size = int(rng.integers(2, 5)), int(rng.choice([6, 8, 12]))
    batch = int(rng.integers(2, 4)) if padded else 1
    length = int(rng.choice([other for other in range(5, 14) if other not in (size, heads)]))
    config, weights = attention_config(heads, size), RandomWeights(rng)
    log = TrtLog()
    builder, network = create_builder(log)
    helper = TrtNetworkHelper(network, log, FLOAT)
    layout = (PaddedLayout if padded else SingleLayout)(helper, config.max_positions)
    any_weights: Any = weights
    layers = NativeLayers(helper, config, any_weights, layout, Products(helper))
    x = helper.addInput("x", FLOAT, (-1, -1, config.hidden_size) if padded else (-1, config.hidden_size))
    result = check_result(layers.self_attention(x, NAME), FLOAT)
    helper.markOutput(result, result.name)

    known = {f"{NAME}.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")}
    missing = sorted(known - weights.drawn.keys())
    if missing:
        raise WrongAnswer(
            say("self_attention does not read {name}", name=missing[0]), say("one of Q, K and V is not computed")
        )
    values = normal(rng, batch, length, config.hidden_size)
    mask = (np.arange(length) < rng.integers(1, length, batch)[:, None]).astype(np.int32) if padded else None
    wide = {name.removeprefix(f"{NAME}."): double(drawn) for name, drawn in weights.drawn.items()}
    arguments = (torch.from_numpy(values).double(), wide, heads)
    seen = None if mask is None else torch.from_numpy(mask)
    mistakes = {
        cause: attend(*arguments, seen, **change) for cause, change in attention_mistakes(heads, size).items()
    }
    if padded:
        mistakes[say("the mask (self.score_bias) is not added to the scores")] = attend(*arguments)

    read = [read_layer(network, index) for index in range(network.num_layers)]
    expected = attend(*arguments, seen)
    compared = [name for name in expected if name in {layer.get_output(0).name for _, layer in read}]
    inputs = {"x": values} | {MASK_NAME: mask} if mask is not None else {"x": values[0]}
    contents = NetworkContents(helper.weights)
    kind = say("a padded batch with a mask") if padded else say("one sequence")
    title = f"{kind}: x {list(inputs['x'].shape)}, {heads} heads of {size}"
    found = run(NetworkRunner(network, "cpu", compared, contents, inputs=list(inputs)), inputs, title)
    AttentionAnswer(title, found, expected, mistakes).check()
    check_constants(read, contents, {name: weights.drawn[name] for name in known}, title)
    del builder  # lives as long as its network


def attention_mistakes(heads: int, size: int) -> dict[str, dict[str, Any]]:
    """By the likely cause, the argument of ``attend`` that a mistake changes."""
    return {
        say("the scale 1/√D is missing"): {"factor": 1.0},
        say("the scores are divided by D, expected √D"): {"factor": 1 / size},
        say("the scores are divided by √H, expected √D; D = H / N is the width of a head"): {
            "factor": 1 / math.sqrt(heads * size)
        },
        say("the softmax is along the queries, expected the last axis, the keys"): {"axis": -2},
        say("Q and K are exchanged"): {"order": "kqv"},
        say("K and V are exchanged"): {"order": "qvk"},
        say("Q in the place of K"): {"order": "qqv"},
        say("K in the place of V"): {"order": "qkk"},
        say("the heads are split by a reshape alone, without the transpose (S, N, D) -> (N, S, D)"): {
            "transposes": False
        },
    }


# --- 7 the LayerNorm plugin -------------------------------------------------------------------------------------


def check_plugin(rng: np.random.Generator, precision: str, kernel: str) -> None:
    """Puts the plugin into a network and looks at its fields, inputs and answer.

    Raises:
        WrongAnswer: something is wrong.
        UserError: the plugin library is not built, or TensorRT refuses the layer.
    """
    length, width = sizes(rng, 2, 4)
    epsilon = float(rng.choice([2e-7, 3e-6, 4e-4]))
    gamma, beta = normal(rng, width) + 1, normal(rng, width)
    title = say(
        "kernel {kernel!r}, epsilon {epsilon:g}, {precision}", kernel=kernel, epsilon=epsilon, precision=precision
    )

    def define(helper: TrtNetworkHelper) -> trt.ITensor:
        x = helper.addInput("x", FLOAT, (-1, width))  # fp32, as a residual sum is: the plugin reads the helper's type
        result = check_result(helper.addLayerNorm(x, gamma, beta, epsilon, NAME, kernel), helper.dtype)
        return helper.markOutput(result, "result")

    log = TrtLog()
    builder, helper, _ = define_network(log, ELEMENT_TYPES[precision].trt, define)
    layers = [read_layer(helper.network, index) for index in range(helper.network.num_layers)]
    plugins = [layer for kind, layer in layers if kind == "PLUGIN_V3"]
    if len(plugins) != 1:
        raise WrongAnswer(
            say("{title}: the network has {count} plugin layers; expected one", title=title, count=len(plugins))
        )
    described = helper.plugin_layers[plugins[0].name]
    if described.plugin != "LayerNorm":
        raise WrongAnswer(
            say("{title}: the plugin is {found!r}; expected 'LayerNorm'", title=title, found=described.plugin)
        )
    for name, value in {"epsilon": epsilon, "kernel": kernel}.items():
        if described.fields.get(name) != value:
            cause = say("the field {name} is not what addLayerNorm was asked for", name=name)
            raise WrongAnswer(
                say(
                    "{title}: the field {name} is {found!r}; expected {value!r}",
                    title=title,
                    name=name,
                    found=described.fields.get(name),
                    value=value,
                ),
                cause,
            )
    if len(input_names(plugins[0])) != 3:
        raise WrongAnswer(
            say(
                "{title}: the plugin has {count} inputs; expected x, gamma, beta",
                title=title,
                count=len(input_names(plugins[0])),
            )
        )
    types = [plugins[0].get_input(index).dtype for index in range(3)]
    if types[0] != helper.dtype:
        raise WrongAnswer(
            say(
                "{title}: the plugin reads {found}; expected {wanted}",
                title=title,
                found=types[0].name,
                wanted=helper.dtype.name,
            ),
            say("the cast of x is missing"),
        )
    contents = NetworkContents(helper.weights, helper.plugin_layers)
    x = normal(rng, length, width, scale=math.sqrt(epsilon))
    found = run(NetworkRunner(helper.network, contents=contents), {"x": x}, title)["result"]
    wide, g, b = as_stored(x, precision), double(gamma), double(beta)
    mistakes: Mistakes = {
        cause: (lambda mistaken=mistaken: mistaken(wide))
        for cause, mistaken in layer_norm_mistakes(g, b, epsilon).items()
    }
    compare(
        "result",
        found,
        layer_norm(wide, g, b, epsilon),
        4 * ROUNDING[precision],
        mistakes,
        f"{title}: x {list(x.shape)}",
    )
    check_constants(layers, contents, {"gamma": gamma, "beta": beta}, title)
    del builder


# --- the tasks --------------------------------------------------------------------------------------------------

CASES: dict[int, Callable[[np.random.Generator], list[Case]]] = {
    1: linear_cases,
    2: softmax_cases,
    3: gelu_cases,
    4: embedding_cases,
    5: layer_norm_cases,
}


def check(task: Task, seed: int) -> Grade:
    """Grades a network task.

    Raises:
        WrongAnswer: something is wrong.
    """
    rng = np.random.default_rng([seed, task.number])
    if task.number in CASES:
        first_answer([case.run for case in CASES[task.number](rng)])
    elif task.page == "self_attention":
        first_answer([lambda padded=padded: check_attention(rng, padded) for padded in (False, True)])
    else:
        kernels = [("fp32", "fused"), ("fp16", "basic"), ("fp16", "fast")]
        first_answer([lambda pair=pair: check_plugin(rng, *pair) for pair in kernels])
    return Grade(RIGHT)
