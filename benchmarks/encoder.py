"""Measures BERT's encoder on the GPU: our network with each fusion, and PyTorch, all in CUDA graphs.

    python benchmarks/random_checkpoint.py out/base/checkpoint      weights of BERT-base size from a seed
    python model2onnx.py --model out/base/checkpoint --out-dir out/base/model --text "a [MASK] ."
    python benchmarks/encoder.py out/base/model --json FILE --markdown FILE

The encoder runs in fp16, without embeddings and head. "ours" is builder.py's network definition, which
network_runner.py runs with the plugins' own kernels, without TensorRT and without torch.compile. It gets a padded
batch with a mask of ones; "packed" gets the same tokens without padding. The peer is the same encoder in PyTorch,
with one merged product for Q, K and V, and scaled_dot_product_attention with the faster of its backends and no mask:
eager, and with each layer compiled by torch.compile. Hugging Face's own encoder is measured too. "products alone" are
the 48 matrix products through cuBLAS, with weights (out, in), as in PyTorch's linear, and (in, out), as in ONNX.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from sizes import parse_sizes

from bert_trt.interrupts import begin_script

SIZES = ((1, 128), (8, 128), (32, 128))


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    return parse_sizes("The encoder in a CUDA graph, ours and PyTorch's.", SIZES)


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
from partial_fusion import ALONE
from report import check_results, markdown_table, print_table, versions, write_results
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from bert_trt.console import UserError, log_console, run_script
from bert_trt.fusion import LAYER_SETS
from bert_trt.model_files import LENGTHS_NAME, MASK_NAME, BertConfig, ModelFolder, WeightFile
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import FUSIONS
from bert_trt.tensorrt_log import TrtLog
from builder import assemble
from plugins.measure import graph_times

# By name: each plugin alone, and the choices of --fusion. EmbLayerNorm is left out, as it is not in the encoder, and
# so is TensorRT's own attention, whose kernel only TensorRT has.
FUSED = {name: entry for name, entry in ALONE.items() if name != "EmbLayerNorm"}
FUSED |= {name: (name, LAYER_SETS[name], fused) for name, fused in FUSIONS.items() if name != "tensorrt"}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
Function = Callable[[], Any]


# --- the peer ---------------------------------------------------------------------------------------------


class Peer(torch.nn.Module):
    """The encoder in PyTorch: (B, S, H) -> (B, S, H)."""

    def __init__(self, config: BertConfig, weights: WeightFile) -> None:
        super().__init__()
        self.config = config
        hidden, inner = config.hidden_size, config.intermediate_size
        self.layers: list[dict[str, torch.Tensor]] = []

        def get(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return torch.from_numpy(weights.get(name, shape).copy()).cuda().half()

        for index in range(config.num_layers):
            name = f"{config.prefix}encoder.layer.{index}"
            qkv = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
            layer = {
                "qkv": torch.cat([get(f"{part}.weight", (hidden, hidden)) for part in qkv]),
                "qkv_bias": torch.cat([get(f"{part}.bias", (hidden,)) for part in qkv]),
            }
            for short, part, width_in, width_out in (
                ("attended", "attention.output.dense", hidden, hidden),
                ("inner", "intermediate.dense", hidden, inner),
                ("outer", "output.dense", inner, hidden),
            ):
                layer[short] = get(f"{name}.{part}.weight", (width_out, width_in))
                layer[f"{short}_bias"] = get(f"{name}.{part}.bias", (width_out,))
            for short, part in (("first", "attention.output.LayerNorm"), ("second", "output.LayerNorm")):
                layer[f"{short}_gamma"] = get(f"{name}.{part}.weight", (hidden,))
                layer[f"{short}_beta"] = get(f"{name}.{part}.bias", (hidden,))
            self.layers.append(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs all layers."""
        for weights in self.layers:
            x = self.run_layer(x, weights)
        return x

    def run_layer(self, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        """Runs one layer: (B, S, H) -> (B, S, H)."""
        heads, size = self.config.num_heads, self.config.head_size
        shape, epsilon = (self.config.hidden_size,), self.config.layer_norm_eps
        qkv = linear(x, w["qkv"], w["qkv_bias"]).unflatten(-1, (3, heads, size))  # (B, S, 3, N, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, N, S, D)
        context = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        attended = linear(context, w["attended"], w["attended_bias"])
        x = layer_norm(attended + x, shape, w["first_gamma"], w["first_beta"], epsilon)
        y = linear(gelu(linear(x, w["inner"], w["inner_bias"])), w["outer"], w["outer_bias"])
        return layer_norm(y + x, shape, w["second_gamma"], w["second_beta"], epsilon)

    def compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The encoder with layers by torch.compile; it compiles once, since all layers have the same shapes."""
        torch._dynamo.reset()
        run_layer: Any = torch.compile(self.run_layer, fullgraph=True, dynamic=False)

        def run(x: torch.Tensor) -> torch.Tensor:
            for weights in self.layers:
                x = run_layer(x, weights)
            return x

        return run


def hugging_face(config: BertConfig) -> torch.nn.Module:
    """Hugging Face's encoder of the same sizes, with random weights, which do not change the time."""
    from transformers import BertConfig as HfConfig
    from transformers import BertModel

    sizes = HfConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
    )
    return BertModel(sizes).encoder.cuda().half().eval()


# --- ours -------------------------------------------------------------------------------------------------


def our_module(folder: ModelFolder, name: str, batching: str) -> torch.nn.Module:
    """The encoder of builder.py's network: (B, S, H) or (T, H), and mask or cu_seqlens, to the same shape."""
    fusion, layer_set, fused = FUSED[name]
    network = assemble(folder, TrtLog(), "fp16", batching=batching, fusion=fusion, layer_set=layer_set)
    first, *_, last = network.hidden_states
    batch_input = {"padded": MASK_NAME, "packed": LENGTHS_NAME}[batching]
    if "QkvToContext" not in fused:
        batch_input = "mask.bias"  # native attention adds this tensor, which layers outside the encoder compute
    return NetworkRunner(network.network, "cuda", [last], network.contents, inputs=[first, batch_input]).module


def our_inputs(x: torch.Tensor, name: str, batching: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's inputs for x (B, S, H): x, and the mask, cu_seqlens, or the additive mask of native attention."""
    batch, length, _ = x.shape
    if batching == "packed":
        return x.flatten(0, 1), torch.arange(batch + 1, dtype=torch.int32, device="cuda") * length
    if "QkvToContext" in FUSED[name][2]:
        return x, torch.ones(batch, length, dtype=torch.int32, device="cuda")
    return x, torch.zeros(batch, 1, 1, length, device="cuda")


# --- measuring --------------------------------------------------------------------------------------------


def products_alone(peer: Peer, tokens: int, transposed: bool) -> Function:
    """The products of all layers, through cuBLAS, without biases; ``transposed``: weights are (in, out) in memory."""
    hidden, inner = peer.config.hidden_size, peer.config.intermediate_size
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.float16)
    inner_x = torch.randn(tokens, inner, device="cuda", dtype=torch.float16)

    names = ("qkv", "attended", "inner", "outer")
    layers = [[w[name].t().contiguous().t() if transposed else w[name] for name in names] for w in peer.layers]

    def run() -> None:
        for qkv, attended, inner_weight, outer in layers:
            linear(x, qkv)
            linear(x, attended)
            linear(x, inner_weight)
            linear(inner_x, outer)

    return run


def measure(folder: ModelFolder, batch: int, length: int) -> dict[str, Any]:
    """Measures all contenders at one size, in one run."""
    config = folder.config
    torch.manual_seed(0)
    x = torch.randn(batch, length, config.hidden_size, device="cuda", dtype=torch.float16)
    peer = Peer(config, folder.weights())
    functions: dict[str, Function] = {
        "products alone": products_alone(peer, batch * length, transposed=False),
        "products alone, (in, out)": products_alone(peer, batch * length, transposed=True),
    }
    results: dict[str, torch.Tensor] = {}

    def add(name: str, run: Callable[..., Any], *inputs: torch.Tensor) -> None:
        with log_console.status(f"B{batch} S{length}: {name}"):
            answer = run(*inputs)
            hidden = answer[0] if isinstance(answer, tuple) else answer
            results[name] = hidden.reshape(-1, config.hidden_size).clone()
        functions[name] = lambda: run(*inputs)

    with torch.inference_mode():
        times = {name: _time_with(backend, peer, x) for name, backend in BACKENDS.items()}
        best = min(times, key=lambda name: times[name])
        with sdpa_kernel(BACKENDS[best]):
            add("PyTorch eager", peer, x)
            add("PyTorch compiled", peer.compiled(), x)
            for name in FUSED:
                add(f"ours {name}", our_module(folder, name, "padded"), *our_inputs(x, name, "padded"))
            add("ours all, packed", our_module(folder, "all", "packed"), *our_inputs(x, "all", "packed"))
            times_by_name = graph_times(functions, launches=4, rounds=25)
        encoder = hugging_face(config)
        times_by_name["Hugging Face eager"] = graph_times({"it": lambda: encoder(x)}, launches=4, rounds=25)["it"]
    reference = results["PyTorch eager"].double()
    errors = {
        name: float((result.double() - reference).norm() / reference.norm()) for name, result in results.items()
    }
    return {
        "batch": batch,
        "length": length,
        "backend": best,
        "microseconds": times_by_name,
        "rel_l2_to_eager": errors,
    }


def _time_with(backend: SDPBackend, peer: Peer, x: torch.Tensor) -> float:
    with sdpa_kernel(backend):
        return graph_times({"it": lambda: peer(x)}, launches=4, rounds=5)["it"]


HEADINGS = (
    "B",
    "S",
    "what",
    "us",
    "compiled peer : this",
    "eager peer : this",
    "this : products",
    "rel. L2 to eager",
)


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    table_rows = []
    for result in results:
        times = result["microseconds"]
        for name, time in times.items():
            error = result["rel_l2_to_eager"].get(name)
            table_rows.append(
                [
                    str(result["batch"]),
                    str(result["length"]),
                    name + (f" ({result['backend']})" if name.startswith("PyTorch") else ""),
                    f"{time:.1f}",
                    f"{times['PyTorch compiled'] / time:.3f}",
                    f"{times['PyTorch eager'] / time:.3f}",
                    f"{time / times['products alone']:.3f}",
                    "—" if error is None else f"{error:.1e}",
                ]
            )
    return table_rows


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    check_results(args.json, args.markdown, [args.model_dir])
    if not torch.cuda.is_available():
        raise UserError("benchmarks/encoder.py needs an NVIDIA GPU and PyTorch for CUDA")
    folder, about = ModelFolder(args.model_dir), versions("cuda")
    command = " ".join(["python benchmarks/encoder.py", *sys.argv[1:]])
    results: list[dict[str, Any]] = []
    for batch, length in args.sizes:
        results.append(measure(folder, batch, length))
        print_table("Encoder, fp16, CUDA graph, median", HEADINGS, rows(results[-1:]))
        record = {"about": about, "command": command, "results": results}
        lines = [
            "# The encoder in a CUDA graph",
            "",
            "fp16, BERT-base size. Ours is run by `network_runner.py` from the TensorRT network definition, not by "
            f"TensorRT. {', '.join(f'{key} {value}' for key, value in about.items())}. Command: `{command}`",
            "",
            *markdown_table(HEADINGS, rows(results)),
        ]
        write_results(args.json, record, args.markdown, lines)
    return 0


if __name__ == "__main__":
    run_script(main)
