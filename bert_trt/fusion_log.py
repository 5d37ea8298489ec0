"""Reads from TensorRT's verbose log how the optimiser fused the layers of a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bert_trt.console import UserError, console
from bert_trt.inference import execution_obstacle, load_engine
from bert_trt.plan import check_plan
from bert_trt.tensorrt_log import TrtLog
from bert_trt.tensorrt_product import trt

ENGINE_SECTION = "Engine Layer Information"
LAYER_LINE = re.compile(r"^Layer\((?P<kind>[^)]*)\): (?P<name>.*?), Tactic: ")
COUNT_LINE = re.compile(r"(?P<stage>Original|After [^:]+): (?P<count>\d+) layers")
FUSION_LINE = re.compile(r"\b(?P<rule>[A-Z]\w*(?:Fusion|Fuse\w*))\b.*? (?:on|with|into|from) ")


@dataclass(frozen=True)
class FusionReport:
    """The fate of some layers, the parts, in TensorRT's optimiser.

    Attributes:
        parts: names of these layers.
        stages: (stage of the optimiser, number of layers after it), where the number changed.
        fusions: lines of the log that name a fusion rule and a part.
        engine_layers: the parts that the name of each engine layer contains, by that name.
        unnamed: parts that no engine layer names: they were optimised away, or are inside a ForeignNode, which names
            only its first and last layer.
    """

    parts: list[str]
    stages: list[tuple[str, int]]
    fusions: list[str]
    engine_layers: dict[str, list[str]]
    unnamed: list[str]


def read_fusions(lines: Iterable[str], parts: Sequence[str]) -> FusionReport:
    """Searches a verbose log for the layers ``parts``.

    Raises:
        UserError: the log has no list of engine layers, since it is no verbose log or the build failed.
    """
    stages: list[tuple[str, int]] = []
    fusions: list[str] = []
    engine: dict[str, list[str]] = {}
    in_engine_section = False
    for line in lines:
        message = line.split("] ", 1)[-1].rstrip("\n")
        if counted := COUNT_LINE.search(message):
            stage = (counted["stage"], int(counted["count"]))
            if not stages or stages[-1][1] != stage[1]:
                stages.append(stage)
        elif FUSION_LINE.search(message) and any(part in message for part in parts):
            fusions.append(message)
        in_engine_section = in_engine_section or ENGINE_SECTION in message
        if in_engine_section and (layer := LAYER_LINE.match(message)):
            engine[layer["name"]] = [part for part in parts if _names_layer(layer["name"], part)]
    if not engine:
        raise UserError(
            f"the log has no section {ENGINE_SECTION!r}: was it written with --verbose, and did the build end?"
        )
    named = {part for inside in engine.values() for part in inside}
    return FusionReport(list(parts), stages, fusions, engine, [part for part in parts if part not in named])


def _names_layer(engine_layer: str, part: str) -> bool:
    """Whether an engine layer's name contains this layer's name, and not just a longer name that begins with it."""
    return re.search(rf"(?<![\w.]){re.escape(part)}(?![\w.]*\w)", engine_layer) is not None


def print_fusions(log: Path, parts: Sequence[str], plan: Path) -> None:
    """Prints a table of how the layers ``parts`` were fused, from the log, and from the engine if that loads."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        report = read_fusions(lines, parts)
    table = Table(
        title=f"What became of {len(parts)} decomposed GELU layers", title_justify="left", show_header=False
    )
    stages = ", ".join(f"{stage}: {count}" for stage, count in report.stages)
    table.add_row("layers left, by the log", stages)
    table.add_row("fusions that name them", "\n".join(report.fusions) or "none in the log")
    for name, inside in report.engine_layers.items():
        if inside or name.startswith("{ForeignNode"):
            content = f"names {len(inside)} of them" if inside else "compiled as a whole; names only its ends"
            table.add_row(Text(f"engine layer {_shorten(name)}"), content)
    table.add_row("engine layers in all", str(len(report.engine_layers)))
    table.add_row("named by no engine layer", _explain_unnamed(report))
    inspected = inspect_engine(plan)
    table.add_row("engine inspector", inspected if isinstance(inspected, str) else f"{len(inspected)} layers")
    console.print(table)
    console.print(f"verbose log: {log}", soft_wrap=True)


def _explain_unnamed(report: FusionReport) -> str:
    if not report.unnamed:
        return "0"
    if any(name.startswith("{ForeignNode") for name in report.engine_layers):
        return f"{len(report.unnamed)}: inside the ForeignNode"
    return f"{len(report.unnamed)}: fused or optimised away"


def _shorten(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:60]} ... {name[-35:]}"


def inspect_engine(plan: Path) -> list[str] | str:
    """The engine's layers by TensorRT's engine inspector, or the reason why the engine cannot be loaded here."""
    obstacle = execution_obstacle()
    if obstacle is not None:
        return f"not asked: {obstacle}"
    try:
        _runtime, engine = load_engine(plan, check_plan(plan), TrtLog.current())
    except UserError as error:
        return f"not asked: {error}"
    description = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return [str(layer) for layer in json.loads(description)["Layers"]]
