"""The table that builder.py, onnx2trt.py and demo.py print, and the sentences under it that explain the results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bert_trt import tensorrt_product
from bert_trt.comparison import (
    OWN_NETWORK,
    PYTORCH,
    Comparison,
    SequenceError,
    combined_rel_l2,
    enumerate_in_text,
    worst_of,
)
from bert_trt.console import console
from bert_trt.options import ONE_SEQUENCE, QUANTIZED_PRECISIONS, TOLERANCES, SequenceRange
from bert_trt.pipeline import Result
from bert_trt.tensorrt_product import IS_RTX


def print_report(*results: Result) -> None:
    """Prints one table with a column for PyTorch and one for each result."""
    demo = results[0].task.demo
    table = Table(title=Text(demo.text), title_justify="left")
    for heading in ("", "PyTorch fp32", *(result.task.heading for result in results)):
        table.add_column(heading, overflow="fold")
    reference = Comparison.of(demo.output, demo, results[0].task.rankings.of)
    if reference.top10:
        comparisons = (reference, *(result.comparison for result in results))
        for place in range(len(reference.top10)):
            table.add_row(f"{place + 1}.", *(_word_cell(comparison, place) for comparison in comparisons))
        table.add_section()
    rows = [
        ("relative L2 error", _error_cell),
        (
            "largest difference",
            lambda result: "" if result.comparison is None else f"{result.comparison.max_abs:.2e}",
        ),
        ("other lengths, worst", _sequences_cell),
        ("without roundings, worst", _structure_cell),
        ("network layers", lambda result: str(result.num_layers)),
        ("plan", lambda result: f"{result.plan_bytes / 2**20:.2f} MiB"),
        *([("products in int8 or fp8", _products_cell)] if results[0].parts is not None else []),
        ("seconds for network + plan", lambda result: f"{result.seconds_network:.2f} + {result.seconds_build:.2f}"),
        ("network run by", lambda result: {"tensorrt": "TensorRT", "pytorch": "PyTorch"}[result.executed_by]),
        ("milliseconds, median (p99)", _latency_cell),
        ("agrees with PyTorch", lambda result: "[green]yes[/]" if result.agrees else "[bold red]NO[/]"),
    ]
    for label, cell in rows:
        table.add_row(label, "", *(cell(result) for result in results))
    console.print(table)
    console.print(_explain_execution(results[0]), soft_wrap=True)
    for result in results:
        if result.quantized is not None:
            console.print(_explain_quantization(result), soft_wrap=True)
            result.quantized.print_change()
    for result in results:
        for line in _remarks(result):
            console.print(Text(f"{result.task.heading}: {line}"), soft_wrap=True)  # Text: words such as [unused1]
        if result.reasons:
            console.print(Text(f"{result.task.heading} does not agree with PyTorch:"), soft_wrap=True)
        for reason in result.reasons:
            console.print(Text(f"- {reason}"), soft_wrap=True)


def _remarks(result: Result) -> list[str]:
    """Near-ties, and what was compared where the sentence does not fit the plan."""
    remarks = [] if result.task.example is not None else [_explain_length(result)]
    near_ties = result.comparison.near_ties(result.task.precision) if result.comparison is not None else []
    return remarks + [f"a near-tie, which counts as the same: {tie.describe()}" for tie in near_ties]


def _explain_length(result: Result) -> str:
    """What was compared in place of a sentence that does not fit the plan."""
    tokens, seq_len, batch = (
        result.task.demo.inputs["input_ids"].shape[1],
        result.task.build.seq_len,
        result.task.build.batch,
    )
    accepted = f"{_describe_range(seq_len)} tokens"
    accepted += "" if batch == ONE_SEQUENCE else f" in each of {_describe_range(batch)} sequences"
    reason = f"the sentence has {tokens} tokens and does not fit the plan, which takes {accepted}"
    compared = _lengths(result.sequences)
    if any(error.expected_from == OWN_NETWORK for error in result.sequences):
        return (
            f"{reason}; made-up sequences of {compared} tokens were compared with the same network without its "
            f"roundings, and that one with PyTorch at {_lengths(result.structure or [])} tokens"
        )
    return f"{reason}; other sequences of {compared} tokens were compared with PyTorch's answers"


def _describe_range(allowed: SequenceRange) -> str:
    low, high = allowed.minimum, allowed.maximum
    return str(low) if low == high else f"{low} to {high}"


def _lengths(errors: Sequence[SequenceError]) -> str:
    return enumerate_in_text([str(length) for length in sorted({error.tokens for error in errors})])


def _error_cell(result: Result) -> str:
    if result.comparison is None:
        return "the sentence does not fit"
    return f"{result.comparison.rel_l2:.2e} (at most {result.task.tolerance:.0e})"


def _word_cell(comparison: Comparison | None, place: int) -> Text:  # Text, not markup: there is a word [unused1]
    if comparison is None:
        return Text("not run")
    if not comparison.top10:
        return Text("not finite")
    entry = comparison.top10[place]
    return Text(f"{entry['word']} {entry['probability']:.4f}")


def _sequences_cell(result: Result) -> str:
    """The largest error of a sequence; before it, in int8 and fp8, the error of all sequences together."""
    if result.task.precision in QUANTIZED_PRECISIONS and result.sequences:
        return f"{combined_rel_l2(result.sequences):.2e}\n{_worst(result.sequences)}"
    return _worst(result.sequences)


def _structure_cell(result: Result) -> str:
    if result.structure is None:
        return "as above" if result.task.precision == "fp32" and result.executed_by == "pytorch" else "not looked at"
    return f"{_worst(result.structure)}\n(at most {TOLERANCES['fp32']:.0e})"


def _worst(errors: Sequence[SequenceError]) -> str:
    if not errors:
        return "none fits the plan"
    worst = worst_of(errors)
    against = "" if worst.expected_from == PYTORCH else f"\nagainst {worst.expected_from}"
    return f"{worst.rel_l2:.2e} at {worst.tokens} tokens{against}"


def _products_cell(result: Result) -> str:
    assert result.parts is not None
    return f"{result.parts.quantized_products} of {result.parts.products}"


def _explain_quantization(result: Result) -> str:
    """Compares the size of the weights in the network with the size of the plan."""
    assert result.parts is not None
    parts, plan = result.parts, result.plan_bytes / 1e6
    quantized, total = parts.quantized_weights / 1e6, parts.weight_bytes / 1e6
    conclusion = {
        True: f"which proves it: with 2 bytes an element the weights alone would take {total + quantized:.1f} MB",
        False: "[bold red]too large for that[/]: TensorRT has converted them to 2 bytes",
        None: "and so small a model proves nothing about the type of its weights",
    }[parts.plan_has_quantized_weights(result.plan_bytes)]
    return (
        f"{result.task.script}: {parts.quantized_products} of {parts.products} products have both factors in "
        f"{result.task.precision}; their weights take {quantized:.2f} MB at 1 byte an element, all weights "
        f"{total:.2f} MB. The plan has {plan:.2f} MB, {conclusion}."
    )


def _latency_cell(result: Result) -> str:
    if not result.latency:
        return "plan not executed"
    build = result.task.build
    shape = "" if result.task.example is not None else f"\nof {build.batch.optimum} x {build.seq_len.optimum} tokens"
    lines = (f"{name}: {times.median:.3f} ({times.p99:.3f})" for name, times in result.latency.items())
    return "\n".join(lines) + shape


def _explain_execution(result: Result) -> str:
    built_by = tensorrt_product.describe()
    if result.executed_by == "tensorrt":
        return f"Plans built and executed by {built_by}."
    where = " It builds without a GPU." if IS_RTX else ""
    return (
        f"Plans built by {built_by}, not executed: {result.not_executed_because}.{where} "
        "The results above are those of the same network definition, run by PyTorch."
    )
