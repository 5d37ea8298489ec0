"""Builds BERT from the same ONNX file through TensorRT's ONNX parser, for comparison with builder.py.

    python model2onnx.py                       writes out/
    python onnx2trt.py                         fp32 plan, run, compared with PyTorch
    python onnx2trt.py --precision fp16

The network is strongly typed, so fp16 has to stand in the ONNX model: its weights and tensors are converted
before it is parsed, and layer norm and softmax keep computing in fp32. (On TensorRT 11 a mere request for
fp16 would be built as fp32 without a word.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper as onnx_helper
from onnx import numpy_helper

from common import UserError, run_script
from model_files import ModelFolder, WeightFile, load_onnx
from pipeline import Job, add_common_arguments, finish, print_report
from tensorrt_product import trt
from trt_helper import DTYPES, TrtLog, convert_weight, create_builder

ONNX_TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
WIDE_OPERATORS = ("LayerNormalization", "Softmax")  # compute in fp32 whatever the type around them
LARGEST_MODEL = 2**31 - 1  # bytes; protobuf's limit for one message


def convert_precision(model: onnx.ModelProto, weights: WeightFile, precision: str) -> dict[str, np.ndarray]:
    """Turns an fp32 graph into an fp16 or bf16 one, in place.

    Every fp32 tensor becomes narrow, except around ``WIDE_OPERATORS``, whose inputs are cast to fp32 and whose
    outputs are cast back, and the graph's outputs, which stay fp32.

    Args:
        model: the graph; its weights may lie in a data file.
        weights: that data file.
        precision: "fp16" or "bf16".

    Returns:
        The converted weights by name.

    Raises:
        UserError: a weight does not fit the precision; the message names it.
    """
    narrow = ONNX_TYPES[precision]
    graph = model.graph
    wide_weights = {name for node in graph.node if node.op_type in WIDE_OPERATORS for name in node.input[1:]}
    converted: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in wide_weights:
            values = convert_weight(weights.get(tensor.name, tuple(tensor.dims)), DTYPES[precision], tensor.name)
            converted[tensor.name] = values
            graph.initializer[index].CopyFrom(_tensor(tensor.name, values, narrow))
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            values = weights.get(tensor.name, tuple(tensor.dims))
            graph.initializer[index].CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = [converted_node for node in graph.node for converted_node in _convert_node(node, narrow)]
    outputs = {value.name for value in graph.output}
    for node in nodes:  # the graph's outputs stay fp32: what made them makes NAME_narrow, and a cast follows
        for place, name in enumerate(node.output):
            if name in outputs and node.op_type != "Cast":
                node.output[place] = f"{name}_narrow"
    nodes += [_cast(f"{name}_narrow", name, onnx.TensorProto.FLOAT) for name in sorted(outputs)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return converted


def _convert_node(node: onnx.NodeProto, narrow: int) -> list[onnx.NodeProto]:
    """The node itself, or for a wide operator: cast to fp32, the node, cast back."""
    if node.op_type not in WIDE_OPERATORS:
        return [node]
    wide_in, wide_out = f"{node.input[0]}_wide_for_{node.name}", f"{node.output[0]}_wide"
    before = _cast(node.input[0], wide_in, onnx.TensorProto.FLOAT)
    after = _cast(wide_out, node.output[0], narrow)
    node.input[0], node.output[0] = wide_in, wide_out
    return [before, node, after]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx_helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _tensor(name: str, values: np.ndarray, onnx_type: int) -> onnx.TensorProto:
    return onnx_helper.make_tensor(name, onnx_type, values.shape, values.tobytes(), raw=True)


def parse(model_path: Path, precision: str, log: TrtLog) -> ParsedNetwork:
    """Parses the ONNX file, converted to the precision.

    Raises:
        UserError: the file is missing or corrupt, a weight does not fit, or the parser refuses a node; the
            message carries the parser's own words.
    """
    weights = WeightFile(model_path)
    builder, network = create_builder(log)
    parser = trt.OnnxParser(network, log)
    known_weights: Mapping[str, np.ndarray] = {}
    if precision == "fp32":
        parsed = parser.parse_from_file(str(model_path))
    else:
        model = load_onnx(model_path)
        known_weights = convert_precision(model, weights, precision)
        if model.ByteSize() > LARGEST_MODEL:
            raise UserError(f"{model_path} is larger than 2 GiB in {precision}; use builder.py, which has no limit")
        parsed = parser.parse(model.SerializeToString())
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors)
        raise UserError(f"the ONNX parser refuses {model_path}: {told or log.take_errors()}")
    return ParsedNetwork(builder, network, parser, known_weights, weights)


class ParsedNetwork:
    """A network that the parser made, and what must live as long as it."""

    def __init__(
        self,
        builder: trt.Builder,
        network: trt.INetworkDefinition,
        parser: trt.OnnxParser,
        known_weights: Mapping[str, np.ndarray],
        weights: WeightFile,
    ) -> None:
        self.builder = builder
        self.network = network
        self.parser = parser  # owns the weights that it read
        self.known_weights = known_weights
        self.weights = weights


def run(args: argparse.Namespace) -> Job:
    """Parses, builds the plan, runs it, compares it with PyTorch."""
    folder = ModelFolder(args.model_dir)
    job = Job.prepare("onnx2trt.py", folder, args)
    with job.logging() as log:
        start = time.perf_counter()
        parsed = parse(folder.onnx_path, args.precision, log)
        seconds = time.perf_counter() - start
        finish(job, log, parsed.builder, parsed.network, parsed.known_weights, seconds)
    return job


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description="Build BERT through TensorRT's ONNX parser, run and check it.")
    add_common_arguments(parser)
    job = run(parser.parse_args())
    print_report(job)
    return 0 if job.agrees else 1


if __name__ == "__main__":
    run_script(main)
