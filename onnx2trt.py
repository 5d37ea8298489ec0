"""Builds BERT from the same ONNX file through TensorRT's ONNX parser, for comparison with builder.py.

    python model2onnx.py                       writes out/
    python onnx2trt.py                         fp32 plan, run, compared with PyTorch
    python onnx2trt.py --precision fp16
    python onnx2trt.py --fusion tensorrt       attention as one layer of TensorRT's own
    python onnx2trt.py --onnx FILE             a BERT that somebody else exported, compared with onnxruntime

The network is strongly typed, so the ONNX model is converted to fp16 before it is parsed, see
bert_trt/onnx_conversion.py. (TensorRT 11 ignores a mere request for fp16 and builds fp32 without a warning.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bert_trt.command_line import onnx2trt_arguments
from bert_trt.interrupts import begin_script

if __name__ == "__main__":
    begin_script(onnx2trt_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import onnx_ir as ir

import builder
from bert_trt.console import run_script
from bert_trt.files import write_json
from bert_trt.model_files import ModelFolder, load_onnx
from bert_trt.network import DefinedNetwork
from bert_trt.onnx_conversion import convert_model, serialize
from bert_trt.options import ParserOptions, PlanOptions
from bert_trt.pipeline import Result, Task, build_and_check
from bert_trt.plan import create_builder, parse_onnx
from bert_trt.plugin_layers import load_library, plugin_parser
from bert_trt.quantization import BASE_PRECISION, Product, Quantization
from bert_trt.report import print_report
from bert_trt.tensorrt_log import LOGGER, TrtLog
from bert_trt.tensorrt_product import trt


def parse(
    folder: ModelFolder,
    precision: str,
    log: TrtLog,
    layer_norm: str = "native",
    quantization: Quantization | None = None,
    fusion: str = "none",
    products: Sequence[Product] = (),
) -> DefinedNetwork:
    """Parses the folder's ONNX file, converted to the precision and quantized, with attention fused if asked for.

    Args:
        folder: written by model2onnx.py.
        precision: fp32, fp16 or bf16; ignored with ``quantization``, whose base type is fp16.
        log: receives TensorRT's messages.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        quantization: which products are quantized and how.
        fusion: none or tensorrt.
        products: with ``quantization``, all products of the encoder, see ``DefinedNetwork``.

    Raises:
        UserError: the file is missing or corrupt, a weight does not fit, or the parser refuses a node; the
            message carries the parser's own words.
    """
    path = folder.onnx_path
    precision = precision if quantization is None else BASE_PRECISION
    if quantization is not None and not products:
        raise ValueError("a quantization needs the encoder's products, see DefinedNetwork.products")
    weights, model = folder.weights(), ir.from_proto(load_onnx(path))
    builder, network = create_builder(log)
    contents = convert_model(model, weights, folder.config, precision, layer_norm, quantization, fusion, products)
    if contents.plugins:
        load_library()
    data = serialize(model, f"{path} in {precision}", "; use builder.py, which has no limit")
    parser = plugin_parser(network) if contents.plugins else trt.OnnxParser(network, LOGGER)
    parse_onnx(parser, data, path, log)
    return DefinedNetwork(builder, network, contents, owner=(parser, weights))


def run(options: PlanOptions) -> Result:
    """Parses, builds the plan, runs it, compares it with PyTorch."""
    folder = ModelFolder(options.model_dir)
    task = Task.prepare("onnx2trt.py", folder, options)
    with task.logging() as log:
        quantized = task.quantize(builder.assemble, log)
        start = time.perf_counter()
        quantization, products = (None, ()) if quantized is None else (quantized.quantization, quantized.products)
        parsed = parse(folder, options.precision, log, options.layer_norm, quantization, options.fusion, products)
        return build_and_check(task, log, parsed, time.perf_counter() - start, quantized)


def run_foreign(path: Path, options: ParserOptions) -> int:
    """Builds a file that somebody else exported. Returns 0 only if it was compared and agrees."""
    from bert_trt import foreign_onnx  # imports PyTorch, which other builds need only later

    result = foreign_onnx.run(path, options)
    foreign_onnx.print_report(result)
    write_json(options.json, result.as_dict())
    return 0 if result.agrees else 1


def main() -> int:
    """The script."""
    options = onnx2trt_arguments()
    if options.onnx is not None:
        return run_foreign(options.onnx, options)
    result = run(options)
    print_report(result)
    write_json(options.json, result.as_dict())
    return 0 if result.agrees else 1


if __name__ == "__main__":
    run_script(main)
