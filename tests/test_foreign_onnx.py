"""ONNX files that others exported: by both of PyTorch's exporters, renamed, fixed, quantized, damaged, no BERT."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx import helper as onnx_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

import builder
import onnx2trt
from bert_trt import network_runner, onnx_precision
from bert_trt.console import UserError
from bert_trt.foreign_onnx import ForeignModel, output_error, parse_foreign
from bert_trt.network_runner import NetworkRunner
from bert_trt.onnx_precision import NarrowGraph
from bert_trt.options import TOLERANCES, SequenceRange
from bert_trt.tensorrt_log import TrtLog

USUAL = ("input_ids", "attention_mask", "token_type_ids")
VOCABULARY, POSITIONS = 60, 64


class Positional(torch.nn.Module):
    """A transformers model whose inputs are given by place, as exporters want them."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)


def random_bert(kind: Any, attention: str) -> torch.nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=POSITIONS,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if "LayerNorm" in name else 0.15
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, spread)
    return model.eval()


def export(
    path: Path,
    kind: Any = BertForMaskedLM,
    attention: str = "eager",
    dynamo: bool = False,
    opset: int = 14,
    dynamic: bool = True,
    arguments: tuple[str, ...] = USUAL,
    names: tuple[str, ...] | None = None,
    batch: int = 2,
) -> Path:
    """Exports a small random BERT as others do."""
    ids = torch.randint(5, VOCABULARY, (batch, 8))
    values = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(8).repeat(batch, 1),
    }
    names = names or arguments
    options: dict[str, Any] = {}
    if dynamic and dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=POSITIONS)}
        options["dynamic_shapes"] = (tuple(axes for _ in names),)
    elif dynamic:
        options["dynamic_axes"] = {name: {0: "batch", 1: "sequence"} for name in names}
    model = Positional(random_bert(kind, attention), arguments).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(values[name] for name in arguments),
            path,
            input_names=list(names),
            dynamo=dynamo,
            opset_version=opset,
            verbose=False,
            **options,
        )
    return path


Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``export`` into a folder of its own, once for the same arguments."""
    made: dict[str, Path] = {}

    def once(**options: Any) -> Path:
        key = repr(sorted(options.items(), key=str))
        if key not in made:
            made[key] = export(tmp_path_factory.mktemp("foreign") / "bert.onnx", **options)
        return made[key]

    return once


def feeds(path: Path, batch: int, length: int, hidden: int = 0) -> dict[str, np.ndarray]:
    """A batch for a file with the usual inputs: all but the first padded, the first ``hidden`` hidden altogether."""
    model = ForeignModel.load(path, {})
    feed = model.examples(SequenceRange(length, length, length), SequenceRange(batch, batch, batch))[0]
    if hidden:
        feed["attention_mask"][:hidden] = 0
    return feed


Batches = Sequence[Mapping[str, np.ndarray]]


def errors(path: Path, precision: str, batches: Batches, in_fp32: bool = False) -> list[float]:
    """The errors of every output of the parsed and converted network, against onnxruntime."""
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    defined = parse_foreign(ForeignModel.load(path, {}), precision, TrtLog())
    runner = NetworkRunner(defined.network, contents=defined.contents, in_fp32=in_fp32, checks_batch=False)
    results = []
    for batch in batches:
        outputs = [value.float().numpy() for value in runner.run(batch).values()]
        results += map(output_error, outputs, session.run(None, dict(batch)))
    return results


EXPORTS = [
    *({"attention": "eager", "opset": opset} for opset in (11, 14, 17, 20)),
    *({"attention": "sdpa", "opset": opset} for opset in (14, 20)),
    *({"attention": "eager", "opset": opset, "dynamo": True} for opset in (18, 23)),
    *({"attention": "sdpa", "opset": opset, "dynamo": True} for opset in (18, 20, 23)),
    {"kind": BertModel, "attention": "sdpa", "opset": 17},
    {"kind": BertForSequenceClassification, "opset": 14},
    {"kind": BertForSequenceClassification, "attention": "sdpa", "opset": 18, "dynamo": True},
    {"arguments": ("input_ids",), "attention": "sdpa"},
    {"arguments": ("input_ids", "attention_mask")},
    {"arguments": (*USUAL, "position_ids"), "attention": "sdpa"},
]


@pytest.mark.parametrize("options", EXPORTS, ids=lambda options: "-".join(map(str, options.values())))
def test_exports_of_both_kinds_and_many_opsets_equal_onnxruntime(exported, options):
    path = exported(**options)
    for precision in ("fp32", "fp16", "bf16"):
        batches = [feeds(path, 1, 1), feeds(path, 3, 40)]
        assert max(errors(path, precision, batches)) <= TOLERANCES[precision]
        if precision != "fp32":
            assert max(errors(path, precision, batches, in_fp32=True)) <= TOLERANCES["fp32"]


# --- the script -----------------------------------------------------------------------------------------------


def test_a_file_by_itself_is_built_and_compared(exported, in_process, tmp_path):
    path, plan, results = exported(), tmp_path / "a.plan", tmp_path / "a.json"
    ended = in_process(onnx2trt.main, "--onnx", path, "--precision", "fp16", "--plan", plan, "--json", results)
    assert ended.code == 0, ended.err
    assert "agrees with onnxruntime" in ended.out
    told = json.loads(results.read_text())
    assert told["inputs"] == {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    assert told["profile"]["input_ids"] == [[1, 1], [8, 32], [32, POSITIONS]]  # no longer than the position table
    assert told["within_tolerance"] is True
    assert 1e-5 < max(told["errors"].values()) <= told["tolerance"] == TOLERANCES["fp16"]
    assert max(told["structure"].values()) <= TOLERANCES["fp32"]
    assert plan.stat().st_size == told["plan_bytes"]


def test_the_plan_lies_beside_the_file_unless_named(exported, in_process, tmp_path):
    path = shutil.copy(exported(dynamic=False, batch=1), tmp_path / "mine.onnx")
    assert in_process(onnx2trt.main, "--onnx", path).code == 0
    assert in_process(onnx2trt.main, "--onnx", path, "--precision", "bf16").code == 0
    assert {"mine.plan", "mine.bf16.plan"} < {one.name for one in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "names",
    [
        ("ids", "mask", "types"),
        ("input_ids:0", "input_mask:0", "segment_ids:0"),
        ("Serving/Input_Ids", "Attention_Mask", "token_types"),
    ],
)
def test_inputs_are_known_by_their_usual_names(exported, names):
    path = exported(names=names)
    model = ForeignModel.load(path, {})
    assert [one.role for one in model.inputs] == ["ids", "mask", "types"]
    assert dict(model.rows) == {"ids": VOCABULARY, "types": 2, "positions": POSITIONS}
    assert max(errors(path, "fp32", [feeds(path, 2, 8)])) <= TOLERANCES["fp32"]


def test_inputs_of_other_names_are_named_by_hand(exported, in_process, tmp_path):
    path = exported(names=("x.1", "x.2", "x.3"), dynamic=False)
    ended = in_process(onnx2trt.main, "--onnx", path)
    assert ended.code == 1
    assert "'x.1' INT64 [2,8], 'x.2' INT64 [2,8], 'x.3' INT64 [2,8]" in ended.err
    assert "--inputs ids=NAME,mask=NAME" in ended.err
    plan = tmp_path / "a.plan"
    ended = in_process(onnx2trt.main, "--onnx", path, "--inputs", "ids=x.1,mask=x.2,types=x.3", "--plan", plan)
    assert ended.code == 0, ended.err
    ended = in_process(onnx2trt.main, "--onnx", path, "--inputs", "ids=x.9", "--plan", plan)
    assert (ended.code, "has no input 'x.9'" in ended.err) == (1, True)


@pytest.mark.parametrize("dynamo", [False, True])
def test_fixed_shapes(exported, in_process, tmp_path, dynamo):
    path = exported(dynamic=False, dynamo=dynamo, opset=20, attention="sdpa")
    results = tmp_path / "a.json"
    ended = in_process(onnx2trt.main, "--onnx", path, "--plan", tmp_path / "a.plan", "--json", results)
    assert ended.code == 0, ended.err
    assert json.loads(results.read_text())["profile"]["input_ids"] == [[2, 8]] * 3
    for option, told in (("--seq-len", "the fixed length 8"), ("--batch", "the fixed batch 2")):
        ended = in_process(onnx2trt.main, "--onnx", path, option, "1,8,16")
        assert (ended.code, f"{told}; leave {option} out" in ended.err) == (1, True)


def test_a_dynamic_batch_of_a_fixed_length(exported, tmp_path):
    """The one dynamic axis is the batch, not the length."""
    path = tmp_path / "bert.onnx"
    model = onnx.load(exported())
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, path)
    foreign = ForeignModel.load(path, {})
    seq_len, batch = foreign.sequence_range(None), foreign.batch_range(None)
    assert foreign.profile(seq_len, batch)["attention_mask"] == [[1, 8], [8, 8], [32, 8]]


def test_a_longer_sequence_than_the_position_table_is_refused(exported, in_process):
    ended = in_process(onnx2trt.main, "--onnx", exported(), "--seq-len", "1,32,65")
    assert (ended.code, "maximum 65 is more than the 64 positions" in ended.err) == (1, True)


def test_weights_may_lie_in_another_file(exported, in_process, tmp_path):
    source = exported(dynamo=True, opset=20, attention="sdpa")
    path, data = tmp_path / source.name, source.with_name(f"{source.name}.data")
    shutil.copy(source, path)
    path.with_name(data.name).symlink_to(data)  # as in the cache of a hub
    for precision in ("fp32", "fp16"):
        ended = in_process(onnx2trt.main, "--onnx", path, "--precision", precision)
        assert ended.code == 0, ended.out + ended.err


def test_whole_numbers_among_the_outputs(exported, tmp_path):
    path = append(exported(), tmp_path / "cast.onnx", "Cast", "whole", TensorProto.INT64, to=TensorProto.INT64)
    assert max(errors(path, "fp32", [feeds(path, 3, 8)])) <= TOLERANCES["fp32"]
    assert output_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25


def append(
    source: Path, path: Path, operator: str, name: str, kind: int, domain: str = "", **attributes: Any
) -> Path:
    """The file with one more node after its first output, and that node's output."""
    model = onnx.load(source)
    last = model.graph.output[0].name
    model.graph.node.append(
        onnx_helper.make_node(operator, [last], [name], name=f"the_{name}", domain=domain, **attributes)
    )
    model.graph.output.append(onnx_helper.make_tensor_value_info(name, kind, None))
    if domain:
        model.opset_import.append(onnx_helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    return path


def test_a_layer_that_only_the_runner_lacks_is_no_failure_of_the_plan(exported, in_process, tmp_path):
    path = append(exported(), tmp_path / "best.onnx", "ArgMax", "best", TensorProto.INT64, axis=-1, keepdims=0)
    results = tmp_path / "a.json"
    ended = in_process(onnx2trt.main, "--onnx", path, "--json", results)
    assert ended.code == 1
    assert "agrees with onnxruntime    │ not compared" in ended.out
    assert "The plan is written, but not compared: network_runner cannot run layer 'the_best': type TOPK" in ended.out
    told = json.loads(results.read_text())
    assert told["within_tolerance"] is None
    assert Path(told["plan"]).stat().st_size == told["plan_bytes"] > 0


def test_what_onnxruntime_refuses_is_not_compared(exported, in_process, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for\nthis")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    path = exported(dynamic=False, batch=1)
    ended = in_process(onnx2trt.main, "--onnx", path)
    assert (ended.code, "not compared: onnxruntime cannot run" in ended.out) == (1, True)
    assert "no kernel for this" in ended.out


def test_what_the_runner_cannot_run_is_not_compared(exported, in_process, monkeypatch):
    def fail(*_: Any) -> None:
        raise IndexError("index 9 is out of bounds")

    monkeypatch.setitem(network_runner.RULES, "SLICE", lambda layer: (fail,))
    ended = in_process(onnx2trt.main, "--onnx", exported())
    assert (ended.code, "not compared: network_runner cannot run the network: index 9" in ended.out) == (1, True)


def test_another_answer_is_a_no(exported, in_process, monkeypatch):
    monkeypatch.setitem(network_runner.ACTIVATIONS, "TANH", torch.sigmoid)
    path = exported(kind=BertForSequenceClassification, dynamic=False, batch=1)
    ended = in_process(onnx2trt.main, "--onnx", path)
    assert (ended.code, "agrees with onnxruntime" in ended.out, " NO " in ended.out) == (1, True, True)


def test_a_constant_that_is_not_what_it_was_made_from(exported, in_process, monkeypatch):
    convert = onnx_precision.convert_weight

    def lose(values: np.ndarray, dtype: Any, name: str) -> np.ndarray:
        return convert(values * np.float32(0.99) if name.endswith("output.dense.bias") else values, dtype, name)

    monkeypatch.setattr(onnx_precision, "convert_weight", lose)
    ended = in_process(onnx2trt.main, "--onnx", exported(dynamic=False, batch=1), "--precision", "fp16")
    assert (ended.code, "does not hold the values of its source" in ended.err) == (1, True)


def test_a_difference_that_fp16_hides_is_found_without_the_roundings(exported, in_process, monkeypatch, tmp_path):
    convert = NarrowGraph.run

    def other_epsilon(self: NarrowGraph) -> None:
        convert(self)
        for node in self.model.graph:
            if node.op_type == "LayerNormalization":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 2e-4)

    monkeypatch.setattr(NarrowGraph, "run", other_epsilon)
    path, results = exported(dynamic=False, batch=1, opset=17), tmp_path / "a.json"
    ended = in_process(onnx2trt.main, "--onnx", path, "--precision", "fp16", "--json", results)
    told = json.loads(results.read_text())
    assert max(told["errors"].values()) <= told["tolerance"]
    assert max(told["structure"].values()) > TOLERANCES["fp32"]
    assert (ended.code, told["within_tolerance"]) == (1, False)


def test_onnxruntime_that_is_not_installed_is_named_first(exported, in_process, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ended = in_process(onnx2trt.main, "--onnx", exported(), "--plan", tmp_path / "a.plan")
    assert ended.code == 1
    assert "install it: pip install -r requirements-onnx.txt" in ended.err
    assert not (tmp_path / "a.plan").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--precision", "int8"], "--precision int8 needs a folder by model2onnx.py"),
        (["--fusion", "tensorrt"], "--layer-norm and --fusion need a folder"),
        (["--inputs", "ids"], "'ids': expected ROLE=NAME with one of ids, mask, types, positions"),
    ],
)
def test_options_without_a_meaning_are_wrong_usage(in_process, options, told):
    ended = in_process(onnx2trt.main, "--onnx", "bert.onnx", *options)
    assert (ended.code, told in ended.err) == (2, True)


def test_options_of_a_file_need_the_file(in_process):
    ended = in_process(onnx2trt.main, "--batch", "1,2,3")
    assert (ended.code, "belong to --onnx FILE" in ended.err) == (2, True)


# --- masks in a narrow type -----------------------------------------------------------------------------------

MASKED = [
    {"opset": 11},
    {"opset": 14, "attention": "sdpa"},
    {"opset": 20, "dynamo": True},
    {"opset": 20, "dynamo": True, "attention": "sdpa"},
]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("options", MASKED, ids=lambda options: "-".join(map(str, options.values())))
def test_a_sequence_without_any_visible_token(exported, options, precision):
    """Every score has −3.4e38 added: the probabilities are all the same, and none is NaN."""
    path = exported(**options)
    assert max(errors(path, precision, [feeds(path, 3, 8, hidden=1)])) <= TOLERANCES[precision]


def masked(path: Path, lowest: float, operator: str, given: bool = False) -> Path:
    """words → scores + (1 − mask) · lowest → softmax, or with the sum as mask of an Attention node; 2 heads of 32.

    ``given``: what is added is an input, fp32 (B, 1, 1, S).
    """
    table = np.random.default_rng(0).standard_normal((VOCABULARY, 64)).astype(np.float32)
    one, low = np.float32(1), np.float32(lowest)
    nodes = [
        ("Gather", ["table", "input_ids"], "x", {}),
        ("Reshape", ["x", "heads"], "split", {}),
        ("Transpose", ["split"], "q", {"perm": [0, 2, 1, 3]}),  # (B, 2, S, 32)
        ("Cast", ["attention_mask"], "visible", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["visible", "axes"], "row", {}),  # (B, 1, 1, S)
        ("Sub", ["one", "row"], "hidden", {}),
        ("Mul", ["hidden", "low"], "bias", {}),
    ]
    if given:
        nodes[3:] = [("Identity", ["attention_mask"], "bias", {})]
    if operator == "Attention":
        nodes += [
            ("Shape", ["input_ids"], "shape", {}),
            ("Gather", ["shape", "first"], "length", {}),
            ("Concat", ["ones", "length", "unit"], "square", {"axis": 0}),
            ("Expand", ["bias", "square"], "whole", {}),  # (B, 1, S, S)
            ("Attention", ["q", "q", "q", "whole"], "y", {}),
        ]
    else:
        nodes += [
            ("Transpose", ["split"], "k", {"perm": [0, 2, 3, 1]}),
            ("MatMul", ["q", "k"], "scores", {}),
            ("Add", ["scores", "bias"], "masked", {}),
            ("Softmax", ["masked"], "probabilities", {"axis": -1}),
            ("MatMul", ["probabilities", "q"], "y", {}),
        ]
    constants = {
        "table": table,
        "heads": np.array([0, 0, 2, 32]),
        "axes": np.array([1, 2]),
        "one": one,
        "low": low,
        "first": np.array([1]),
        "ones": np.array([1, 1]),
        "unit": np.array([1]),
    }
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    graph = onnx_helper.make_graph(
        [onnx_helper.make_node(kind, inputs, [name], name=name, **more) for kind, inputs, name, more in nodes],
        "masked",
        [
            onnx_helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
            onnx_helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, ["B", 1, 1, "S"])
            if given
            else onnx_helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "S"]),
        ],
        [onnx_helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items() if name in used],
    )
    onnx.save(onnx_helper.make_model(graph, opset_imports=[onnx_helper.make_opsetid("", 23)], ir_version=10), path)
    return path


LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("lowest", [LOWEST, -1e9, -10000.0])
def test_masks_by_a_product(tmp_path, lowest, precision):
    path = masked(tmp_path / "masked.onnx", lowest, "Softmax")
    batches = [feeds(path, 3, 8), feeds(path, 3, 8, hidden=1)]
    assert max(errors(path, precision, batches)) <= TOLERANCES[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_mask_that_must_become_narrow_is_clamped(tmp_path, precision):
    path = masked(tmp_path / "masked.onnx", LOWEST, "Attention")
    assert max(errors(path, precision, [feeds(path, 3, 8)])) <= TOLERANCES[precision]
    hidden = max(errors(path, precision, [feeds(path, 3, 8, hidden=1)]))
    assert np.isfinite(hidden)  # −65504 + score is no longer −65504 for every score: finite, but not the same


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_mask_that_is_added_is_an_input(tmp_path, precision):
    path = masked(tmp_path / "masked.onnx", 0.0, "Softmax", given=True)
    batch = feeds(path, 3, 8)
    assert batch["attention_mask"].shape == (3, 1, 1, 8)
    assert sorted(set(batch["attention_mask"].ravel())) == [LOWEST, 0.0]
    assert max(errors(path, precision, [batch])) <= TOLERANCES[precision]


def test_a_weight_beyond_fp16_is_named(exported, tmp_path):
    path = tmp_path / "bert.onnx"
    model = onnx.load(exported())
    weight = next(one for one in model.graph.initializer if "MatMul" in one.name)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with pytest.raises(
        UserError, match=r"has the value 100000, beyond the largest of HALF .*--precision bf16 or fp32"
    ):
        parse_foreign(ForeignModel.load(path, {}), "fp16", TrtLog())


def test_layer_norms_are_computed_in_fp32(exported):
    """An epsilon of 1e-12 is 0 in fp16, and squares of deviations overflow; written out, in opset 14."""
    model = ir.load(exported(opset=14))
    NarrowGraph(model, "fp16").run()
    makers = {node.op_type: node for node in model.graph}
    wide = [makers[operator].inputs[0] for operator in ("Sqrt", "Pow", "Softmax")]
    assert {value.dtype for value in wide if value is not None} == {ir.DataType.FLOAT}
    products = [node for node in model.graph if node.op_type == "MatMul"]
    factors = [value for node in products for value in node.inputs]
    assert {value.dtype for value in factors if value is not None} == {ir.DataType.FLOAT16}
    assert len(products) == 18


# --- quantized files ------------------------------------------------------------------------------------------


class Sentences(CalibrationDataReader):
    def __init__(self, path: Path) -> None:
        self.left = [feeds(path, 3, 8), feeds(path, 2, 16)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def test_a_symmetric_int8_file_is_built_as_it_is(exported, in_process, tmp_path):
    path = tmp_path / "int8.onnx"
    quantize_static(
        exported(),
        path,
        Sentences(exported()),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    results = tmp_path / "a.json"
    ended = in_process(onnx2trt.main, "--onnx", path, "--json", results)
    assert ended.code == 0, ended.err
    assert json.loads(results.read_text())["tolerance"] == TOLERANCES["int8"]
    ended = in_process(onnx2trt.main, "--onnx", path, "--precision", "fp16")
    assert (ended.code, "quantized already; build it as it is, with --precision fp32" in ended.err) == (1, True)


def test_what_the_parser_refuses_is_told_in_its_own_words(exported, in_process, tmp_path):
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(exported(), path, weight_type=QuantType.QInt8)
    ended = in_process(onnx2trt.main, "--onnx", path)
    assert ended.code == 1
    assert "the ONNX parser refuses" in ended.err
    assert "(DequantizeLinear)" in ended.err
    assert "Non-zero zero point is not supported" in ended.err
    assert not path.with_suffix(".plan").exists()


def test_an_operator_of_onnxruntimes_own(exported, in_process, tmp_path):
    path = append(exported(), tmp_path / "own.onnx", "FastGelu", "own", TensorProto.FLOAT, domain="com.microsoft")
    ended = in_process(onnx2trt.main, "--onnx", path)
    assert ended.code == 1
    assert "(FastGelu)" in ended.err


# --- damaged, missing, something else -------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        ForeignModel.load(path, {})
    return str(raised.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file(exported, tmp_path, share):
    whole = exported().read_bytes()
    (tmp_path / "a.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert refusal(tmp_path / "a.onnx").startswith(f"{tmp_path / 'a.onnx'} is not a readable ONNX file (")


def test_an_empty_file_a_folder_and_none(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    assert "it is empty or truncated" in refusal(tmp_path / "a.onnx")
    assert "is a folder; name the .onnx file in it" in refusal(tmp_path)
    assert refusal(tmp_path / "b.onnx") == f"no ONNX file at {tmp_path / 'b.onnx'}"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("gone.data", "gone.data, where weight 'model.*' lies: No such file or directory; it belongs beside"),
        ("../bert.onnx.data", "lies in '../bert.onnx.data', outside the file's folder"),
        ("/etc/passwd", "lies in '/etc/passwd', outside the file's folder"),
        ("short.data", "short.data has 100 bytes, but weight 'model.*' ends at byte"),
    ],
)
def test_weights_that_are_not_there(exported, tmp_path, location, told):
    model = onnx.load(exported(dynamo=True, opset=20, attention="sdpa"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "short.data").write_bytes(bytes(100))
    with pytest.raises(UserError, match=told):
        ForeignModel.load(tmp_path / "a.onnx", {})


def test_a_file_that_is_no_bert(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.nn.Conv2d(3, 8, 3),
            (torch.zeros(1, 3, 8, 8),),
            tmp_path / "a.onnx",
            input_names=["data"],
            dynamo=False,
        )
    assert "has the inputs 'data' FLOAT [1,3,8,8]; expected those of a BERT: token ids" in refusal(
        tmp_path / "a.onnx"
    )


def test_the_file_and_its_data_are_not_overwritten(exported, in_process):
    path = exported(dynamo=True, opset=20, attention="sdpa")
    files = [path, path.with_name(f"{path.name}.data")]
    before = [file.read_bytes() for file in files]
    names = ("--onnx", f"the weights in {files[1].name}")
    for option, file, name in zip(("--plan", "--json"), files, names, strict=True):
        ended = in_process(onnx2trt.main, "--onnx", path, option, file)
        assert (ended.code, f"{option} {file} would overwrite {name} ({file})" in ended.err) == (1, True)
    assert [file.read_bytes() for file in files] == before


def test_the_results_do_not_overwrite_the_plans_description(exported, in_process, tmp_path):
    plan = tmp_path / "a.plan"
    ended = in_process(onnx2trt.main, "--onnx", exported(), "--plan", plan, "--json", f"{plan}.json")
    assert (ended.code, f"--json {plan}.json would overwrite the plan's description" in ended.err) == (1, True)
    assert not plan.exists()


def test_builder_says_what_folder_it_wants(exported, in_process):
    path = exported()
    ended = in_process(builder.main, "--model-dir", path)
    assert (ended.code, f"{path} is a file, expected a folder by model2onnx.py" in ended.err) == (1, True)
    ended = in_process(builder.main, "--model-dir", path.parent)
    assert (ended.code, f"{path.parent} was not written by model2onnx.py" in ended.err) == (1, True)
    assert "python onnx2trt.py --onnx FILE" in ended.err
