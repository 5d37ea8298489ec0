"""Every name of TensorRT that the project uses exists in every supported release: read from tensorrt_names.json."""

import ast
import json

import pytest
import tensorrt_names
from tensorrt_names import NAMES, RELEASES, Uses, sources

from bert_trt.tensorrt_product import IS_RTX, OLDEST_FULL_TENSORRT, trt

# Names that some releases have. Whoever uses one asks for it with hasattr or getattr.
SINCE_11 = ("11.1.0.106", "11.4.0.106")
VERSION_DEPENDENT = {
    "INetworkDefinition.add_normalization_v2": ("10.16.1.11", *SINCE_11),  # since 10.15
    "INetworkDefinition.add_attention": ("10.16.1.11", *SINCE_11),  # since 10.14
    "INetworkDefinition.add_attention_v2": SINCE_11,
    "IAttention.query_form": SINCE_11,
    "IAttention.query_lengths": SINCE_11,
    "IAttention.key_value_form": SINCE_11,
    "IAttention.key_value_lengths": SINCE_11,
}
# Names that came in one release with another one: who asks for that one need not ask for them.
CAME_WITH = dict.fromkeys(
    ("IAttention.query_lengths", "IAttention.key_value_form", "IAttention.key_value_lengths"), "query_form"
)
# Names that the full product does not have.
RTX_ONLY = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
RTX_CLASSES = ("IRuntimeConfig",)  # handed out by an engine; the sources never write the name
# Names of our own or of other packages that an older TensorRT had too.
NOT_TENSORRT = {"precision"}
SHARED_METHODS = {"append", "extend", "insert", "pop", "update", "write"}  # of lists, sets and files as well
COMMAND = "python tests/tensorrt_names.py"

Data = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def data() -> Data:
    """Name -> parameters of its overloads -> the releases that have it so."""
    names = json.loads(NAMES.read_text())
    return {name: {found: list(RELEASES)} if isinstance(found, str) else found for name, found in names.items()}


@pytest.fixture(scope="module")
def trees() -> list[ast.Module]:
    return list(sources().values())


def test_the_releases_begin_with_the_oldest_that_is_supported():
    assert tuple(map(int, next(iter(RELEASES)).split(".")[:2])) == OLDEST_FULL_TENSORRT


# --- names --------------------------------------------------------------------------------------------------


def names_without_a_release(data: Data) -> dict[str, tuple[str, ...]]:
    """Names that not every release has, with those that have it.

    A member is missed where its class is there without it: an object of a class that a release lacks can only come
    from a call that it lacks too.
    """
    found = {name: [release for some in signatures.values() for release in some] for name, signatures in data.items()}
    classes: dict[str, set[str]] = {}
    for name, releases in found.items():
        classes.setdefault(name.split(".")[0], set()).update(releases)
    return {
        name: tuple(releases)
        for name, releases in found.items()
        if set(releases) != (classes[name.split(".")[0]] if "." in name else set(RELEASES))
        and name.split(".")[-1] not in NOT_TENSORRT
    }


def unguarded(tree: ast.Module, names) -> list[str]:
    """Those of ``names`` that a file uses without asking for them."""
    uses = Uses.of([tree])
    used = {name for name in names if name in uses.dotted or name.split(".")[-1] in uses.attributes}
    return sorted(name for name in used if CAME_WITH.get(name, name.split(".")[-1]) not in uses.guarded)


def unknown_names(trees: list[ast.Module], data: Data) -> list[str]:
    """What is written as ``trt.X.Y``, or is a class named in a string, and is in no release."""
    uses = Uses.of(trees)
    classes = {word for word in uses.words if word.startswith("I") and word.endswith("Layer")}
    known = {name.split(".")[0] for name in data}
    return sorted(
        [name for name in uses.dotted if name not in data and name not in RTX_ONLY and not name.startswith("__")]
        + [word for word in classes if word not in known]
    )


def test_every_name_exists_in_every_release(data):
    assert names_without_a_release(data) == VERSION_DEPENDENT


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_names_that_some_releases_lack_are_asked_for(path):
    assert unguarded(sources()[path], VERSION_DEPENDENT) == []


def test_every_name_of_the_module_is_known(trees, data):
    assert unknown_names(trees, data) == [], f"not in any release, or {NAMES.name} is out of date: {COMMAND}"


def test_the_list_has_what_the_installed_product_shows(trees, data, monkeypatch):
    """What is used, and the installed product has, is in the list: a list that is out of date is found here."""
    monkeypatch.setattr(tensorrt_names, "HANDED_OUT", (*tensorrt_names.HANDED_OUT, *RTX_CLASSES))
    found = set(tensorrt_names.members(trt, Uses.of(trees)))
    told = f"not in the full product, or {NAMES.name} is out of date: {COMMAND}"
    extra = {name for name in found - set(data) if name.split(".")[-1] not in NOT_TENSORRT}
    if not IS_RTX:
        assert extra == set(), told
        return
    used = Uses.of(trees)
    wanted = {name for name in RTX_ONLY if "." in name}
    assert {name for name in extra if "." in name} == wanted, told
    assert all(hasattr(trt, name) for name in RTX_ONLY - wanted)
    assert RTX_ONLY - wanted <= used.guarded  # no type checker knows them


def test_wrong_names_are_found(data):
    tree = ast.parse("x = trt.DataType.FP16\nnames = {'A': 'IInventedLayer'}\ny = trt.DataType.HALF")
    assert unknown_names([tree], data) == ["DataType.FP16", "IInventedLayer"]
    plain = ast.parse("network.add_normalization_v2(x, scale, bias, 1)")
    asked = ast.parse("if hasattr(network, 'add_normalization_v2'):\n    network.add_normalization_v2(x, a, b, 1)")
    assert unguarded(plain, VERSION_DEPENDENT) == ["INetworkDefinition.add_normalization_v2"]
    assert unguarded(asked, VERSION_DEPENDENT) == []
    gone = data | {"Builder.build": {"network": ["10.13.0.35"]}}
    assert names_without_a_release(gone).keys() - VERSION_DEPENDENT == {"Builder.build"}


# --- parameters ---------------------------------------------------------------------------------------------


def takes(parameters: str, call: ast.Call) -> bool:
    """Whether an overload with these parameters takes the arguments of a call."""
    names = [part for part in parameters.split(", ") if part]
    plain = [name.rstrip("=") for name in names]
    by_name = [keyword.arg for keyword in call.keywords]
    given = {*plain[: len(call.args)], *by_name}
    needed = {name for name in names if not name.endswith("=")}
    return len(call.args) <= len(names) and set(by_name) <= set(plain[len(call.args) :]) and needed <= given


def method_calls(tree: ast.Module) -> list[ast.Call]:
    """Calls written as ``x.method(...)`` where x is no module."""
    nodes = list(ast.walk(tree))
    imports = [
        node
        for node in nodes
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "bert_trt")
    ]
    modules = {name.asname or name.name for node in imports for name in node.names}
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in calls if ast.unparse(call.func).rpartition(".")[0] not in modules]


def refused_calls(trees: list[ast.Module], data: Data) -> list[str]:
    """Calls of methods of TensorRT whose arguments fit in no class of some release."""
    methods: dict[str, list[dict[str, list[str]]]] = {}
    for name, signatures in data.items():
        if "." in name and any(signatures) and name.split(".")[1] not in SHARED_METHODS:  # a method with parameters
            methods.setdefault(name.split(".")[1], []).append(signatures)
    refused = []
    for call in (call for tree in trees for call in method_calls(tree)):
        starred = any(isinstance(one, ast.Starred) for one in call.args) or any(
            one.arg is None for one in call.keywords
        )
        if starred or not isinstance(call.func, ast.Attribute) or call.func.attr not in methods:
            continue
        for release in RELEASES:
            overloads = [
                parameters
                for signatures in methods[call.func.attr]
                for listed, releases in signatures.items()
                if release in releases
                for parameters in listed.split(" | ")
            ]
            if overloads and not any(takes(parameters, call) for parameters in overloads):
                refused.append(f"{release}: {ast.unparse(call)}")
    return refused


def test_every_call_fits_every_release(trees, data):
    assert refused_calls(trees, data) == []


@pytest.mark.parametrize(
    ("call", "releases"),
    [
        ("network.add_reduce(x, op, 1, keep_dims=False)", 0),
        ("network.add_reduce(x, op, 1, keepdims=False)", 4),
        ("network.add_reduce(x, op, 1)", 4),
        ("network.add_quantize(x, scale)", 2),  # gone in 11
        ("network.add_quantize(x, scale, dtype)", 0),
        ("config.set_timing_cache(cache, True, ignore_mismatch=False)", 4),
    ],
)
def test_wrong_calls_are_found(data, call, releases):
    assert len(refused_calls([ast.parse(call)], data)) == releases
