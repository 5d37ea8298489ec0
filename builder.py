"""Builds BERT with the TensorRT API, layer by layer, from the weights in the ONNX file; runs and checks it.

    python model2onnx.py            writes out/
    python builder.py               fp32 plan, run, compared with PyTorch
    python builder.py --precision fp16 --seq-len 1,64,512
    python builder.py --compare-layers
    python builder.py --gelu decomposed --verbose
    python builder.py --fusion tensorrt             attention as one layer of TensorRT's own
    python builder.py --fusion plugins              fused layers: EmbLayerNorm, QkvToContext, SkipLayerNorm
    python builder.py --fusion all --precision fp16             and matrix products of our own, with bias and GELU
    python builder.py --batching packed             many sentences without padding; padded: with a mask
    python builder.py --batching packed --sentences FILE      fills every [MASK] of a text file

The network is the checkpoint's own graph (Devlin et al., arXiv:1810.04805), read from top to bottom:
``embeddings``, L times ``encoder_layer``, ``head``.

Letters in shapes: B batch, S sequence length, T tokens of all sentences together, H hidden size, N heads, D head size
(H = N · D). For one sentence tensors are (S, H), without an axis of length 1 in front, which builds faster; for a
packed batch (T, H), all sentences one after another; for a padded batch (B, S, H). Shapes below are those of one
sentence; ``...`` stands for S, for T, or for B, S.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bert_trt.interrupts import begin_script, uninterrupted
from bert_trt.options import (
    FUSIONS,
    ONE_SENTENCE,
    TENSORRT_ATTENTION,
    SequenceRange,
    builder_arguments,
    fillings_path,
)

if __name__ == "__main__":
    begin_script(builder_arguments)  # answers --help, wrong usage and Ctrl-C before TensorRT is imported

import numpy as np

from bert_trt import tensorrt_product
from bert_trt.console import UserError, run_script, warn
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.files import write_json
from bert_trt.fusion_log import print_fusions
from bert_trt.inference import gpu_capability
from bert_trt.model_files import INPUT_NAMES, LENGTHS_NAME, MASK_NAME, BertConfig, ModelFolder, WeightFile
from bert_trt.options import QUANTIZED_PRECISIONS
from bert_trt.pipeline import Job, finish, print_report
from bert_trt.plan import create_builder
from bert_trt.plugin_layers import (
    HEAD_SIZES,
    Known,
    PluginLayer,
    PluginLayers,
    emb_layer_norm_layer,
    layer_norm_layer,
    linear_layer,
    qkv_to_context_layer,
    reading_weights_late,
    skip_layer_norm_layer,
)
from bert_trt.quantization import BASE_PRECISION, Quantization
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import IS_RTX, trt
from fill_masks import fill_network, read_source
from trt_helper import TrtNetworkHelper, check_attention, has_packed_attention

QKV = ("query", "key", "value")
HOPPER = (9, 0)  # the compute capability that the Linear plugin's kernels were written for and measured on
DEFAULT_BATCH = SequenceRange(1, 8, 32)
ATTENTION_STAYS = (
    "--quantize attention: attention as one layer, the QkvToContext plugin or TensorRT's own, computes its two "
    "products in fp16; leave attention out, or build with --fusion none"
)


@dataclass
class BertBuilder:
    """Assembles BERT with a ``TrtNetworkHelper``.

    Attributes:
        helper: adds the layers.
        config: the model's sizes.
        weights: the checkpoint's parameters by name. A ``Linear`` weight is (in, out), see model2onnx.py.
        gelu: which GELU (``GELU_KINDS``); None takes the checkpoint's.
        layer_norm_kernel: ``native``, or a kernel of the LayerNorm plugin.
        quantization: which products run in int8 or fp8, if any.
        tables: embedding tables that are in the network already, by name.
        fused: which of ``FUSED_LAYERS`` are used, and whether ``TENSORRT_ATTENTION`` is.
        linears: the Linear plugin layers, by the name of the product.
        smoothed: tensors with smoothed channels that are in the network already, by the tensor's name.
        separator: what keeps sentences apart in a batch: the mask int32 (B, S), or cu_seqlens int32 (B + 1,).
        mask_bias: the same for elementary attention: fp32, broadcasts over the scores, and is added to them.
        mask: the same for TensorRT's own attention: bool (B, 1, S, S), or (1, 1, T, T) of a packed batch.
    """

    helper: TrtNetworkHelper
    config: BertConfig
    weights: WeightFile
    gelu: str | None = None
    layer_norm_kernel: str = "native"
    quantization: Quantization | None = None
    tables: dict[str, trt.ITensor] = field(default_factory=dict)
    fused: Sequence[str] = ()
    linears: Mapping[str, PluginLayer] = field(default_factory=dict)
    smoothed: dict[str, trt.ITensor] = field(default_factory=dict)
    separator: trt.ITensor | None = None
    mask_bias: trt.ITensor | None = None
    mask: trt.ITensor | None = None

    def build(self, batching: str) -> None:
        """The whole network, for one sentence or for a batch."""
        {"single": self.build_single, "padded": self.build_padded, "packed": self.build_packed}[batching]()

    def build_single(self) -> None:
        """Three inputs int32 (1, S) to one fp32 output (1, S, vocabulary or H)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (1, -1)) for name in INPUT_NAMES]
        flat = [self.helper.addReshape(tensor, (-1,), f"{tensor.name}.flat") for tensor in ids]  # each (S,)
        output = self.encode(*flat)  # (S, vocabulary or H)
        shape = (1, -1, self.config.output_width)
        self.helper.markOutput(self.helper.addReshape(output, shape, "output"), self.config.output_name)

    def build_padded(self) -> None:
        """Three inputs and a mask, 1 for a word, 0 for padding, int32 (B, S), to fp32 (B, S, vocabulary or H)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (-1, -1)) for name in INPUT_NAMES]
        self.separator = self.helper.addInput(MASK_NAME, trt.DataType.INT32, (-1, -1))
        if TENSORRT_ATTENTION in self.fused:
            self.mask = self.same_mask(self.separator)
        elif "QkvToContext" not in self.fused:
            words = self.helper.addCast(self.separator, trt.DataType.FLOAT, f"{MASK_NAME}.fp32")
            self.mask_bias = self.bias(self.helper.addReshape(words, (0, 1, 1, -1), f"{MASK_NAME}.spread"))
        self.helper.markOutput(self.encode(*ids), self.config.output_name)

    def build_packed(self) -> None:
        """Three inputs int32 (T,) and cu_seqlens int32 (B + 1,) to fp32 (T, vocabulary or H)."""
        ids = [self.helper.addInput(name, trt.DataType.INT32, (-1,)) for name in INPUT_NAMES]
        self.separator = self.helper.addInput(LENGTHS_NAME, trt.DataType.INT32, (-1,))
        if TENSORRT_ATTENTION in self.fused:
            if not has_packed_attention(self.helper.dtype):  # then all tokens are one sequence with a mask
                same = self.same_sentence(ids[0], self.separator)
                self.mask = self.helper.addReshape(same, (1, 1, 0, -1), "mask")  # (1, 1, T, T)
        elif "QkvToContext" not in self.fused:
            same = self.same_sentence(ids[0], self.separator)
            self.mask_bias = self.bias(self.helper.addCast(same, trt.DataType.FLOAT, "token.same.fp32"))
        self.helper.markOutput(self.encode(*ids), self.config.output_name)

    def same_mask(self, mask: trt.ITensor) -> trt.ITensor:
        """Whether two tokens are both words or both padding: int32 (B, S) -> bool (B, 1, S, S). What padding sees
        does not matter, so that it may as well see padding, and no row of the mask is without a true."""
        column = self.helper.addReshape(mask, (0, 1, -1, 1), f"{mask.name}.query")
        row = self.helper.addReshape(mask, (0, 1, 1, -1), f"{mask.name}.key")
        return self.helper.addEqual(column, row, f"{mask.name}.same")

    def same_sentence(self, ids: trt.ITensor, cu_seqlens: trt.ITensor) -> trt.ITensor:
        """Whether two tokens belong to one sentence: int32 (T,) and (B + 1,) -> bool (1, T, T).

        The number of ends that a token has passed is the number of its sentence.
        """
        helper, wide = self.helper, trt.DataType.FLOAT
        ones = helper.addCast(helper.addEqual(ids, ids, "token.true"), wide, "token.one")
        count = helper.addReshape(
            helper.addRunningSum(ones, "token.count"), (-1, 1), "token.column"
        )  # (T, 1): 1 to T
        ends = helper.addCast(helper.addReshape(cu_seqlens, (1, -1), "ends.row"), wide, "ends.fp32")  # (1, B + 1)
        passed = helper.addCast(helper.addLess(ends, count, "ends.passed"), wide, "ends.passed.fp32")  # (T, B + 1)
        sentence = helper.addSum(passed, 1, "token.sentence")  # (T,)
        column = helper.addReshape(sentence, (1, -1, 1), "token.sentence.query")
        row = helper.addReshape(sentence, (1, 1, -1), "token.sentence.key")
        return helper.addEqual(column, row, "token.same")

    def bias(self, visible: trt.ITensor) -> trt.ITensor:
        """0 where something may be looked at and −1e30 where not, so that its probability is 0; from 1 and 0."""
        return self.helper.addScale(self.helper.addShift(visible, -1.0, "mask.shifted"), 1e30, "mask.bias")

    def encode(self, words: trt.ITensor, types: trt.ITensor, positions: trt.ITensor) -> trt.ITensor:
        """Ids to the model's output: three int32 (...) -> (..., vocabulary or H)."""
        x = self.embeddings(words, types, positions)  # (..., H)
        for index in range(self.config.num_layers):
            x = self.encoder_layer(x, f"{self.config.prefix}encoder.layer.{index}")  # (..., H)
        return self.head(x) if self.config.has_head else x

    def embeddings(
        self, input_ids: trt.ITensor, token_type_ids: trt.ITensor, position_ids: trt.ITensor
    ) -> trt.ITensor:
        """LN(word + type + position): three (S,) -> (S, H)."""
        name = f"{self.config.prefix}embeddings"
        if "EmbLayerNorm" in self.fused:
            return self.fused_embeddings(input_ids, token_type_ids, position_ids, name)
        word = self.embedding(input_ids, f"{name}.word_embeddings", self.config.vocab_size)
        kind = self.embedding(token_type_ids, f"{name}.token_type_embeddings", self.config.type_vocab_size)
        position = self.embedding(position_ids, f"{name}.position_embeddings", self.config.max_positions)
        total = self.wide_sum(self.wide_sum(word, kind, f"{name}.word_and_type"), position, f"{name}.sum")
        return self.layer_norm(total, f"{name}.LayerNorm")

    def fused_embeddings(
        self, words: trt.ITensor, types: trt.ITensor, positions: trt.ITensor, name: str
    ) -> trt.ITensor:
        """The same as one plugin layer."""
        config = self.config
        rows = (
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", config.max_positions),
            ("token_type_embeddings", config.type_vocab_size),
        )
        tables = [self.table(f"{name}.{part}", count) for part, count in rows]
        gamma, beta = self.norm_weights(f"{name}.LayerNorm")
        ids, epsilon = (words, types, positions), config.layer_norm_eps
        return self.helper.addEmbLayerNorm(ids, tables, gamma, beta, epsilon, f"{name}.LayerNorm")

    def encoder_layer(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """Attention and feed-forward, each followed by the residual sum and a layer norm: (S, H) -> (S, H)."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        attention = self.attention
        if "QkvToContext" in self.fused:
            attention = self.fused_attention
        elif TENSORRT_ATTENTION in self.fused:
            attention = self.tensorrt_attention
        context = attention(x, f"{name}.attention.self")
        x = self.linear_add_and_norm(context, x, f"{name}.attention.output", hidden, hidden)
        active = self.linear_and_activation(x, f"{name}.intermediate", hidden, inner)  # (S, 4 H)
        return self.linear_add_and_norm(active, x, f"{name}.output", inner, hidden)

    def linear_and_activation(self, x: trt.ITensor, name: str, width_in: int, width_out: int) -> trt.ITensor:
        """activation(x @ weight + bias): (S, in) -> (S, out). A Linear plugin may do both."""
        expanded = self.linear(x, f"{name}.dense", width_in, width_out)
        linear = self.linears.get(f"{name}.dense")
        if linear is not None and linear.fields["activation"] != "none":
            return expanded
        return self.activation(expanded, f"{name}.intermediate_act_fn")

    def fused_attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The same as ``attention`` from one product, with the weights of Q, K and V side by side, and a plugin."""
        hidden = self.config.hidden_size
        parts = [f"{name}.{part}" for part in QKV]
        weight = np.concatenate([self.weights.get(f"{part}.weight", (hidden, hidden)) for part in parts], axis=1)
        bias = np.concatenate([self.weights.get(f"{part}.bias", (hidden,)) for part in parts])
        qkv = self.add_linear(x, weight, bias, f"{name}.qkv", is_quantized(self.quantization, *parts))  # (S, 3 H)
        inputs = [qkv] if self.separator is None else [qkv, self.separator]
        return self.helper.addPlugin(name, inputs)

    def attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """softmax(Q Kᵀ / √D) V for each head: (S, H) -> (S, H). (Vaswani et al., arXiv:1706.03762)."""
        helper, hidden = self.helper, self.config.hidden_size
        q, k, v = (
            self.split_heads(self.linear(x, f"{name}.{part}", hidden, hidden), f"{name}.{part}.heads") for part in QKV
        )  # each (N, S, D)
        # Q is scaled before the product, not the scores after it: the unscaled scores can overflow fp16.
        q = helper.addScale(q, 1 / math.sqrt(self.config.head_size), f"{name}.scaled_query")
        scores = self.product(q, k, f"{name}.scores", transpose_b=True)  # (N, S, S)
        probabilities = helper.addSoftmax(scores, f"{name}.probabilities", bias=self.mask_bias)  # (N, S, S)
        context = self.product(probabilities, v, f"{name}.context")  # (N, S, D)
        swap, keep = ((1, 0, 2), (-1,)) if len(context.shape) == 3 else ((0, 2, 1, 3), (0, 0))
        # (N, S, D) -> (S, N, D) -> (S, H)
        return helper.addShuffle(context, name, first_transpose=swap, shape=(*keep, hidden))

    def tensorrt_attention(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The same by TensorRT's own attention: (S, H) -> (S, H).

        Q, K and V stay three products, as in ``attention``: TensorRT merges them by itself, and this attention takes
        three tensors, so that a product merged here would have to be cut apart again.
        """
        helper, config = self.helper, self.config
        swap: Sequence[int] | None = (0, 2, 1, 3)
        if len(x.shape) == 3:  # padded: (B, S, H) -> (B, S, N, D) -> (B, N, S, D), and back
            keep, back = (0, 0), (0, 0)
        elif self.separator is None or self.mask is not None:  # one sequence: (S, H) -> (1, S, N, D) -> (1, N, S, D)
            keep, back = (1, -1), (-1,)
        else:  # packed: (T, H) -> (T, N, D)
            keep, back, swap = (-1,), (-1,), None
        q, k, v = (
            helper.addShuffle(
                self.linear(x, f"{name}.{part}", config.hidden_size, config.hidden_size),
                f"{name}.{part}.heads",
                shape=(*keep, config.num_heads, config.head_size),
                second_transpose=swap,
            )
            for part in QKV
        )
        q = helper.addScale(q, 1 / math.sqrt(config.head_size), f"{name}.scaled_query")
        cu_seqlens = self.separator if swap is None else None
        context = helper.addAttention(q, k, v, f"{name}.context", self.mask, cu_seqlens)
        return helper.addShuffle(context, name, first_transpose=swap, shape=(*back, config.hidden_size))

    def split_heads(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """(S, H) -> (S, N, D) -> (N, S, D)."""
        keep, swap = ((-1,), (1, 0, 2)) if len(x.shape) == 2 else ((0, 0), (0, 2, 1, 3))
        shape = (*keep, self.config.num_heads, self.config.head_size)
        return self.helper.addShuffle(x, name, shape=shape, second_transpose=swap)

    def head(self, x: trt.ITensor) -> trt.ITensor:
        """From hidden states to a score for every word: (S, H) -> (S, vocabulary)."""
        name = "cls.predictions"
        hidden, words = self.config.hidden_size, self.config.vocab_size
        x = self.linear(x, f"{name}.transform.dense", hidden, hidden)
        x = self.activation(x, f"{name}.transform.transform_act_fn")
        x = self.layer_norm(x, f"{name}.transform.LayerNorm")
        if not self.config.tied_decoder:
            return self.linear(x, f"{name}.decoder", hidden, words)
        table = self.table(f"{self.config.prefix}embeddings.word_embeddings", words)  # (vocabulary, H)
        if len(x.shape) == 3:  # a product wants as many axes on both sides
            table = self.helper.addReshape(table, (1, words, hidden), f"{name}.decoder.weight")
        scores = self.helper.addMatMul(x, table, f"{name}.decoder", transpose_b=True)
        return self.helper.addBias(scores, self.weights.get(f"{name}.bias", (words,)), name)

    # a module and its parameters

    def linear(self, x: trt.ITensor, name: str, width_in: int, width_out: int) -> trt.ITensor:
        """A ``Linear`` with its parameters, quantized if it is to be: (S, in) -> (S, out)."""
        weight = self.weights.get(f"{name}.weight", (width_in, width_out))
        bias = self.weights.get(f"{name}.bias", (width_out,))
        return self.add_linear(x, weight, bias, name, is_quantized(self.quantization, name))

    def add_linear(
        self, x: trt.ITensor, weight: np.ndarray, bias: np.ndarray | None, name: str, quantized: bool
    ) -> trt.ITensor:
        """x @ weight + bias, x smoothed and quantized as asked for."""
        quantization = self.quantization
        if quantization is not None and x.name in quantization.smoothing:
            divisors = quantization.smoothing[x.name]
            weight, x = weight * divisors[:, None], self.smooth(x, divisors)
        if name in self.linears:
            return self.helper.addFusedLinear(x, weight, bias, name, self.linears[name].name)
        if quantization is None or not quantized:
            return self.helper.addLinear(x, weight, bias, name)
        x = self.helper.addQuantizedRange(x, quantization.ranges[x.name], quantization.dtype)
        return self.helper.addLinear(x, weight, bias, name, quantization.dtype)

    def smooth(self, x: trt.ITensor, divisors: np.ndarray) -> trt.ITensor:
        """x / divisors for each channel, once for all layers that read x: (..., H) and (H,) -> (..., H)."""
        if x.name not in self.smoothed:
            self.smoothed[x.name] = self.helper.addChannelScale(x, 1 / divisors, f"{x.name}.smoothed")
        return self.smoothed[x.name]

    def product(self, a: trt.ITensor, b: trt.ITensor, name: str, transpose_b: bool = False) -> trt.ITensor:
        """a @ b, or a @ bᵀ, of two activations, quantized if it is to be."""
        quantization = self.quantization
        if quantization is not None and name in quantization.products:
            ranges, dtype = quantization.ranges, quantization.dtype
            a, b = (self.helper.addQuantizedRange(tensor, ranges[tensor.name], dtype) for tensor in (a, b))
            self.helper.quantized_products += 1
        return self.helper.addMatMul(a, b, name, transpose_b=transpose_b)

    def embedding(self, ids: trt.ITensor, name: str, rows: int) -> trt.ITensor:
        """An ``Embedding`` with its table: (S,) -> (S, H)."""
        return self.helper.addEmbedding(ids, self.table(name, rows), name)

    def table(self, name: str, rows: int) -> trt.ITensor:
        """The table of an ``Embedding``, (rows, H), one constant however often it is used: the head's is tied."""
        if name not in self.tables:
            weight = self.weights.get(f"{name}.weight", (rows, self.config.hidden_size))
            self.tables[name] = self.helper.addConstant(weight, f"{name}.weight")
        return self.tables[name]

    def layer_norm(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """A ``LayerNorm`` with its parameters: (S, H) -> (S, H)."""
        gamma, beta = self.norm_weights(name)
        return self.helper.addLayerNorm(x, gamma, beta, self.config.layer_norm_eps, name, self.layer_norm_kernel)

    def norm_weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Gamma and beta of a ``LayerNorm``, each (H,)."""
        gamma, beta = (self.weights.get(f"{name}.{part}", (self.config.hidden_size,)) for part in ("weight", "bias"))
        return gamma, beta

    def activation(self, x: trt.ITensor, name: str) -> trt.ITensor:
        """The activation that the checkpoint was trained with, unless another GELU was asked for."""
        if self.config.activation == "relu":
            return self.helper.addReLU(x, name)
        return self.helper.addGELU(x, name, self.gelu or self.config.activation)

    def linear_add_and_norm(
        self, x: trt.ITensor, residual: trt.ITensor, name: str, width_in: int, width_out: int
    ) -> trt.ITensor:
        """LN(x @ weight + bias + residual): (S, in) and (S, H) -> (S, H). The fused layer takes over the bias."""
        if "SkipLayerNorm" not in self.fused:
            x = self.linear(x, f"{name}.dense", width_in, width_out)
            return self.layer_norm(self.wide_sum(x, residual, f"{name}.sum"), f"{name}.LayerNorm")
        weight = self.weights.get(f"{name}.dense.weight", (width_in, width_out))
        bias = self.weights.get(f"{name}.dense.bias", (width_out,))
        x = self.add_linear(x, weight, None, f"{name}.dense", is_quantized(self.quantization, f"{name}.dense"))
        gamma, beta = self.norm_weights(f"{name}.LayerNorm")
        epsilon = self.config.layer_norm_eps
        (y,) = self.helper.addSkipLayerNorm(x, residual, gamma, beta, epsilon, f"{name}.LayerNorm", bias)
        return y

    def wide_sum(self, a: trt.ITensor, b: trt.ITensor, name: str) -> trt.ITensor:
        """a + b in fp32. The layer norm that follows computes in fp32 anyway, and the residual sum is where the
        values of a trained BERT are largest: in fp16 it would be the first to overflow. The LayerNorm plugin reads
        the network's own type, so before it the sum stays in that type."""
        if self.layer_norm_kernel != "native":
            return self.helper.addAdd(a, b, name)
        wide = [
            self.helper.addCast(x, trt.DataType.FLOAT, f"{name}.{side}") for x, side in ((a, "left"), (b, "right"))
        ]
        return self.helper.addAdd(wide[0], wide[1], name)


def run(args: argparse.Namespace) -> Job:
    """Builds the network and the plan, runs it, compares it with PyTorch."""
    folder, fused = ModelFolder(args.model_dir), fused_layers(args.fusion, args.precision)
    batch = args.batch or (ONE_SENTENCE if args.batching == "single" else DEFAULT_BATCH)
    if args.batching == "single" and batch != ONE_SENTENCE:
        raise UserError("--batch: one sentence has no batch; add --batching padded or --batching packed")
    check_quantized_groups(args, fused)
    if args.gelu is not None and folder.config.activation == "relu":
        raise UserError("--gelu has no effect: the checkpoint's activation is relu, no GELU; leave it out")
    if args.fillings is not None and args.sentences is None:
        raise UserError("--fillings: nothing is filled without --sentences FILE; add it")
    job = Job.prepare("builder.py", folder, args, args.batching, batch, fused)
    source = None
    if args.sentences is not None:  # read before the long work
        source = read_source(folder, args.sentences, job.options.seq_len, batch)
    if "Linear" in fused:
        warn_off_hopper()
    with job.logging() as log:
        quantization = job.quantize(args, assemble, log)
        start = time.perf_counter()
        bert = assemble(folder, log, args.precision, args.gelu, args.layer_norm, args.batching, quantization, fused)
        seconds = time.perf_counter() - start
        released, products = bert.weights.pages_released(), bert.quantized_products
        names = bert.hidden_state_names
        finish(job, log, bert.builder, bert.network, bert.known, seconds, released, products, names)
        if args.compare_layers:
            from bert_trt.layer_comparison import (
                print_layer_comparison,  # brings PyTorch, which a build does not need
            )

            job.layers_agree = print_layer_comparison(
                bert.network, names, folder, job.tolerance, bert.known, job.inputs
            )
        if source is not None:
            fill_network(job, bert.network, bert.known, source, fillings_path(args.fillings, job.plan_path))
    if args.gelu == "decomposed" and job.verbose_log is not None:
        print_fusions(job.verbose_log, bert.gelu_parts, job.plan_path)
    return job


class UnsuitableFusionError(UserError):
    """The model or the quantization does not suit the plugins asked for; the message says why."""


@dataclass
class AssembledBert:
    """A network ready to be built, and what must live until then."""

    builder: trt.Builder
    network: trt.INetworkDefinition
    weights: WeightFile
    known: Known  # among it the arrays that TensorRT points to
    gelu_parts: list[str]
    hidden_state_names: list[str]
    quantized_products: int


@uninterrupted()
def assemble(
    folder: ModelFolder,
    log: TrtLog,
    precision: str = "fp32",
    gelu: str | None = None,
    layer_norm: str = "native",
    batching: str = "single",
    quantization: Quantization | None = None,
    fused: Sequence[str] = (),
    constant_weights: bool = True,
) -> AssembledBert:
    """Makes the network of the model in ``folder``.

    Args:
        folder: written by model2onnx.py.
        log: for TensorRT's messages.
        precision: type of weights and tensors, or of the quantized products: fp32, fp16, bf16, int8 or fp8.
        gelu: which GELU; default: the checkpoint's.
        layer_norm: ``native``, or a kernel of the LayerNorm plugin.
        batching: one of ``BATCHINGS``.
        quantization: which products are quantized and how; or, with another precision, what is smoothed.
        fused: which of ``FUSED_LAYERS`` are used; ``Linear`` among them, where it can be: see ``planned_linears``;
            or ``TENSORRT_ATTENTION``.
        constant_weights: whether plugins may read weights before the layer in front of them has ended.

    Raises:
        UserError: a weight is missing, has another shape, or does not fit the precision; the plugins are not built.
    """
    dtype = ELEMENT_TYPES[BASE_PRECISION if precision in QUANTIZED_PRECISIONS else precision].trt
    weights, config = folder.weights(), folder.config
    if quantization is not None and has_whole_attention(fused):
        refuse_attention_products(quantization)
    builder, network = create_builder(log)
    linears = planned_linears(config, dtype, gelu or config.activation, quantization, fused)
    planned = [*planned_layers(config, dtype, layer_norm, batching, fused), *linears.values()]
    if not constant_weights:
        planned = [reading_weights_late(layer) for layer in planned]
    plugins = PluginLayers(network, log, planned) if planned else None
    helper = TrtNetworkHelper(network, log, dtype, plugins)
    bert = BertBuilder(helper, config, weights, gelu, layer_norm, quantization, fused=fused, linears=linears)
    bert.build(batching)
    known = Known(helper.weights, {layer.name: layer for layer in planned}, helper.sources)
    return AssembledBert(
        builder, network, weights, known, helper.gelu_parts, hidden_state_names(config), helper.quantized_products
    )


def hidden_state_names(config: BertConfig) -> list[str]:
    """Tensors that correspond to PyTorch's hidden states: after the embeddings, after each encoder layer."""
    layers = (f"{config.prefix}encoder.layer.{index}.output.LayerNorm" for index in range(config.num_layers))
    return [f"{config.prefix}embeddings.LayerNorm", *layers]


def planned_layers(
    config: BertConfig, dtype: trt.DataType, layer_norm: str, batching: str, fused: Sequence[str]
) -> list[PluginLayer]:
    """All plugin layers that the network will hold, but for those of the Linear plugin.

    Raises:
        UnsuitableFusionError: no plugin has the model's head size.
    """
    hidden, epsilon = config.hidden_size, config.layer_norm_eps
    embeddings, *outputs = hidden_state_names(config)
    layers = [f"{config.prefix}encoder.layer.{index}" for index in range(config.num_layers)]
    sums = [*outputs, *(f"{layer}.attention.output.LayerNorm" for layer in layers)]
    head = ["cls.predictions.transform.LayerNorm"] if config.has_head else []
    planned, norms = [], head
    if "EmbLayerNorm" in fused:
        planned.append(emb_layer_norm_layer(embeddings, hidden, dtype, epsilon))
    else:
        norms = [embeddings, *norms]
    if "SkipLayerNorm" in fused:
        planned += [skip_layer_norm_layer(name, hidden, dtype, epsilon, bias=True) for name in sums]
    else:
        norms = [*norms, *sums]
    if "QkvToContext" in fused:
        if config.head_size not in HEAD_SIZES:
            raise UnsuitableFusionError(
                f"--fusion plugins and all: the model's heads have {config.head_size} elements, and the QkvToContext "
                f"plugin takes {', '.join(map(str, HEAD_SIZES))}; build with --fusion none"
            )
        heads = config.num_heads
        planned += [qkv_to_context_layer(f"{name}.attention.self", hidden, heads, dtype, batching) for name in layers]
    if layer_norm != "native":
        planned += [layer_norm_layer(name, hidden, dtype, epsilon, layer_norm) for name in norms]
    return planned


def planned_linears(
    config: BertConfig,
    dtype: trt.DataType,
    activation: str,
    quantization: Quantization | None,
    fused: Sequence[str],
) -> dict[str, PluginLayer]:
    """The layers of the Linear plugin that the network will hold, by the name of the product.

    If asked for, they are all products of the encoder with a weight, except for those that are quantized, and none in
    fp32. GELU in the form with erf belongs to its product, and the layer is called after it; the bias before a
    residual sum is that sum's, where a plugin computes it.
    """
    planned: dict[str, PluginLayer] = {}
    if "Linear" not in fused or dtype == trt.DataType.FLOAT:
        return planned

    def add(name: str, bias: bool = True, gelu_name: str | None = None) -> None:
        if not is_quantized(quantization, name):
            gelu = "none" if gelu_name is None else "gelu"
            planned[name] = linear_layer(gelu_name or name, dtype, bias, gelu)

    for index in range(config.num_layers):
        layer = f"{config.prefix}encoder.layer.{index}"
        own = f"{layer}.attention.self"
        if "QkvToContext" not in fused:
            for part in QKV:
                add(f"{own}.{part}")
        elif not is_quantized(quantization, *(f"{own}.{part}" for part in QKV)):
            add(f"{own}.qkv")
        add(f"{layer}.attention.output.dense", bias="SkipLayerNorm" not in fused)
        active = f"{layer}.intermediate.intermediate_act_fn"
        add(f"{layer}.intermediate.dense", gelu_name=active if activation == "erf" else None)
        add(f"{layer}.output.dense", bias="SkipLayerNorm" not in fused)
    return planned


def is_quantized(quantization: Quantization | None, *products: str) -> bool:
    """Whether all these products run in int8 or fp8."""
    return quantization is not None and quantization.products.issuperset(products)


def fused_layers(fusion: str, precision: str) -> tuple[str, ...]:
    """What stands for several layers in a network with ``--fusion`` and ``--precision``: Linear has no fp32.

    Raises:
        UserError: the installed TensorRT has no attention of its own.
    """
    if TENSORRT_ATTENTION in FUSIONS[fusion]:
        check_attention()
    return tuple(name for name in FUSIONS[fusion] if name != "Linear" or precision != "fp32")


def warn_off_hopper() -> None:
    """Warns that the Linear plugin was measured on compute capability 9.0 alone, unless the plan will run there.

    The full product builds for the GPU of this machine; TensorRT for RTX never executes on 9.0.
    """
    capability = gpu_capability()
    if IS_RTX:
        target = f"{tensorrt_product.describe()} does not execute there"
    elif capability is not None and capability != HOPPER:
        target = f"this GPU is {capability[0]}.{capability[1]}"
    else:
        return
    warn(
        "--fusion all: the Linear plugin has been measured against TensorRT's own matrix products on compute "
        f"capability 9.0 (Hopper) only, and {target}; compare with --fusion plugins"
    )


def has_whole_attention(fused: Sequence[str]) -> bool:
    """Whether attention is one layer, a plugin's or TensorRT's own."""
    return "QkvToContext" in fused or TENSORRT_ATTENTION in fused


def check_quantized_groups(args: argparse.Namespace, fused: Sequence[str]) -> None:
    """Refuses ``--quantize attention`` where attention is one layer, before the long work.

    Raises:
        UnsuitableFusionError: so it is.
    """
    if has_whole_attention(fused) and args.precision in QUANTIZED_PRECISIONS and "attention" in args.quantize:
        raise UnsuitableFusionError(ATTENTION_STAYS)


def refuse_attention_products(quantization: Quantization) -> None:
    """An attention in one layer computes its own two products, and not in int8.

    Raises:
        UnsuitableFusionError: one of them is to be quantized.
    """
    own = (".attention.self.scores", ".attention.self.context")
    if any(name.endswith(own) for name in quantization.products):
        raise UnsuitableFusionError(ATTENTION_STAYS)


def main() -> int:
    """The script."""
    args = builder_arguments()
    job = run(args)
    print_report(job)
    write_json(args.json, job.as_dict())
    return 0 if job.agrees else 1


if __name__ == "__main__":
    run_script(main)
