"""Draws the pictures of the pages about kernels and batching: docs/pictures/*.svg.

    python docs/draw_pictures.py              writes the files; a test compares them with what this script draws
    python docs/draw_pictures.py --out DIR    writes them to another folder

What the pictures show is computed: the offsets of the packed QKV layout from the strides of an array, the steps of
online softmax from numbers, the times of a pipeline from a model of its barriers, batches by ``bert_trt.packing``.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

PICTURES = Path(__file__).parent / "pictures"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=PICTURES, metavar="DIR", help="the folder (default: docs/pictures)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before NumPy is imported

import numpy as np

from bert_trt.console import console, run_script
from bert_trt.files import atomic_write
from bert_trt.packing import Limits, pack, pad

# Boxes carry their own colours with dark text; all other text and lines are a grey that shows on white and on black.
STYLE = """
    text { font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; text-anchor: middle }
    .mono { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
    .plain { fill: #6e7781 }
    .left { text-anchor: start }
    .right { text-anchor: end }
    .line { stroke: #8b949e; stroke-width: 1.5; fill: none }
    .head { fill: #8b949e }
    rect { stroke-width: 1.2 }
    rect.blue { fill: #ddf4ff; stroke: #0969da } text.blue { fill: #0a3069 }
    rect.strong-blue { fill: #80ccff; stroke: #0969da } text.strong-blue { fill: #0a3069 }
    rect.green { fill: #dafbe1; stroke: #1a7f37 } text.green { fill: #04260f }
    rect.strong-green { fill: #6fdd8b; stroke: #1a7f37 } text.strong-green { fill: #04260f }
    rect.orange { fill: #ffe9dc; stroke: #bc4c00 } text.orange { fill: #471700 }
    rect.strong-orange { fill: #ffb77c; stroke: #bc4c00 } text.strong-orange { fill: #471700 }
    rect.yellow { fill: #fff8c5; stroke: #9a6700 } text.yellow { fill: #4d2d00 }
    rect.grey { fill: #d0d7de; stroke: #6e7781 } text.grey { fill: #24292f }
    rect.empty { fill: none; stroke: #8b949e; stroke-dasharray: 3 3 }
"""
MARKER = """  <defs>
    <marker id="arrow" markerWidth="10" markerHeight="10" refX="8" refY="5" orient="auto"
      markerUnits="userSpaceOnUse">
      <path class="head" d="M0 0 L10 5 L0 10 Z"/>
    </marker>
  </defs>
"""


@dataclass
class Picture:
    """An SVG; coordinates are pixels, y downwards.

    Attributes:
        name: the file's name without its ending.
        title: the subject in one line, for screen readers.
        description: what there is to see, in sentences.
    """

    name: str
    width: int
    height: int
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, colour: str, label: str = "") -> None:
        """A rectangle of a colour of STYLE, its label in the middle."""
        sizes = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self.parts.append(f'<rect class="{colour}" {sizes} rx="{2 if min(width, height) < 34 else 5}"/>')
        if label:
            self.text(x + width / 2, y + height / 2 + 4.5, label, colour)

    def text(self, x: float, y: float, text: str, classes: str = "plain") -> None:
        """A line of text, y its base line; centred at x unless a class says otherwise."""
        self.parts.append(f'<text class="{classes}" x="{number(x)}" y="{number(y)}">{escape(text)}</text>')

    def line(self, *points: tuple[float, float], arrow: bool = False) -> None:
        """A line through points, with an arrow's head at the end."""
        path = "M" + " L".join(f"{number(x)} {number(y)}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<path class="line" d="{path}"{end}/>')

    def svg(self) -> str:
        """The file's text."""
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
        lines = [f'{opening} role="img" aria-labelledby="title what">']
        lines.append(f'  <title id="title">{escape(self.title)}</title>')
        lines.append(f'  <desc id="what">{escape(self.description)}</desc>')
        lines += ["  <!-- Made by docs/draw_pictures.py. -->", f"  <style>{STYLE}  </style>"]
        return "\n".join(lines) + "\n" + MARKER + "".join(f"  {part}\n" for part in self.parts) + "</svg>\n"


def number(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")


# --- the packed QKV layout --------------------------------------------------------------------------------


def packed_qkv() -> Picture:
    """The merged product (T, 3, N, D), and what one head reads and writes."""
    tokens, heads, size, head = 5, 4, 64, 1
    qkv = np.empty((tokens, 3, heads, size), dtype=np.float16)
    steps = [stride // qkv.itemsize for stride in qkv.strides]  # elements
    picture = Picture(
        "packed_qkv",
        860,
        346,
        "The packed QKV layout",
        f"A table of {tokens} tokens. A row holds Q of all {heads} heads, then K of all heads, then V of all heads, "
        f"{size} elements each. Head {head} is marked: it reads one column of Q, one of K and one of V, and writes "
        "one column of the context. Nothing is transposed.",
    )
    left, top, cell, high = 92, 66, 60, 28
    colours = ("blue", "green", "orange")
    for which, (letter, colour) in enumerate(zip("QKV", colours, strict=True)):
        x = left + which * heads * cell
        picture.text(x + heads * cell / 2, 22, f"{letter}, {heads} heads of D = {size}")
        for n in range(heads):
            picture.text(x + n * cell + cell / 2, top - 8, f"{which * steps[1] + n * steps[2]}", "plain mono")
            for token in range(tokens):
                shade = f"strong-{colour}" if n == head else colour
                picture.box(x + n * cell, top + token * high, cell, high, shade, f"{letter.lower()}{n}")
    picture.text(left - 10, top - 8, "element", "plain right")
    for token in range(tokens):
        picture.text(left - 10, top + token * high + 19, f"token {token}", "plain right")
    bottom = top + tokens * high
    address = f"element ((t · 3 + w) · N + n) · D + d   =   {steps[0]} t + {steps[1]} w + {steps[2]} n + d"
    picture.text(left + 6 * cell, bottom + 24, address, "plain mono")
    picture.text(
        left + 6 * cell, bottom + 44, "token t; w is 0 for Q, 1 for K, 2 for V; head n; element d of the head"
    )
    down, row = bottom + 72, bottom + 100
    target = left + (heads + head + 0.5) * cell
    for which in range(3):
        x = left + (which * heads + head + 0.5) * cell
        picture.line((x, bottom + 54), (x, down), (target, down))
    picture.line((target, down), (target, row - 4), arrow=True)
    for n in range(heads):
        picture.box(left + (heads + n) * cell, row, cell, high, "yellow" if n == head else "grey", f"c{n}")
    picture.text(left + heads * cell - 10, row + 19, f"head {head}: softmax(Q Kᵀ / √D) V", "plain right")
    picture.text(left + 2 * heads * cell + 10, row + 19, "context (T, N, D), token t", "plain left")
    return picture


# --- online softmax ---------------------------------------------------------------------------------------


def online_softmax() -> Picture:
    """One query and twelve keys in three tiles: the running maximum, total and sum."""
    scores = np.array([0.5, 1.2, -0.3, 0.8, 2.1, 0.4, 1.0, -1.0, 1.7, 0.2, 2.0, 0.9])
    values = np.array([1.0, 3.0, 2.0, -1.0, 0.5, 2.5, 1.5, 4.0, -2.0, 1.0, 0.0, 2.0])  # one column of V
    tile = 4
    weights = np.exp(scores - scores.max())
    expected = (weights * values).sum() / weights.sum()
    picture = Picture(
        "online_softmax",
        860,
        398,
        "Online softmax: one query, twelve keys in three tiles",
        "For each tile of four scores the running maximum is updated; earlier total and sum are multiplied with "
        "exp(old maximum − new maximum), and the tile's weights are added. After the last tile, sum / total is the "
        "same as with a softmax over all twelve scores at once.",
    )
    left, cell, gap, high = 148, 54, 18, 28
    maximum, total, sums = -math.inf, 0.0, 0.0
    names = ("scores", "values", "", "maximum", "factor", "weights", "total", "sum")
    tops = dict(zip(names, (46, 80, 0, 134, 172, 210, 248, 286), strict=True))
    for name in filter(None, names):
        picture.text(left - 14, tops[name] + 19, name, "plain right")
    for index in range(len(scores) // tile):
        part = slice(index * tile, (index + 1) * tile)
        x = left + index * (tile * cell + gap)
        width = tile * cell
        picture.text(x + width / 2, 26, f"tile {index + 1}")
        new = max(maximum, scores[part].max())
        factor = math.exp(maximum - new)
        of_tile = np.exp(scores[part] - new)
        for i in range(tile):
            at = x + i * cell
            largest = scores[part][i] == new
            picture.box(at, tops["scores"], cell, high, "strong-blue" if largest else "blue", signed(scores[part][i]))
            picture.box(at, tops["values"], cell, high, "orange", signed(values[part][i]))
            picture.box(at, tops["weights"], cell, high, "green", f"{of_tile[i]:.2f}")
        before = "−∞" if maximum == -math.inf else signed(maximum)
        picture.box(x, tops["maximum"], width, high, "blue", f"max({before}, tile) = {signed(new)}")
        picture.box(x, tops["factor"], width, high, "yellow", f"exp({before} − {signed(new)}) = {factor:.2f}")
        new_total = total * factor + of_tile.sum()
        new_sum = sums * factor + (of_tile * values[part]).sum()
        added, weighted = of_tile.sum(), (of_tile * values[part]).sum()
        formula = f"{total:.2f} · {factor:.2f} + {added:.2f} = {new_total:.2f}"
        picture.box(x, tops["total"], width, high, "strong-green", formula)
        sign = "+" if weighted >= 0.0 else "−"
        formula = f"{sums:.2f} · {factor:.2f} {sign} {abs(weighted):.2f} = {new_sum:.2f}"
        picture.box(x, tops["sum"], width, high, "strong-orange", formula)
        if index > 0:
            for name in ("maximum", "total", "sum"):
                picture.line((x - gap + 1, tops[name] + high / 2), (x - 2, tops[name] + high / 2), arrow=True)
        maximum, total, sums = new, new_total, new_sum
    assert math.isclose(sums / total, expected)
    context = f"context = sum / total = {sums:.2f} / {total:.2f} = {sums / total:.3f}"
    picture.box(left, 346, 2 * tile * cell + gap, 34, "green", context)
    at_once = left + 2 * (tile * cell + gap)
    picture.box(at_once, 346, tile * cell, 34, "grey", f"all twelve at once: {expected:.3f}")
    end = at_once + tile * cell / 2
    picture.line(
        (end, tops["sum"] + high), (end, 330), (left + tile * cell, 330), (left + tile * cell, 342), arrow=True
    )
    return picture


def signed(value: float) -> str:
    """A number with one digit after the point and a real minus."""
    return f"{value:.1f}".replace("-", "−")


# --- a pipeline of stages ---------------------------------------------------------------------------------

STAGES = 4
STEPS = 6  # along k, of a tile
TILES = 2
GROUPS = 2  # consumer warpgroups
ISSUE, LATENCY, COPY, MULTIPLY, EPILOGUE = 0.25, 3.0, 0.9, 0.5, 2.5  # times in units of a step's product


@dataclass(frozen=True)
class Step:
    """When things happen to one step's operands."""

    issued: float
    arrived: float
    multiplied: tuple[tuple[float, float], ...]  # by each warpgroup, from and to
    released: float


def simulate() -> tuple[list[Step], list[tuple[float, float]]]:
    """A model of the barriers of linear_wgmma.cu, persistent: (steps, epilogues of each tile and warpgroup).

    The producer asks for a step's operands as soon as their stage is empty. They arrive LATENCY later, one after
    another. A warpgroup waits for the full stage and for the tensor cores, which the warpgroups share; a stage is
    empty when both have multiplied it. After a tile's last step a warpgroup stores its part of the tile.
    """
    steps: list[Step] = []
    epilogues = []
    tensor_cores = 0.0
    free = [0.0] * GROUPS  # when a warpgroup can go on
    for index in range(TILES * STEPS):
        emptied = steps[index - STAGES].released if index >= STAGES else 0.0
        issued = max(emptied, steps[-1].issued + ISSUE if steps else 0.0)
        arrived = max(issued + LATENCY, steps[-1].arrived + COPY if steps else 0.0)
        spans = []
        for group in range(GROUPS):
            start = max(arrived, free[group], tensor_cores)
            tensor_cores = free[group] = start + MULTIPLY
            spans.append((start, free[group]))
        steps.append(Step(issued, arrived, tuple(spans), max(end for _, end in spans)))
        if (index + 1) % STEPS == 0:
            for group in range(GROUPS):
                epilogues.append((free[group], free[group] + EPILOGUE))
                free[group] += EPILOGUE
    return steps, epilogues


def pipeline_stages() -> Picture:
    """Time from left to right: what the producer, the stages and the consumers do."""
    steps, epilogues = simulate()
    picture = Picture(
        "pipeline_stages",
        860,
        372,
        "A pipeline of four stages with a producer warp and two consumer warpgroups",
        f"Time runs from left to right; two tiles of {STEPS} steps each. The producer fills {STAGES} stages in a "
        "ring and asks for a step as soon as its stage is empty. A stage is on its way, then full, then multiplied "
        "by both warpgroups, then empty again. While the warpgroups store the first tile, the first steps of the "
        "second one arrive.",
    )
    left, scale, high = 150, 36.0, 30
    rows = ["producer warp", *(f"stage {i}" for i in range(STAGES)), *(f"warpgroup {i}" for i in range(GROUPS))]
    tops = {name: 40 + i * 36 + (10 if i > 0 else 0) + (10 if i > STAGES else 0) for i, name in enumerate(rows)}
    shades = (("blue", "strong-blue"), ("green", "strong-green"))  # of the tiles

    def at(time: float) -> float:
        return left + time * scale

    for name, top in tops.items():
        picture.text(left - 14, top + 20, name, "plain right")
        picture.line((left, top + high + 3), (at(19.5), top + high + 3))
    for index, step in enumerate(steps):
        light, strong = shades[index // STEPS]
        label = str(index % STEPS)
        picture.box(at(step.issued), tops["producer warp"], ISSUE * scale, high, strong)
        stage = tops[f"stage {index % STAGES}"]
        picture.box(at(step.issued), stage, (step.arrived - step.issued) * scale, high, light, label)
        first = step.multiplied[0][0]
        if first > step.arrived:
            picture.box(at(step.arrived), stage, (first - step.arrived) * scale, high, "yellow")
        picture.box(at(first), stage, (step.released - first) * scale, high, strong, label)
        for group, (start, end) in enumerate(step.multiplied):
            picture.box(at(start), tops[f"warpgroup {group}"], (end - start) * scale, high, strong, label)
    for index, (start, end) in enumerate(epilogues):
        top = tops[f"warpgroup {index % GROUPS}"]
        picture.box(at(start), top, (end - start) * scale, high, "orange", "store")
    legend = [
        ("blue", "on its way (TMA)"),
        ("yellow", "full, waiting"),
        ("strong-blue", "being multiplied"),
        ("orange", "epilogue: bias, GELU, store"),
    ]
    x = left
    for colour, label in legend:
        picture.box(x, 336, 22, 18, colour)
        picture.text(x + 28, 350, label, "plain left")
        x += 46 + 7.2 * len(label)
    picture.text(at(0), 24, "time →", "plain left")
    picture.text(at(19.5), 24, "numbers: steps along k; blue: first tile, green: second", "plain right")
    return picture


# --- packed batches ---------------------------------------------------------------------------------------


def packed_batches() -> Picture:
    """Three sequences as a padded batch, as a packed batch, and the mask that packing means."""
    lengths = (5, 3, 2)
    sequences = [np.arange(length) for length in lengths]
    limits = Limits(max_tokens=64, max_sequences=8, max_positions=64)
    (padded,) = pad(sequences, limits, buckets=[max(lengths)])
    (packed,) = pack(sequences, limits)
    starts = packed.cu_seqlens.tolist()
    total = starts[-1]
    owner = np.repeat(np.arange(len(lengths)), packed.lengths)  # (T,)
    picture = Picture(
        "packed_batches",
        860,
        400,
        "A padded and a packed batch of three sequences, and the block-diagonal mask",
        f"Padded, sequences of {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} tokens take a table of "
        f"{padded.mask.size} places, of which {padded.mask.size - total} are padding. Packed, they are one row of "
        f"{total} tokens; cu_seqlens {starts} says where each begins. In the table of all queries and keys only the "
        "squares on the diagonal are computed.",
    )
    colours = ("strong-blue", "strong-green", "strong-orange")
    cell, high, left = 34, 28, 30
    picture.text(
        left, 26, f"padded: B = {len(lengths)}, S = {padded.mask.shape[1]}, {padded.mask.size} tokens", "plain left"
    )
    for b, row in enumerate(padded.mask):
        for s, counts in enumerate(row):
            label = f"{'abc'[b]}{s}" if counts else ""
            picture.box(left + s * cell, 40 + b * high, cell, high, colours[b] if counts else "grey", label)
        mask = "attention mask " + " ".join(map(str, row))
        picture.text(left + len(row) * cell + 14, 40 + b * high + 19, mask, "plain mono left")
    top = 186
    picture.text(left, top - 14, f"packed: T = {total} tokens, no padding", "plain left")
    for t in range(total):
        b = int(owner[t])
        picture.box(left + t * cell, top, cell, high, colours[b], f"{'abc'[b]}{t - starts[b]}")
    for start in starts:
        x = left + start * cell
        picture.line((x, top + high + 20), (x, top + high + 3), arrow=True)
        picture.text(x, top + high + 36, str(start), "plain mono")
    picture.text(left, top + high + 60, f"cu_seqlens = {starts}", "plain mono left")
    computed = " + ".join(f"{n}²" for n in packed.lengths)
    squares = int((packed.lengths.astype(np.int64) ** 2).sum())
    notes = (
        f"scores of a head: {computed} = {squares}, of a table of {total}² = {total**2}",
        f"padded: {len(lengths)} · {padded.mask.shape[1]}² = {padded.mask.size * padded.mask.shape[1]}",
        f"matmuls and layer norms: {total} rows, padded {padded.mask.size}",
    )
    for i, note in enumerate(notes):
        picture.text(left, top + high + 104 + 24 * i, note, "plain left")
    small, x0, y0 = 33, 480, 54
    picture.text(x0 + total * small / 2, 20, "keys")
    picture.text(x0 - 6, 20, "queries", "plain right")
    for i in range(total):
        name = f"{'abc'[int(owner[i])]}{i - starts[int(owner[i])]}"
        picture.text(x0 + i * small + small / 2, y0 - 8, name, "plain mono")
        picture.text(x0 - 6, y0 + i * small + 21, name, "plain mono right")
        for j in range(total):
            same = owner[i] == owner[j]
            picture.box(x0 + j * small, y0 + i * small, small, small, colours[int(owner[i])] if same else "empty")
    return picture


def main() -> int:
    """Runs the script; returns its exit code."""
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for draw in (packed_qkv, online_softmax, pipeline_stages, packed_batches):
        picture = draw()
        path = arguments.out / f"{picture.name}.svg"
        with atomic_write(path) as file:
            file.write(picture.svg().encode())
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_script(main)
