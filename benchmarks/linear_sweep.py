"""Is Linear on Hopper as fast as cuBLAS, and does it take its fastest shape of tile? Measures, and tunes the choice.

    cmake -S plugins -B plugins/build && cmake --build plugins/build --target linear_functions
    python benchmarks/linear_sweep.py --json FILE --markdown FILE      measures; needs an H100 or H200
    python benchmarks/linear_sweep.py --fit FILE                       without a GPU: the costs that its times mean,
                                                                       for plugins/linear/linear_hopper.cu

The four products of a layer of BERT-base and BERT-large, every shape of tile that the kernel has, at numbers of rows
from 1 to 65536. The costs are fitted to the sizes in TUNED; those in BETWEEN show whether the choice holds elsewhere.
Regret: how much longer the shape takes that the kernel chooses than the fastest of all.

Ours counts everything: scales, bias, GELU in the intermediate product, and y in 8 bits there, fp16 elsewhere. cuBLAS
(torch.mm, torch._scaled_mm with fast accumulation, torch._int_mm) multiplies only, to fp16, for int8 to int32.

Times are microseconds in CUDA graphs of many launches, medians; weights come from more memory than the L2 cache has.
All contenders take turns, and the graphs follow each other without a pause: for large products the board is at its
power limit, as it is in a network, and clocks fall. Times of 1.5 times the fastest and more are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

LIBRARY = Path(__file__).parent.parent / "plugins/build/liblinear_functions.so"
PRODUCTS = {  # out, in, GELU
    "base": ((2304, 768, False), (768, 768, False), (3072, 768, True), (768, 3072, False)),
    "large": ((3072, 1024, False), (1024, 1024, False), (4096, 1024, True), (1024, 4096, False)),
}
TUNED = (
    *(1, 16, 33, 64, 100, 128, 160, 192, 256, 320, 384, 450, 512, 640, 768, 900, 1024, 1280, 1536, 1800, 2048, 2560),
    *(3072, 3500, 4096, 5120, 6144, 7000, 8192, 10240, 12288, 14000, 16384, 24576, 32768, 50000, 65536),
)
BETWEEN = (7, 80, 144, 224, 300, 420, 576, 700, 832, 1100, 1400, 1664, 1920, 2300, 2800, 3300, 3840, 4600, 5700, 7680,
    9000, 11000, 20480, 40000)  # fmt: skip
TYPE_NUMBERS = {"fp16": 1, "bf16": 2, "int8": 3, "fp8": 4}  # of ElementType
SPLIT_ROWS = 1024  # split-K is for few rows
FEW_ROWS = 8192  # above, tiles of 64 rows are left out where they are slow
ROUNDS = 5
SLOWEST = 1.5  # of the fastest shape: slower ones are left out
LAYERS = {"base": 12, "large": 24}
LAYER_ROWS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=LIBRARY, help="liblinear_functions.so")
    parser.add_argument("--types", nargs="+", choices=tuple(TYPE_NUMBERS), default=["fp16", "fp8", "int8"])
    parser.add_argument("--rows", nargs="+", type=int, default=sorted(TUNED + BETWEEN), help="numbers of rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all times")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument("--fit", type=Path, nargs="+", metavar="FILE", help="fit the costs to times measured before")
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before NumPy and PyTorch are imported

import numpy as np

from bert_trt.console import UserError, run_script


@dataclass(frozen=True)
class Shape:
    """A shape of tile, with the number of blocks that share k."""

    name: str
    index: int
    splits: int
    rows: int
    columns: int
    depth: int  # elements of k in a stage
    block_rows: int  # of a cluster
    block_columns: int


@dataclass
class Row:
    """One product at one number of rows, in microseconds."""

    type: str
    model: str
    rows: int
    out: int
    inner: int
    gelu: bool
    cublas: float | None
    chosen: str
    times: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Of the fastest shape."""
        return min(self.times.values())

    @property
    def regret(self) -> float:
        """Of the chosen shape, as a share of the fastest one's time."""
        return self.times[self.chosen] / self.best - 1.0


# -------------------------------------------------------------------------------------------------------------------
# Measuring
# -------------------------------------------------------------------------------------------------------------------


class Call(ctypes.Structure):
    """LinearCall in plugins/linear/linear_functions.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "weight_scales")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("inner", "out", "gelu", "type", "output_type")),
        ("x_scale", ctypes.c_float),
        ("output_scale", ctypes.c_float),
    )


def load_library(path: Path, target: str) -> ctypes.CDLL:
    """Loads launchers as C functions.

    Args:
        path: the library.
        target: what CMake calls it.

    Raises:
        UserError: it is not built.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; build it: "
            f"cmake -S plugins -B plugins/build && cmake --build plugins/build --target {target}"
        )
    return ctypes.CDLL(str(path.resolve()))


class Functions:
    """The launchers."""

    def __init__(self, path: Path) -> None:
        self.library = load_library(path, "linear_functions")
        self.library.linearShapeName.restype = ctypes.c_char_p

    def shapes(self, type_number: int) -> list[Shape]:
        """All shapes, with every number of splits."""
        found = []
        for index in range(self.library.linearShapes(type_number)):
            name = self.library.linearShapeName(type_number, index).decode()
            sizes = (ctypes.c_int32 * 6)()
            self.library.linearShapeSizes(type_number, index, sizes)
            rows, columns, depth, block_rows, block_columns, most = sizes
            for splits in [1] if most == 1 else range(2, most + 1):
                suffix = f" {splits}" if splits > 1 else ""
                shape = Shape(name + suffix, index, splits, rows, columns, depth, block_rows, block_columns)
                found.append(shape)
        return found

    def choice(self, call: Call) -> tuple[int, int]:
        """Index and splits of the shape that the kernel would take."""
        index, splits = ctypes.c_int32(), ctypes.c_int32()
        self.library.linearChoice(ctypes.byref(call), ctypes.byref(index), ctypes.byref(splits))
        return index.value, splits.value

    def launch(self, call: Call, shape: Shape, stream: int) -> int:
        """Launches that shape. Returns a cudaError_t."""
        return self.library.linearLaunchShape(ctypes.byref(call), shape.index, shape.splits, ctypes.c_void_p(stream))


def measure(
    contenders: dict[str, Callable[[int], object]], launches: int, kept: Container[str] | None = None
) -> dict[str, float]:
    """Microseconds of one launch of each; a contender gets the number of the launch.

    With ``kept`` the others are left out that are much slower than the fastest in a first replay.
    """
    import torch

    graphs = {}
    stream = torch.cuda.Stream()
    for name, launch in contenders.items():
        with torch.cuda.stream(stream):
            launch(0)
            torch.cuda.synchronize()
            graphs[name] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[name], stream=stream):
                for i in range(launches):
                    launch(i)

    def replay(rounds: int) -> dict[str, float]:
        events = []
        for turn in range(rounds):
            order = list(graphs)
            random.Random(turn).shuffle(order)
            for name in order:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graphs[name].replay()
                end.record()
                events.append((name, start, end))
        torch.cuda.synchronize()
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for name, start, end in events:
            times[name].append(start.elapsed_time(end) * 1000.0 / launches)
        return {name: statistics.median(found) for name, found in times.items()}

    first = replay(1)
    if kept is not None:
        limit = 1.2 * SLOWEST * min(first.values())
        graphs = {name: graph for name, graph in graphs.items() if first[name] <= limit or name in kept}
    return replay(ROUNDS)


class Tensors:
    """What the launches of one product read and write: several weights in turn, two x and two y."""

    def __init__(self, type_name: str, product: tuple[int, int, bool], most_rows: int, copies: int = 0) -> None:
        import torch

        self.type_name = type_name
        self.out, self.inner, self.gelu = product
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
        self.dtype = dtypes[type_name]
        self.narrow = self.dtype.itemsize == 1
        fp16_out = self.narrow and not self.gelu
        self.output_dtype = torch.float16 if fp16_out else self.dtype
        self.output_number = TYPE_NUMBERS["fp16" if fp16_out else type_name]
        copies = copies or max(2, min(24, 120_000_000 // (self.out * self.inner * self.dtype.itemsize) + 1))
        deviation = 1.0 if self.narrow else self.inner**-0.5
        self.weights = [self.random(self.out, deviation) for _ in range(copies)]
        self.x = [self.random(most_rows, 1.0) for _ in range(2)]
        self.y = [torch.empty(most_rows, self.out, dtype=self.output_dtype, device="cuda") for _ in range(2)]
        bias_dtype = torch.float32 if self.narrow else self.dtype
        self.bias = torch.randn(self.out, device="cuda").to(bias_dtype)
        self.scales = (torch.rand(self.out, device="cuda") + 0.5) * self.inner**-0.5 / 16.0

    def random(self, rows: int, deviation: float) -> Any:
        """Normally distributed numbers, for 8 bits with a deviation of 16: zeros would need less power."""
        import torch

        result = torch.empty(rows, self.inner, dtype=self.dtype, device="cuda")
        step = max(1, (1 << 26) // self.inner)
        for first in range(0, rows, step):
            part = torch.randn(min(step, rows - first), self.inner, device="cuda")
            part *= 16.0 if self.narrow else deviation
            result[first : first + step] = (part.round() if self.dtype == torch.int8 else part).to(self.dtype)
        return result

    def call(self, i: int, rows: int) -> Call:
        """The arguments of launch i."""
        return Call(
            self.x[i % 2].data_ptr(), self.weights[i % len(self.weights)].data_ptr(), self.bias.data_ptr(),
            self.y[i % 2].data_ptr(), self.scales.data_ptr(), rows, self.inner, self.out, int(self.gelu),
            TYPE_NUMBERS[self.type_name], self.output_number, 1.0 / 16.0, 0.02,
        )  # fmt: skip

    def cublas(self, rows: int) -> Callable[[int], object] | None:
        """The product alone, through PyTorch; None where PyTorch has none."""
        import torch

        one = torch.ones((), device="cuda")

        def product(i: int) -> object:
            x, weight = self.x[i % 2][:rows], self.weights[i % len(self.weights)].t()
            if self.type_name == "fp8":
                multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
                return multiply(x, weight, one, one, out_dtype=torch.float16, use_fast_accum=True)
            if self.type_name == "int8":
                return torch._int_mm(x, weight)  # pyright: ignore[reportPrivateImportUsage]
            return torch.mm(x, weight, out=self.y[i % 2][:rows])

        return product if self.type_name != "int8" or rows > 16 else None


def measure_all(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, list[Shape]]]:
    """Every type, product and number of rows."""
    import torch

    functions = Functions(arguments.library)
    rows, shapes_of = [], {}
    for type_name in arguments.types:
        shapes = shapes_of[type_name] = functions.shapes(TYPE_NUMBERS[type_name])
        for model, products in PRODUCTS.items():
            for product in products:
                tensors = Tensors(type_name, product, max(arguments.rows))
                for count in arguments.rows:
                    row = measure_size(functions, shapes, tensors, model, count)
                    rows.append(row)
                    what = f"{type_name} {count} x {row.inner} to {row.out}: {row.chosen}"
                    times = f"{row.times[row.chosen]:.2f} us, best {row.best:.2f}, cuBLAS {row.cublas}"
                    print(f"{what} {times}", flush=True)
                del tensors
                torch.cuda.empty_cache()
    return rows, shapes_of


def measure_size(functions: Functions, shapes: list[Shape], tensors: Tensors, model: str, count: int) -> Row:
    """All shapes for one product and number of rows."""
    import torch

    calls = [tensors.call(i, count) for i in range(2 * len(tensors.weights))]
    chosen = functions.choice(calls[0])
    contenders: dict[str, Callable[[int], object]] = {}
    name = ""
    for shape in shapes:
        if (shape.index, shape.splits) == chosen:
            name = shape.name
        elif (shape.splits > 1 and count > SPLIT_ROWS) or (
            count > FEW_ROWS and shape.rows == 64 and shape.columns < 256
        ):
            continue

        def launch(i: int, shape: Shape = shape) -> int:
            return functions.launch(calls[i % len(calls)], shape, torch.cuda.current_stream().cuda_stream)

        if launch(0) == 0:  # not every number of splits can be
            contenders[shape.name] = launch
    cublas = tensors.cublas(count)
    operations = 2 * count * tensors.out * tensors.inner
    launches = max(12, min(100, int(1e-3 / (operations / 5e14 + 3e-6))))
    times = measure(contenders | ({"cublas": cublas} if cublas else {}), launches, kept=(name, "cublas"))
    times = {contender: round(time, 3) for contender, time in times.items()}
    peer = times.pop("cublas", None)
    slowest = SLOWEST * min(times.values())
    times = {shape: time for shape, time in times.items() if time <= slowest or shape == name}
    return Row(tensors.type_name, model, count, tensors.out, tensors.inner, tensors.gelu, peer, name, times)


def measure_layers(arguments: argparse.Namespace) -> list[str]:
    """Markdown: the products of all layers in one graph, one after another, each layer with weights of its own."""
    import torch

    functions = Functions(arguments.library)
    lines = [
        "| type | model | rows | cuBLAS, no epilogue, us | TFLOP/s | ours, us | TFLOP/s | cuBLAS / ours |",
        "|" + " --- |" * 8,
    ]
    for type_name in arguments.types:
        for model, products in PRODUCTS.items():
            layers = LAYERS[model]
            of_layer = [Tensors(type_name, product, max(LAYER_ROWS), layers) for product in products]
            for rows in LAYER_ROWS:
                calls = [[tensors.call(i, rows) for i in range(layers)] for tensors in of_layer]
                peers = [tensors.cublas(rows) for tensors in of_layer]

                def ours(layer: int, calls: list[list[Call]] = calls) -> None:
                    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
                    for of_product in calls:
                        if functions.library.linearLaunch(ctypes.byref(of_product[layer]), stream) != 0:
                            raise RuntimeError("a launch failed")

                def cublas(layer: int, peers: list[Callable[[int], object] | None] = peers) -> None:
                    for peer in peers:
                        if peer is not None:
                            peer(layer)

                times = measure({"ours": ours, "cublas": cublas}, layers)
                work = sum(2 * rows * tensors.out * tensors.inner for tensors in of_layer) / 1e6
                each = [f"{times[name] * layers:.0f} | {work / times[name]:.0f}" for name in ("cublas", "ours")]
                ratio = times["cublas"] / times["ours"]
                lines.append(f"| {type_name} | {model} | {rows} | {' | '.join(each)} | {ratio:.3f} |")
                print(lines[-1], flush=True)
            del of_layer
            torch.cuda.empty_cache()
    return lines


# -------------------------------------------------------------------------------------------------------------------
# Tables
# -------------------------------------------------------------------------------------------------------------------


def layer_table(rows: list[Row]) -> list[str]:
    """Markdown: the four products of a layer together."""
    lines = [
        "| type | model | rows | cuBLAS, no epilogue, us | ours, us | TFLOP/s | cuBLAS / ours | of each product "
        "| regret, mean | most | tuned |",
        "|" + " --- |" * 11,
    ]
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.type, row.model, row.rows), []).append(row)
    for (type_name, model, count), group in groups.items():
        ours = sum(row.times[row.chosen] for row in group)
        operations = sum(2 * count * row.out * row.inner for row in group)
        peers = [row.cublas for row in group if row.cublas is not None]
        peer = f"{sum(peers):.1f} | {ours:.1f}" if peers else f"— | {ours:.1f}"
        ratio = f"{sum(peers) / ours:.3f}" if peers else "—"
        each = ", ".join(f"{row.cublas / row.times[row.chosen]:.2f}" for row in group if row.cublas is not None)
        regrets = [row.regret for row in group]
        lines.append(
            f"| {type_name} | {model} | {count} | {peer} | {operations / ours / 1e6:.0f} | {ratio} | {each or '—'} "
            f"| {100 * statistics.mean(regrets):.1f} % | {100 * max(regrets):.1f} % "
            f"| {'yes' if count in TUNED else 'no'} |"
        )
    return lines


def regret_lines(rows: list[Row]) -> list[str]:
    """Mean and largest regret, at tuned sizes and between them."""
    lines = ["| type | sizes | products | regret, mean | 95 % below | most |", "|" + " --- |" * 6]
    for type_name in dict.fromkeys(row.type for row in rows):
        for where, sizes in (("tuned", TUNED), ("between", BETWEEN)):
            found = [row.regret for row in rows if row.type == type_name and row.rows in sizes]
            if found:
                lines.append(
                    f"| {type_name} | {where} | {len(found)} | {100 * statistics.mean(found):.2f} % "
                    f"| {100 * float(np.quantile(found, 0.95)):.1f} % | {100 * max(found):.1f} % |"
                )
    return lines


def environment() -> dict[str, str]:
    """What the figures depend on."""
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver, power limit": driver,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "command": "python " + " ".join(sys.argv),
    }


# -------------------------------------------------------------------------------------------------------------------
# Fitting
# -------------------------------------------------------------------------------------------------------------------

MULTIPROCESSORS = 132
CROWDINGS = np.arange(0.0, 2.01, 0.05)


def divide_up(number: int, size: int) -> int:
    """How many of that size cover the number."""
    return (number + size - 1) // size


def features(row: Row, shape: Shape) -> tuple[float, float, float]:
    """Rounds of tiles, stages of k of each, how busy the multiprocessors are: as estimate() in linear_hopper.cu."""
    steps = divide_up(divide_up(row.inner, shape.depth), shape.splits)
    tile_rows = divide_up(row.rows, shape.rows * shape.block_rows) * shape.block_rows
    tile_columns = divide_up(row.out, shape.columns * shape.block_columns) * shape.block_columns
    blocks = tile_rows * tile_columns * shape.splits
    return divide_up(blocks, MULTIPROCESSORS), steps, min(1.0, blocks / MULTIPROCESSORS)


def fit_shape(samples: list[tuple[Row, Shape, float]]) -> np.ndarray:
    """Costs of one shape: start, tile, GELU, step, crowding. Relative errors count, most where the shape is fast."""
    time = np.array([sample[2] for sample in samples])
    weight = np.array([(row.best / found) ** 4 for row, _, found in samples]) / time
    table = np.array([features(row, shape) for row, shape, _ in samples])
    gelu = np.array([float(row.gelu) for row, _, _ in samples])
    best: tuple[float, np.ndarray] = (np.inf, np.zeros(5))
    for crowding in CROWDINGS:
        rounds, steps, busy = table.T
        stages = rounds * steps * (1.0 + crowding * busy)
        matrix = np.stack([np.ones_like(time), rounds, rounds * gelu, stages], axis=1)
        active = list(range(4))
        while True:  # what would be negative is nothing
            found = np.linalg.lstsq(matrix[:, active] * weight[:, None], time * weight, rcond=None)[0]
            if (found >= 0.0).all():
                break
            del active[int(np.argmin(found))]
        costs = np.zeros(4)
        costs[active] = found
        error = float(np.square((matrix @ costs - time) * weight).sum())
        if error < best[0]:
            best = (error, np.array([*costs, crowding]))
    return best[1]


class Choice:
    """What estimate() would choose, for costs of all shapes at once."""

    def __init__(self, rows: list[Row], shapes: list[Shape]) -> None:
        self.names = list(dict.fromkeys(shape.index for shape in shapes))
        self.kinds = np.array([self.names.index(shape.index) for shape in shapes])
        self.time = np.array([[row.times.get(shape.name, np.inf) for shape in shapes] for row in rows])
        self.table = np.array([[features(row, shape) for shape in shapes] for row in rows])
        self.gelu = np.array([float(row.gelu) for row in rows])
        self.allowed = np.isfinite(self.time)
        for j, shape in enumerate(shapes):
            if shape.splits > 1:
                for i, row in enumerate(rows):
                    tiles = divide_up(row.rows, shape.rows) * divide_up(row.out, shape.columns)
                    self.allowed[i, j] &= tiles * shape.splits <= MULTIPROCESSORS * 3 // 4

    def regrets(self, costs: np.ndarray) -> np.ndarray:
        """Of every row."""
        start, tile, gelu, step, crowding = costs[self.kinds].T
        rounds, steps, busy = np.moveaxis(self.table, 2, 0)
        estimate = start + rounds * (tile + gelu * self.gelu[:, None] + steps * step * (1.0 + crowding * busy))
        chosen = np.where(self.allowed, estimate, np.inf).argmin(axis=1)
        return self.time[np.arange(len(chosen)), chosen] / self.time.min(axis=1) - 1.0


def fit(files: list[Path]) -> None:
    """Prints the costs for linear_hopper.cu: fitted to the times, then moved a little as long as the regret falls."""
    rows, shapes_of = [], {}
    for file in files:
        record = json.loads(file.read_text())
        rows += [Row(**row) for row in record["rows"]]
        for type_name, shapes in record["shapes"].items():
            shapes_of[type_name] = [Shape(**shape) for shape in shapes]
    generator = np.random.default_rng(0)
    for type_name, shapes in shapes_of.items():
        tuned = [row for row in rows if row.type == type_name and row.rows in TUNED]
        costs = []
        for index in dict.fromkeys(shape.index for shape in shapes):
            kinds = [shape for shape in shapes if shape.index == index]
            costs.append(
                fit_shape([(row, s, row.times[s.name]) for row in tuned for s in kinds if s.name in row.times])
            )
        found = np.array(costs)
        choice = Choice(tuned, shapes)

        def penalty(candidate: np.ndarray, choice: Choice = choice) -> float:
            regrets = choice.regrets(candidate)
            return float(regrets.mean() + 3.0 * np.square(regrets).mean())

        before = least = penalty(found)
        for _ in range(20000):
            candidate = found.copy()
            kind, which = generator.integers(len(found)), generator.integers(5)
            candidate[kind, which] *= np.exp(generator.normal(0.0, 0.05))
            now = penalty(candidate)
            if now < least:
                found, least = candidate, now
        print(f"// {type_name}: penalty {before:.4f} as fitted, {least:.4f} in the end")
        names = {shape.index: shape.name.rsplit(" ", 1)[0] if shape.splits > 1 else shape.name for shape in shapes}
        for kind, index in enumerate(choice.names):
            print("    {" + ", ".join(f"{value:.3f}F" for value in found[kind]) + "}, // " + names[index])
        for where, sizes in (("tuned", TUNED), ("between", BETWEEN)):
            some = [row for row in rows if row.type == type_name and row.rows in sizes]
            if some:
                regrets = 100.0 * Choice(some, shapes).regrets(found)
                print(f"// regret {where}: mean {regrets.mean():.2f} %, most {regrets.max():.1f} %")


def main() -> int:
    """Measures, or fits."""
    arguments = parse_arguments()
    if arguments.fit:
        fit(arguments.fit)
        return 0
    rows, shapes_of = measure_all(arguments)
    about = environment()
    if arguments.json:
        shapes = {type_name: [asdict(shape) for shape in found] for type_name, found in shapes_of.items()}
        record = {"environment": about, "shapes": shapes, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(record) + "\n")
    lines = ["# Linear on Hopper, beside cuBLAS", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "## The choice of the shape", "", *regret_lines(rows)]
    lines += ["", "## All layers, one product after another in one graph", "", *measure_layers(arguments)]
    lines += ["", "## The four products of a layer, each measured by itself", "", *layer_table(rows)]
    print("\n".join(regret_lines(rows) + layer_table(rows)))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
