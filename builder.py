"""Builds BERT with the TensorRT API, layer by layer, from the weights in the ONNX file; runs and checks it.

    python model2onnx.py            writes out/
    python builder.py               fp32 plan, run, compared with PyTorch
    python builder.py --precision fp16 --seq-len 1,64,512
    python builder.py --fusion plugins              fused layers: EmbLayerNorm, QkvToContext, SkipLayerNorm
    python builder.py --batching packed --sentences FILE      predicts the answer for every line of a file

``python builder.py --help`` lists the rest. The network is the checkpoint's own graph (Devlin et al.,
arXiv:1810.04805), read from top to bottom: ``embeddings``, L times ``encoder_layer``, and the ``head`` of its task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bert_trt.command_line import builder_arguments
from bert_trt.interrupts import begin_script, uninterrupted

if __name__ == "__main__":
    begin_script(builder_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

from bert_trt.answer_files import form_of
from bert_trt.console import UserError, run_script
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.files import write_json
from bert_trt.fusion import LAYER_SETS, refuse_attention_products, warn_off_hopper
from bert_trt.fusion_log import print_fusions
from bert_trt.layers import (
    LAYOUTS,
    EightBitProducts,
    FusedQuantizedLayers,
    LinearPluginProducts,
    NativeLayers,
    Products,
    QuantizedProducts,
)
from bert_trt.model_files import BertConfig, ModelFolder
from bert_trt.network import DefinedNetwork, NetworkContents
from bert_trt.options import (
    EMBEDDING,
    FILL_MASK,
    GELU_KINDS,
    HIDDEN_STATES,
    ONE_SEQUENCE,
    QUANTIZED_PRECISIONS,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    AnswerOptions,
    PlanOptions,
    predictions_path,
)
from bert_trt.pipeline import Result, Task, build_and_check, running
from bert_trt.prediction import BatchRanges, Source, one_by_one, predict_file
from bert_trt.quantization import BASE_PRECISION, Quantization
from bert_trt.recording import define_network
from bert_trt.report import print_report
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt
from trt_helper import TrtNetworkHelper


@dataclass
class Bert:
    """BERT: each step is one call of a layer set, which adds the step's layers to the network (bert_trt/layers).

    Shapes are those of one sequence: S sequence length, H hidden size. Where they say (S, H), a padded batch has
    (B, S, H), and a packed batch (T, H), with the tokens of all sequences one after another.

    Attributes:
        config: the model's sizes.
        layers: the layer set.
        hidden_states: names of the tensors that correspond to PyTorch's hidden states.
    """

    config: BertConfig
    layers: NativeLayers
    hidden_states: list[str] = field(default_factory=list)

    def forward(self, ids: Sequence[trt.ITensor]) -> trt.ITensor:
        """Token ids, token types and positions, three (S,), to the task's output (S, width) or (1, width)."""
        x = self.embeddings(ids)  # (S, H)
        self.hidden_states.append(x.name)
        for index in range(self.config.num_layers):
            x = self.encoder_layer(x, f"{self.config.prefix}encoder.layer.{index}")  # (S, H)
            self.hidden_states.append(x.name)
        return self.head(x)

    def embeddings(self, ids: Sequence[trt.ITensor]) -> trt.ITensor:
        """LN(word + type + position): three (S,) -> (S, H). Narrower embeddings, (S, E), are projected."""
        name = f"{self.config.prefix}embeddings"
        x = self.layers.embeddings(ids, name)  # (S, E)
        return self.layers.projection(x, f"{name}.projection") if self.config.has_projection else x

    def encoder_layer(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Attention and feed-forward network, each followed by residual sum and layer norm: (S, H) -> (S, H)."""
        context = self.layers.self_attention(x, f"{name}.attention.self")  # (S, H)
        x = self.layers.linear_add_norm(context, x, f"{name}.attention.output")  # (S, H)
        inner = self.layers.linear_activation(x, f"{name}.intermediate", self.config.intermediate_size)  # (S, 4 H)
        return self.layers.linear_add_norm(inner, x, f"{name}.output")

    def head(self, x: trt.ITensor) -> trt.ITensor:
        """The head of the task: hidden states (S, H) to (S, width), or to (1, width) for the sequence as a whole."""
        heads = {
            FILL_MASK: self.fill_mask,
            EMBEDDING: self.embedding,
            SEQUENCE_CLASSIFICATION: self.sequence_classification,
            TOKEN_CLASSIFICATION: self.token_classification,
            QUESTION_ANSWERING: self.question_answering,
            HIDDEN_STATES: lambda x: x,
        }
        return heads[self.config.task](x)

    def fill_mask(self, x: trt.ITensor) -> trt.ITensor:
        """The logits of the vocabulary for each token: (S, H) -> (S, vocabulary)."""
        x = self.layers.head_transform(x, "cls.predictions.transform")  # (S, E)
        return self.layers.decoder(x, "cls.predictions")

    def embedding(self, x: trt.ITensor) -> trt.ITensor:
        """One vector for the sequence: (S, H) -> (1, width)."""
        pool = self.layers.pooler if self.config.pooling == "pooler" else self.layers.pooled
        return self.layers.embedding_layers(pool(x, "pooler"))  # (1, H) -> (1, width)

    def sequence_classification(self, x: trt.ITensor) -> trt.ITensor:
        """The logits of the sequence's classes, or a reranker's score: (S, H) -> (1, labels)."""
        x = self.layers.pooler(x, f"{self.config.prefix}pooler")  # (1, H)
        return self.layers.head_linear(x, "classifier", len(self.config.labels))

    def token_classification(self, x: trt.ITensor) -> trt.ITensor:
        """The logits of each token's classes: (S, H) -> (S, labels)."""
        return self.layers.head_linear(x, "classifier", len(self.config.labels))

    def question_answering(self, x: trt.ITensor) -> trt.ITensor:
        """For each token the logit that the answer begins there, and that it ends there: (S, H) -> (S, 2)."""
        return self.layers.head_linear(x, "qa_outputs", 2)


@uninterrupted()
def assemble(
    folder: ModelFolder,
    log: TrtLog,
    precision: str = "fp32",
    gelu: str | None = None,
    layer_norm: str = "native",
    batching: str = "single",
    quantization: Quantization | None = None,
    fusion: str = "none",
    constant_weights: bool = True,
    layer_set: type[NativeLayers] | None = None,
    max_length: int | None = None,
) -> DefinedNetwork:
    """Defines the network of the model in ``folder``.

    Args:
        folder: the model, written by model2onnx.py.
        log: for TensorRT's messages.
        precision: the type of weights and tensors: fp32, fp16 or bf16; int8 or fp8 is the type of the quantized
            products, beside fp16.
        gelu: one of ``options.GELU_KINDS``; None for the checkpoint's.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        batching: single, padded, packed, or ``options.RAGGED``.
        quantization: the products to quantize and their ranges; with another precision only its smoothing is used.
        fusion: none, tensorrt, plugins or all; since the Linear plugin has no fp32, all is plugins in fp32.
        constant_weights: whether plugins may read weights before the previous layer has finished.
        layer_set: replaces the layer set of ``fusion``, which then only decides whether Linear layers are plugins.
        max_length: the longest sequence to expect, which chooses the attention kernel of a packed batch; None for as
            many tokens as the position table has rows.

    Raises:
        UserError: a weight is missing, has another shape, or does not fit the precision; the plugins are not built.
    """
    weights, config = folder.weights(), folder.config
    dtype = ELEMENT_TYPES[BASE_PRECISION if precision in QUANTIZED_PRECISIONS else precision].trt
    has_8_bit_plugins = fusion == "all" and precision in QUANTIZED_PRECISIONS and quantization is not None
    layer_set = layer_set or (FusedQuantizedLayers if has_8_bit_plugins else LAYER_SETS[fusion])
    if quantization is not None and layer_set.has_fused_attention:
        refuse_attention_products(quantization)

    def define(helper: TrtNetworkHelper) -> Bert:
        layout = LAYOUTS[batching](helper, config.max_positions, max_length)
        if quantization is not None and has_8_bit_plugins:
            products = EightBitProducts(helper, quantization, constant_weights)
        else:
            uses_linear_plugin = fusion == "all" and precision != "fp32"
            products = LinearPluginProducts(helper, constant_weights) if uses_linear_plugin else Products(helper)
            products = products if quantization is None else QuantizedProducts(products, quantization)
        layers = layer_set(helper, config, weights, layout, products, gelu, layer_norm, constant_weights)
        bert = Bert(config, layers)
        output = bert.forward(layout.ids)
        layout.add_output(output, config.output_name, config.output_width, config.is_per_sequence)
        return bert

    has_plugins = layer_norm != "native" or fusion in ("plugins", "all") or layer_set is not LAYER_SETS[fusion]
    builder, helper, bert = define_network(log, dtype, define, has_plugins)
    products = bert.layers.products
    return DefinedNetwork(
        builder,
        helper.network,
        NetworkContents(
            *(helper.weights, helper.plugin_layers, helper.sources),
            scales={} if quantization is None else quantization.scales,
        ),
        weights,
        bert.hidden_states,
        products.added,
        products.num_quantized,
        helper.gelu_parts,
    )


def run(options: PlanOptions) -> Result:
    """Builds the network and the plan, runs it, and compares it with PyTorch."""
    folder = ModelFolder(options.model_dir)
    check_options(options, folder)
    task = Task.prepare("builder.py", folder, options)
    target, source = predictions_path(options.predictions, task.plan_path), None
    if options.sentences is not None:  # checked first, so that a bad file is an error before the build
        ranges = BatchRanges(task.batching, task.build.seq_len, task.build.batch)
        source = Source(folder, options.sentences, ranges, AnswerOptions())
        form_of(target, folder.config.task, folder.config.output_width)
        source.check()
    if "Linear" in task.fused:
        warn_off_hopper()
    with task.logging() as log:
        quantized = task.quantize(assemble, log)
        quantization = None if quantized is None else quantized.quantization
        start = time.perf_counter()
        bert = assemble(
            *(folder, log, options.precision, options.gelu, options.layer_norm, options.batching),
            quantization=quantization,
            fusion=options.fusion,
            max_length=task.build.seq_len.maximum,
        )
        seconds = time.perf_counter() - start
        result = build_and_check(task, log, bert, seconds, quantized)
        if options.compare_layers:
            from bert_trt.layer_comparison import print_layer_comparison  # imports PyTorch, which a build needs not

            result.layers_agree = print_layer_comparison(bert, task.demo, task.tolerance, task.inputs)
        if source is not None:
            with running(result, bert) as network:
                predict_file(source, one_by_one(network), target)
    if options.gelu == "decomposed" and task.verbose_log is not None:
        print_fusions(task.verbose_log, bert.gelu_parts, task.plan_path)
    return result


def check_options(options: PlanOptions, folder: ModelFolder) -> None:
    """Checks the options against the model and against each other.

    Raises:
        UserError: an option does not suit the model or has no effect.
    """
    if options.batching == "single" and options.batch not in (None, ONE_SEQUENCE):
        raise UserError("--batch: one sentence has no batch; add --batching padded or --batching packed")
    if options.gelu is not None and folder.config.activation not in GELU_KINDS:
        raise UserError(
            f"--gelu has no effect: the checkpoint's activation is {folder.config.activation}, no GELU; leave it out"
        )
    if options.predictions is not None and options.sentences is None:
        raise UserError("--predictions: nothing is predicted without --sentences FILE; add it")


def main() -> int:
    """Runs the script; returns its exit code."""
    options = builder_arguments()
    result = run(options)
    print_report(result)
    write_json(options.json, result.as_dict())
    return 0 if result.agrees else 1


if __name__ == "__main__":
    run_script(main)
