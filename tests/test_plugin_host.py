"""The plugin host: errors that name their reason, and the order of calls, without a GPU."""

import ctypes
import gc
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plugin_build_for_tests import built_plugins, compile_and_run

from plugins import build
from plugins.plugin_host import PluginHost, PluginHostError, TensorSpec

X = TensorSpec((2, 7, 768), "float16")
WEIGHT = TensorSpec((768,), "float16")
INPUTS = [X, WEIGHT, WEIGHT]
FIELDS = {"epsilon": 1e-12, "kernel": "fast"}


# Each plugin with every field set. One third is there because six digits, printf's default, do not bring it back.
THIRD = np.float32(1) / np.float32(3)
EVERY_FIELD = {
    "LayerNorm": {"epsilon": np.float32(1e-12), "kernel": "fused"},
    "SkipLayerNorm": {
        "epsilon": THIRD,
        "x_scale": np.float32(0.1),
        "skip_scale": np.float32(0.00123456789),
        "output_scale": np.float32(7),
        "outputs": "both",
        "quantized_type": "fp8",
        "constant_weights": 1,
        "output_type": "bf16",
        "output_factors": 1,
    },
    "EmbLayerNorm": {
        "epsilon": THIRD,
        "output_scale": np.float32(0.1),
        "outputs": "both",
        "quantized_type": "fp8",
        "output_factors": 1,
    },
    "QkvToContext": {
        "num_heads": 12,
        "layout": "packed",
        "max_sequence_length": 128,
        "qkv_scale": THIRD,
        "output_scale": np.float32(0.1),
        "output_type": "int8",
    },
    "Linear": {
        "activation": "gelu",
        "constant_weight": 1,
        "x_scale": THIRD,
        "output_scale": np.float32(0.1),
        "output_type": "fp8",
        "output_factors": 1,
    },
    "LinearSkipLayerNorm": {
        "epsilon": THIRD,
        "x_scale": np.float32(0.00123456789),
        "output_scale": np.float32(0.1),
        "outputs": "both",
        "quantized_type": "fp8",
        "output_factors": 1,
        "constant_weights": 1,
    },
}
each_plugin = pytest.mark.parametrize("name", EVERY_FIELD)


@pytest.fixture(scope="module")
def host():
    folder = built_plugins()
    return PluginHost(folder / build.LIBRARY, folder / build.HOST)


def test_creators(host):
    (creator,) = [creator for creator in host.creators() if creator.name == "LayerNorm"]
    assert (creator.version, creator.namespace) == ("1", "")
    assert creator.field_names == ("epsilon", "kernel")


def test_unknown_plugin_is_named(host):
    with pytest.raises(PluginHostError, match='no plugin LayerNorm, version 2, namespace ""'):
        host.create("LayerNorm", "2", fields=FIELDS)


def test_missing_library_says_how_to_build(monkeypatch, tmp_path):
    monkeypatch.setenv(build.BUILD_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(build.BuildError, match=r"not built. Build them: python plugins/build\.py"):
        PluginHost()


def test_library_without_plugins_is_refused(host):
    folder = built_plugins()
    with pytest.raises(PluginHostError, match="no function getCreators"):
        PluginHost(folder / build.HOST, folder / build.HOST)


def test_file_that_is_no_library_is_refused(tmp_path):
    text = tmp_path / "libtext.so"
    text.write_text("not a library")
    with pytest.raises(PluginHostError, match=r"libtext\.so cannot be loaded: .*(invalid ELF|too short)"):
        PluginHost(text, built_plugins() / build.HOST)


def test_two_hosts_have_copies_of_their_own(host):
    folder = built_plugins()
    other = PluginHost(folder / build.LIBRARY, folder / build.HOST)
    before = other.plugins_alive()
    plugin = host.create("LayerNorm", fields=FIELDS)
    assert other.plugins_alive() == before
    plugin.close()


def test_messages_go_to_the_host_that_asked(host):
    folder = built_plugins()
    other = PluginHost(folder / build.LIBRARY, folder / build.HOST)
    with pytest.raises(PluginHostError, match="epsilon is -1"):
        host.create("LayerNorm", fields=FIELDS | {"epsilon": -1.0})
    assert other.take_messages() == []


@pytest.mark.parametrize("missing", ["start", "shapes"])
def test_enqueue_out_of_order_is_an_error(host, missing):
    plugin = host.create("LayerNorm", fields=FIELDS)
    if missing == "shapes":
        plugin.start()
    tensors = plugin._c.hostedPluginEnqueue(plugin._handle, None, None, None, None)
    assert tensors == -1
    assert b"has no shapes yet" in plugin._c.pluginHostError()


@pytest.fixture(scope="module")
def calls_in_wrong_orders(tmp_path_factory):
    """Runs the probe for one plugin. Returns each step's name with what its calls answered and logged."""
    library = built_plugins() / build.LIBRARY
    folder = tmp_path_factory.mktemp("probe")

    def call(plugin):
        steps = {}
        for line in compile_and_run("plugin_order_probe.cpp", folder, [], [str(library), plugin]).splitlines():
            if line.startswith("  ") or " plugin, " in line:
                steps[next(reversed(steps))].append(line.strip())
            else:
                steps[line] = []
        return steps

    return call


@each_plugin
def test_nothing_is_launched_with_shapes_that_were_not_told_or_not_accepted(calls_in_wrong_orders, name):
    """A layer with a bias would leave it out: only onShapeChange says how many inputs there are."""
    steps = calls_in_wrong_orders(name)
    refused = [
        f"{name} plugin, enqueue: shapes and number of inputs are unknown; "
        "expected a successful onShapeChange before",
        "enqueue: -1",
    ]
    assert steps["created"] == refused
    assert steps["attached"] == refused
    assert steps["told"] == ["onShapeChange: 0", "enqueue: 0"]
    assert steps["clone of told"] == ["enqueue: 0"]
    reason, status, *after = steps["told wrong shapes"]
    assert reason.startswith(f"{name} plugin, onShapeChange: ")
    assert (status, after) == ("onShapeChange: -1", refused)
    assert steps["clone of told wrong shapes"] == refused
    assert steps["told again"] == ["onShapeChange: 0", "enqueue: 0"]


def test_what_is_known_of_a_kernel_is_known_by_function_and_device(tmp_path):
    assert compile_and_run("function_property_cache_probe.cpp", tmp_path, [], []).splitlines() == [
        *["1001"] * 3,  # two functions of one type on two devices
        "asked 1 1 1 1",
        "after a failure 1",
        "wrong in threads 0",
    ]


def test_set_shapes_before_start_is_an_error(host):
    plugin = host.create("LayerNorm", fields=FIELDS)
    assert plugin._c.hostedPluginSetShapes(plugin._handle, None, 0, 0) == -1
    assert b"not started" in plugin._c.pluginHostError()


def test_serialized_fields_make_the_same_plugin(host):
    plugin = host.create("LayerNorm", fields=FIELDS)
    fields = plugin.serialized_fields()
    assert fields == {"epsilon": np.float32(1e-12), "kernel": "fast"}
    assert host.create("LayerNorm", fields=fields).serialized_fields() == fields


def test_every_plugin_is_in_the_table_above(host):
    assert {creator.name: set(creator.field_names) for creator in host.creators()} == {
        name: set(fields) for name, fields in EVERY_FIELD.items()
    }


@each_plugin
def test_metadata_holds_every_field_exactly(host, name):
    metadata = host.create(name, fields=EVERY_FIELD[name]).metadata()
    found = dict(pair.split("=", 1) for pair in metadata.split(" "))
    assert len(found) == metadata.count("=")
    assert {key: type(EVERY_FIELD[name][key])(value) for key, value in found.items()} == EVERY_FIELD[name]


def test_metadata_names_defaults_and_leaves_out_what_is_not_given(host):
    plugin = host.create("SkipLayerNorm", fields={"epsilon": 1e-12})
    assert plugin.metadata() == (
        "epsilon=9.99999996e-13 x_scale=0 skip_scale=0 output_scale=0 outputs=y constant_weights=0"
    )


@each_plugin
def test_timing_cache_id_is_that_of_the_plugin_and_its_fields(host, name):
    plugin = host.create(name, fields=EVERY_FIELD[name])
    identity = plugin.timing_cache_id()
    assert identity == f"{name} 1 {plugin.metadata()}"
    assert plugin.clone().timing_cache_id() == identity
    assert host.create(name, fields=plugin.serialized_fields()).timing_cache_id() == identity


def test_timing_cache_id_differs_with_any_field(host):
    identities = {
        host.create("Linear", fields={"activation": activation, "constant_weight": constant}).timing_cache_id()
        for activation in ("none", "gelu")
        for constant in (0, 1)
    }
    assert len(identities) == 4


def test_texts_stay_where_they_are(host):
    """TensorRT may keep the pointers: they outlive later calls on the same plugin."""
    plugin = host.create("Linear", fields=EVERY_FIELD["Linear"])
    c_text = plugin._c.hostedPluginMetadata
    c_text.restype = ctypes.c_void_p
    try:
        first = c_text(plugin._handle)
        plugin.timing_cache_id()
        plugin.serialized_fields()
        assert c_text(plugin._handle) == first
    finally:
        c_text.restype = ctypes.c_char_p


def test_clone_is_configured_like_the_original(host):
    plugin = host.create("LayerNorm", fields=FIELDS | {"kernel": "basic"})
    clone = plugin.clone()
    plugin.close()
    assert clone.serialized_fields()["kernel"] == "basic"
    assert clone.configure(INPUTS) > 0


def test_no_leak_in_ten_thousand_rounds(host):
    def rounds(count):
        for _ in range(count):
            plugin = host.create("LayerNorm", fields=FIELDS)
            plugin.prepare(INPUTS)  # build phase, serialised fields, runtime phase, context
            plugin.clone().close()
            plugin.close()
        gc.collect()

    rounds(500)  # caches fill
    alive, memory = host.plugins_alive(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rounds(10_000)
    assert host.plugins_alive() == alive
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 4096, f"{grown} KiB more than before"  # one leaked object of 100 bytes a round: 1000 KiB and more


def test_unknown_data_type_is_an_error(host):
    plugin = host.create("LayerNorm", fields=FIELDS)
    with pytest.raises(ValueError, match="unknown data type 'float8'"):
        plugin.output_specs([TensorSpec((1, 768), "float8"), WEIGHT, WEIGHT])


def test_libraries_keep_to_themselves():
    """No C++ symbol in or out: what other libraries of a process export must not get between."""
    for library in (build.LIBRARY, build.HOST):
        path = built_plugins() / library
        needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        assert "libstdc++" not in needed
        assert "nvinfer" not in needed
        assert "tensorrt" not in needed
        symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
        assert "_ZNSt" not in symbols  # anything of namespace std


def test_host_survives_a_library_that_exports_parts_of_the_cxx_library(tmp_path):
    """libcufile, loaded by PyTorch for CUDA for everybody to see, exports such a constructor."""
    source = tmp_path / "interposer.c"
    constructor = "_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev"
    source.write_text(f"#include <stdlib.h>\nvoid {constructor}(void) {{ abort(); }}\n")
    interposer = tmp_path / "libinterposer.so"
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", interposer], check=True)
    folder = built_plugins()
    script = f"""
import ctypes
ctypes.CDLL({str(interposer)!r}, mode=ctypes.RTLD_GLOBAL)
from plugins.plugin_host import PluginHost
host = PluginHost({str(folder / build.LIBRARY)!r}, {str(folder / build.HOST)!r})
print(host.create("LayerNorm", fields={{"epsilon": 1e-12}}).serialized_fields()["kernel"])
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fast", done.stderr
