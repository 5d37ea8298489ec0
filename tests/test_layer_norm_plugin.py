"""The LayerNorm plugin: what it accepts and refuses anywhere, what it computes on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_build_for_tests import ROOT, built_plugins

from plugins import build, reference, testLayerNormPlugin
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

KERNELS = ("basic", "fused", "fast")
FLOATS = ("float32", "float16", "bfloat16")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and PyTorch for CUDA")


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def create(host, **fields):
    return host.create("LayerNorm", fields={"epsilon": 1e-12} | fields)


def specs(x="float16", gamma=None, beta=None, shape=(2, 7, 768), hidden=768):
    gamma = gamma or x
    return [
        TensorSpec(shape, x),
        TensorSpec((hidden,), gamma),
        TensorSpec((hidden,), beta or gamma),
    ]


# --- Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 0.0}, "field epsilon is 0; expected a finite number greater than 0"),
        ({"epsilon": -1e-5}, "field epsilon is -1e-05; expected"),
        ({"epsilon": float("nan")}, "field epsilon is nan; expected"),
        ({"epsilon": float("inf")}, "field epsilon is inf; expected"),
        ({"epsilon": np.float64(1e-5)}, "field epsilon has plugin field type 2, expected float32"),
        ({"epsilon": 1}, "field epsilon has plugin field type 5, expected float32"),
        ({"epsilon": np.array([1e-5, 1e-6], np.float32)}, "field epsilon has 2 elements, expected 1"),
        ({}, "field epsilon is missing"),
        ({"epsilon": 1e-5, "kernel": "quick"}, 'field kernel is "quick"; expected basic, fused or fast'),
        ({"epsilon": 1e-5, "kernel": 2}, "field kernel has plugin field type 5, expected char"),
        ({"epsilon": 1e-5, "kernel": ""}, "field kernel is empty"),
        ({"epsilon": 1e-5, "eps": 1e-5}, "unknown field eps"),
    ],
)
def test_wrong_fields_are_refused_by_name(host, fields, message):
    with pytest.raises(PluginHostError) as error:
        host.create("LayerNorm", fields=fields)
    assert message in str(error.value)


def test_kernel_is_fast_unless_told_and_may_end_with_a_zero(host):
    assert create(host).serialized_fields()["kernel"] == "fast"
    assert create(host, kernel=b"fused\0").serialized_fields()["kernel"] == "fused"


# --- Types, shapes, formats


@pytest.mark.parametrize("x", FLOATS)
def test_accepted_types(host, x):
    plugin = create(host)
    for gamma in {x, "float32"}:
        (output,) = plugin.output_specs(specs(x, gamma))
        assert output == TensorSpec((2, 7, 768), x)
        plugin.configure(specs(x, gamma))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (("int32", "int32", "int32"), "x is int32; expected fp32, fp16 or bf16"),
        (("int8", "float32", "float32"), "x is int8; expected"),
        (
            ("float32", "float16", "float16"),
            "gamma is fp16 and beta is fp16 for x of fp32; expected both fp32",
        ),
        (("float16", "bfloat16", "bfloat16"), "expected both fp16 or both fp32"),
        (("float16", "float32", "float16"), "gamma is fp32 and beta is fp16 for x of fp16"),
    ],
)
def test_wrong_types_are_refused_by_name(host, types, message):
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs(specs(*types))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((2, 768), (767,), (768,)),
            "gamma has the shape [767] and beta [768] for x of [2, 768]; expected both [768]",
        ),
        (((2, 768), (768,), (1, 768)), "beta [1, 768] for x of [2, 768]; expected both [768]"),
        (((2, 0), (0,), (0,)), "x has the shape [2, 0]; its last axis must have 1 to"),
        (((), (1,), (1,)), "x is a scalar; expected [..., H]"),
        (((2, 2**31), (2**31,), (2**31,)), "its last axis must have 1 to 2147483647 elements"),
    ],
)
def test_wrong_shapes_are_refused_by_name(host, shapes, message):
    with pytest.raises(PluginHostError) as error:
        create(host).output_specs([TensorSpec(shape, "float16") for shape in shapes])
    assert message in str(error.value)


def test_wrong_number_of_inputs_is_refused(host):
    with pytest.raises(PluginHostError, match="number of inputs: 2, expected 3"):
        create(host).output_specs(specs()[:2])


def test_unknown_dimensions_pass_through(host):
    (output,) = create(host).output_specs(specs(shape=(-1, -1, 768)))
    assert output.shape == (-1, -1, 768)


@pytest.mark.parametrize("position", range(4))
def test_only_linear_format_is_supported(host, position):
    plugin = create(host)
    tensors = [*specs(), specs()[0]]
    assert plugin.supports(position, tensors[:3], tensors[3:])
    vectorised = TensorSpec(tensors[position].shape, tensors[position].dtype, format=2)  # kHWC8
    tensors[position] = vectorised
    assert not plugin.supports(position, tensors[:3], tensors[3:])


def test_configure_refuses_a_format(host):
    inputs = [TensorSpec((1, 8, 4, 768), "float16", format=2), *specs()[1:]]
    with pytest.raises(PluginHostError, match="supportsFormatCombination refused tensor 0"):
        create(host).configure(inputs)


@given(
    leading=st.lists(st.integers(0, 50), max_size=6),
    hidden=st.integers(1, 10_000),
    dtype=st.sampled_from(FLOATS),
    kernel=st.sampled_from(KERNELS),
)
@settings(deadline=None, max_examples=100)
def test_any_shape_is_prepared(host, leading, hidden, dtype, kernel):
    plugin = create(host, kernel=kernel)
    shape = (*leading, hidden)
    (output,), workspace = plugin.prepare(specs(dtype, shape=shape, hidden=hidden))
    assert output == TensorSpec(shape, dtype)
    assert workspace == (12 * int(np.prod(leading, dtype=np.int64)) if kernel == "basic" else 0)


# --- CUDA errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, where a launch must fail")
@pytest.mark.parametrize("kernel", KERNELS)
def test_cuda_error_is_returned_and_logged(host, kernel):
    with pytest.raises(PluginHostError) as error:
        create(host, kernel=kernel).enqueue(specs(), [0, 0, 0], [0])
    assert "enqueue returned -1" in str(error.value)
    assert "LayerNorm plugin, enqueue: CUDA error" in str(error.value)


def test_no_rows_launch_nothing(host):
    for kernel in KERNELS:  # without a GPU any launch would be an error
        create(host, kernel=kernel).enqueue(specs(shape=(0, 7, 768)), [0, 0, 0], [0])


# --- The real TensorRT


def test_tensorrt_loads_the_library_and_builds_engines(capsys):
    pytest.importorskip("bert_trt.tensorrt_product", exc_type=ImportError)
    assert testLayerNormPlugin.check_registry(built_plugins() / build.LIBRARY, KERNELS) == []
    assert "builds 9 engines" in capsys.readouterr().out


def test_refusals_reach_tensorrts_logger():
    pytest.importorskip("bert_trt.tensorrt_product", exc_type=ImportError)
    model = testLayerNormPlugin.layer_norm_model("quick", "fp16")
    plan, errors = testLayerNormPlugin.build_engine(model, built_plugins() / build.LIBRARY)
    assert plan is None
    assert any('layer "layer_norm": field kernel is "quick"' in error for error in errors)


# --- The script


def run_script(*arguments, folder=None):
    environment = os.environ | {build.BUILD_DIR_VARIABLE: str(folder or built_plugins())}
    command = [sys.executable, "plugins/testLayerNormPlugin.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--kernel", "quick"], ["--rows", "0"], ["--rows", "many"], ["more"]])
def test_wrong_usage_exits_with_2(arguments):
    assert run_script(*arguments).returncode == 2


def test_script_says_what_it_did_not_check():
    done = run_script("--no-benchmark", "--kernel", "fused")
    assert done.returncode == 0, done.stderr
    if not torch.cuda.is_available():
        assert "Results and times: not checked, because PyTorch finds no CUDA GPU" in done.stdout


def test_script_without_library_says_how_to_build(tmp_path):
    done = run_script(folder=tmp_path)
    assert done.returncode == 1
    assert "Build them: python plugins/build.py" in done.stderr


# --- The reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_is_pytorchs_layer_norm(dtype):
    x, gamma, beta = (torch.randn(shape).to(dtype) for shape in ((5, 33), (33,), (33,)))
    ours = reference.layer_norm(x, gamma, beta, 1e-12)
    theirs = torch.nn.functional.layer_norm(x.double(), (33,), gamma.double(), beta.double(), 1e-12)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    exact = reference.layer_norm(x, gamma, beta, 1e-12, torch.float64)
    torch.testing.assert_close(exact, theirs, rtol=1e-12, atol=1e-12)


# --- On a GPU


@needs_gpu
def test_results_on_the_gpu(host):
    assert testLayerNormPlugin.check_results(host, KERNELS, tuple(testLayerNormPlugin.TYPES), True) == []


@needs_gpu
@given(
    rows=st.integers(1, 300),
    hidden=st.integers(1, 5000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    kernel=st.sampled_from(KERNELS),
)
@settings(deadline=None, max_examples=200)
def test_random_shapes_on_the_gpu(host, rows, hidden, dtype, kernel):
    x, gamma, beta = (torch.randn(shape, device="cuda").to(dtype) for shape in ((rows, hidden), (hidden,), (hidden,)))
    expected = reference.layer_norm(x, gamma, beta, 1e-12, torch.float64)
    y = torch.full_like(x, float("nan"))
    (found,) = create(host, kernel=kernel).run_torch([x, gamma, beta], [y])
    assert testLayerNormPlugin.relative_error(found, expected) <= 2 * torch.finfo(dtype).eps


@needs_gpu
def test_cuda_graph(host):
    x, gamma, beta = (torch.randn(shape, device="cuda").half() for shape in ((128, 768), (768,), (768,)))
    plugin = create(host, kernel="basic")  # the one with a workspace
    plugin.run_torch([x, gamma, beta])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (y,) = plugin.run_torch([x, gamma, beta])
    x.copy_(torch.randn_like(x))
    y.fill_(float("nan"))
    graph.replay()
    expected = reference.layer_norm(x, gamma, beta, 1e-12, torch.float64)
    assert testLayerNormPlugin.relative_error(y, expected) <= 2 * torch.finfo(torch.float16).eps


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 16, 100, 512, 2048, 8192])
def test_kernels_that_follow_each_other_wait_for_each_other(host, rows, dtype):
    """`fast` is launched while the kernel before it still runs; here that one writes what it reads."""
    plugin = create(host, kernel="fast")
    x = torch.randn(rows, 768, device="cuda").to(dtype)
    weights = [[torch.randn(768, device="cuda").to(dtype) for _ in range(2)] for _ in range(40)]
    expected = x
    for gamma, beta in weights:
        (expected,) = plugin.run_torch([expected, gamma, beta])
        torch.cuda.synchronize()
    buffers = [torch.empty_like(x) for _ in range(2)]

    def chain():
        y = x
        for index, (gamma, beta) in enumerate(weights):
            (y,) = plugin.run_torch([y, gamma, beta], [buffers[index % 2]])
        return y

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain()
    for run in (graph.replay, chain) * 10:
        for buffer in buffers:
            buffer.fill_(float("nan"))
        run()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)


@needs_gpu
def test_script_writes_json(tmp_path):
    written = tmp_path / "times.json"
    done = run_script("--rows", "128", "--type", "fp16", "--no-compile", "--json", str(written))
    assert done.returncode == 0, done.stderr
    contenders = {timing["contender"] for timing in json.loads(Path(written).read_text())["timings"]}
    assert contenders == {"copy", "basic", "fused", "fast", "eager"}
