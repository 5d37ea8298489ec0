"""Finds the ranges of activations for int8 and fp8 from the sentences in calibrator_data.txt.

    python model2onnx.py                              writes out/
    python calibrator.py                              ranges for int8, a table of them, out/calibration.json
    python calibrator.py --calibration entropy --plot ranges.png

``builder.py --precision int8`` does the same by itself. The fp32 network runs over the sentences (network_runner.py,
on CUDA where there is a GPU), each with its true length: no padding, no stale tokens. Of every tensor that will be
quantized a histogram of absolute values is kept, and a method chooses from it the value that becomes 127:

    max         the largest value: nothing is cut off, but one outlier makes all steps coarse
    percentile  the value below which 99.99 % lie (--percentile)
    entropy     the one whose int8 distribution diverges least from the true one (TensorRT's old calibrator)
    mse         the one with the least mean squared rounding and cutting error
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bert_trt.interrupts import begin_script
from bert_trt.options import calibrator_arguments

if __name__ == "__main__":
    begin_script(calibrator_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import ml_dtypes
import numpy as np
import torch
from rich.progress import track
from rich.table import Table

from bert_trt.console import UserError, console, log_console, run_script, warn
from bert_trt.element_types import ELEMENT_TYPES
from bert_trt.files import atomic_write, check_outputs, make_folder, read_json, write_json
from bert_trt.model_files import CONFIG_NAME, DATA_NAME, INPUT_NAMES, MASK_NAME, ModelFolder
from bert_trt.network_runner import NetworkRunner
from bert_trt.options import CACHE_NAME, QUANTIZED_PRECISIONS, Settings
from bert_trt.quantization import (
    Product,
    Quantization,
    in_groups,
    range_name,
    smoothing_factors,
)
from bert_trt.sentences import Sentence, load_tokenizer, read_sentences
from bert_trt.tensorrt_log import TrtLog

CACHE_FORMAT = 1
CACHE_REMEDY = "it is made again by itself"
BINS = 8192
UNKNOWN_SHARE = 0.05  # of the tokens; a tokenizer that was made for the text has less than 1 %
ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128
BATCH_TOKENS = 4096  # sentences of one length are run together, up to so many tokens
COUNTED_AT_ONCE = 2**24  # torch.histc counts in fp32, exact up to here
LARGEST_COUNTED = 2.0**114  # torch.histc multiplies by the number of bins, in fp32


# --- histograms -------------------------------------------------------------------------------------------


class Histogram:
    """Counts of absolute values in equal bins from 0 to ``limit``.

    ``limit`` is a power of two and doubles, pairs of bins becoming one, when a value reaches it: nothing has to be
    known beforehand, and the result does not depend on the order of the data.

    Attributes:
        counts: int64 (BINS,), on the device of the data. A value at the edge of two bins is in the upper one.
        limit: upper end of the last bin, greater than every value.
        largest: the largest absolute value, exactly.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        self.limit = 2.0**-60
        self.largest = 0.0
        self.is_empty = True

    def add(self, magnitudes: torch.Tensor, largest: float) -> None:
        """Counts more values.

        Args:
            magnitudes: absolute values, any shape, less than LARGEST_COUNTED.
            largest: the largest of them.
        """
        self.largest = max(self.largest, largest)
        while self.limit <= largest:
            if not self.is_empty:
                merged = self.counts.view(-1, 2).sum(1)
                self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.limit *= 2
        for part in magnitudes.float().flatten().split(COUNTED_AT_ONCE):
            self.counts += torch.histc(part, BINS, 0, self.limit).to(torch.int64)
        self.is_empty = False

    def on_cpu(self) -> np.ndarray:
        """The counts as an array, int64 (BINS,)."""
        return self.counts.cpu().numpy()


def find_range(counts: np.ndarray, limit: float, largest: float, method: str, kind: str, percentile: float) -> float:
    """The absolute value that becomes the quantized type's largest one.

    Args:
        counts: of absolute values in equal bins, int64 (bins,).
        limit: upper end of the last bin.
        largest: the largest value, greater than 0.
        method: one of ``METHODS``.
        kind: ``int8`` or ``fp8``.
        percentile: for the method of that name, in percent.
    """
    if method == "max":
        return largest
    if method == "percentile":
        return float(min(percentile_range(counts, limit, percentile), largest))
    if method == "entropy":
        return min(entropy_range(counts, limit, largest), largest)
    return mse_range(counts, limit, largest, kind)


def percentile_range(counts: np.ndarray, limit: float, percentile: float) -> float:
    """The value below which ``percentile`` percent lie, linear inside a bin."""
    reached = np.cumsum(counts)
    wanted = percentile / 100 * reached[-1]
    bin_index = int(np.searchsorted(reached, wanted))
    below = reached[bin_index - 1] if bin_index else 0
    inside = (wanted - below) / counts[bin_index]
    return (bin_index + inside) * limit / len(counts)


def entropy_range(counts: np.ndarray, limit: float, largest: float) -> float:
    """The range with the least Kullback-Leibler divergence between the values and their int8 form.

    For each candidate, what lies beyond it is added to its last bin (as saturation does), and the bins are averaged
    in 128 groups, the positive half of int8. (Migacz, "8-bit inference with TensorRT", GTC 2017.)
    """
    used = math.floor(largest / limit * len(counts)) + 1  # up to the bin of the largest value
    edges = np.linspace(0, used, ENTROPY_BINS + 1)
    reached = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    fine = np.diff(np.interp(edges, np.arange(len(reached)), reached))  # (ENTROPY_BINS,)
    ends = range(ENTROPY_LEVELS, ENTROPY_BINS + 1)
    best = min(ends, key=lambda end: _divergence(fine, end))
    return best / ENTROPY_BINS * used / len(counts) * limit


def _divergence(fine: np.ndarray, end: int) -> float:
    """KL divergence between the histogram saturated at bin ``end`` and its form in ENTROPY_LEVELS levels."""
    inside = fine[:end]
    saturated = inside.copy()
    saturated[-1] += fine[end:].sum()
    starts = np.arange(ENTROPY_LEVELS) * end // ENTROPY_LEVELS
    filled = inside > 0
    totals, places = np.add.reduceat(inside, starts), np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(totals / np.maximum(places, 1), np.diff(np.append(starts, end)))
    quantized = np.where(filled, level, 0)
    p, q = saturated / saturated.sum(), quantized / max(quantized.sum(), 1e-300)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))


def mse_range(counts: np.ndarray, limit: float, largest: float, kind: str) -> float:
    """The range, from largest/16 to largest, with the least mean squared error of rounding and cutting off."""
    filled = np.flatnonzero(counts)
    values = (filled + 0.5) * limit / len(counts)
    weights = counts[filled].astype(np.float64)

    def error(candidate: float) -> float:
        rounded = _round_trip(values, candidate, kind)
        return float(np.sum(weights * (rounded - values) ** 2))

    candidates = largest * np.geomspace(1, 1 / 16, 161)
    return float(min(candidates, key=error))


def _round_trip(values: np.ndarray, largest: float, kind: str) -> np.ndarray:
    """Values quantized and dequantized."""
    top = ELEMENT_TYPES[kind].largest
    scaled = np.minimum(values * (top / largest), top)
    rounded = np.rint(scaled) if kind == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return rounded * (largest / top)


# --- running over the sentences ---------------------------------------------------------------------------


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` of ``total`` places, evenly spread, in order."""
    return [place * total // wanted for place in range(wanted)]


def batches(sentences: Sequence[Sentence]) -> list[list[Sentence]]:
    """Sentences of one length together, up to BATCH_TOKENS tokens: batches without padding."""
    by_length: dict[int, list[Sentence]] = {}
    for sentence in sentences:
        by_length.setdefault(len(sentence.ids), []).append(sentence)
    made = []
    for length, group in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        made += [group[start : start + size] for start in range(0, len(group), size)]
    return made


def batch_inputs(batch: Sequence[Sentence]) -> dict[str, np.ndarray]:
    """Inputs of a network for padded batches, each int32 (B, S); there is no padding in it."""
    ids = np.stack([sentence.ids for sentence in batch])
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    values = (ids, np.stack([sentence.types for sentence in batch]), positions)
    return dict(zip(INPUT_NAMES, values, strict=True)) | {MASK_NAME: np.ones_like(ids)}


class BertCalibrator:
    """Runs a network over sentences and keeps a histogram of each tensor that will be quantized.

    Args:
        runner: of an fp32 network for padded batches; its outputs are the tensors to look at.

    Attributes:
        histograms: by tensor.
        channel_maxima: by tensor, the largest absolute value of each element of the last axis, float32 (H,).
    """

    def __init__(self, runner: NetworkRunner) -> None:
        self.runner = runner
        self.histograms = {name: Histogram(runner.device) for name in runner.output_names}
        self.channel_maxima: dict[str, torch.Tensor] = {}

    def run(self, sentences: Sequence[Sentence], source: Path) -> None:
        """Runs over the sentences, each once.

        Args:
            sentences: to run.
            source: the file that they are from, for messages.

        Raises:
            UserError: a tensor has a value that is not finite, or is zero throughout.
        """
        for batch in track(batches(sentences), "calibrating", console=log_console, transient=True):
            self.add(self.runner.run(batch_inputs(batch)), batch, source)
        for name, histogram in self.histograms.items():
            if histogram.largest == 0:
                raise UserError(
                    f"tensor {name!r} is zero in all {len(sentences)} sentences, from {source}, line "
                    f"{sentences[0].line} on: it has no range; leave its group out (--quantize), or check the model"
                )

    def add(self, tensors: Mapping[str, torch.Tensor], batch: Sequence[Sentence], source: Path) -> None:
        """Counts the tensors of one batch, each (B, ...)."""
        magnitudes = {name: tensor.abs() for name, tensor in tensors.items()}
        maxima = torch.stack([tensor.flatten(1).amax(1) for tensor in magnitudes.values()]).cpu()  # (tensors, B)
        for name, of_sentences in zip(magnitudes, maxima, strict=True):
            bad = (~(of_sentences < LARGEST_COUNTED)).nonzero().flatten().tolist()  # NaN is not less
            if bad:
                raise UserError(
                    f"tensor {name!r} has the value {of_sentences[bad[0]]:.4g} in the sentence of {source}, line "
                    f"{batch[bad[0]].line}; expected finite values, less than {LARGEST_COUNTED:.0e}: the model is "
                    "damaged or computes beyond fp32"
                )
            self.histograms[name].add(magnitudes[name], float(of_sentences.max()))
            channels = magnitudes[name].flatten(0, -2).amax(0)
            before = self.channel_maxima.get(name, channels)
            if before.shape == channels.shape:  # probabilities have no channels, but as many columns as words
                self.channel_maxima[name] = torch.maximum(before, channels)


def tensors_of(products: Iterable[Product], smoothing: Mapping[str, np.ndarray]) -> list[str]:
    """Names of all tensors that these products multiply, after smoothing, each once."""
    names = (range_name(tensor, smoothing) for product in products for tensor in product.activations)
    return list(dict.fromkeys(names))


# --- one calibration --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Ranges, and how they were found.

    Attributes:
        settings: the settings.
        ranges: by tensor (``quantization.range_name``).
        maxima: by tensor, the largest absolute value seen.
        smoothing: by tensor, the divisors of its channels, float32 (H,).
        seconds: what it took; 0 if it comes from the cache.
        histograms: by tensor; empty if it comes from the cache.
    """

    settings: Settings
    ranges: dict[str, float]
    maxima: dict[str, float]
    smoothing: dict[str, np.ndarray]
    seconds: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)


Assemble = Callable[..., Any]  # of the signature of builder.assemble


def best_device() -> str:
    """CUDA where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Subject:
    """What is calibrated, and what it takes.

    Attributes:
        folder: the model.
        encoder: all products of the encoder, in the order of computation.
        sentences: to run over.
        source: the file that they are from, for messages.
        assemble: ``builder.assemble``; a parameter, since builder.py comes after this file.
        log: for TensorRT's messages.
        device: "cpu" or "cuda".
    """

    folder: ModelFolder
    encoder: Sequence[Product]
    sentences: Sequence[Sentence]
    source: Path
    assemble: Assemble
    log: TrtLog
    device: str = field(default_factory=best_device)

    def products(self, settings: Settings) -> list[Product]:
        """The products that the settings want quantized."""
        return in_groups(self.encoder, settings.groups)

    def observe(self, settings: Settings, smoothing: Mapping[str, np.ndarray]) -> BertCalibrator:
        """Runs the fp32 network over the sentences; ``smoothing`` is part of it."""
        smoothed = Quantization(settings.kind, smoothing=smoothing)  # no product is quantized
        made = self.assemble(self.folder, self.log, "fp32", batching="padded", quantization=smoothed)
        tensors = tensors_of(self.products(settings), smoothing)
        calibrator = BertCalibrator(NetworkRunner(made.network, self.device, tensors, made.contents))
        calibrator.run(self.sentences, self.source)
        return calibrator

    def smoothing(self, settings: Settings, plain: BertCalibrator, strength: float) -> dict[str, np.ndarray]:
        """The divisors for one strength, from what was observed without smoothing."""
        maxima = {name: values.cpu().numpy() for name, values in plain.channel_maxima.items()}
        return smoothing_factors(self.products(settings), self.folder.weights(), maxima, strength)


def calibrate(subject: Subject, settings: Settings) -> Calibration:
    """Finds the range of every tensor that the products of ``settings.groups`` multiply.

    Raises:
        UserError: a tensor has no range; the message names it.
    """
    start = time.perf_counter()
    observed, smoothing = subject.observe(settings, {}), {}
    if isinstance(settings.smoothing, float):
        smoothing = subject.smoothing(settings, observed, settings.smoothing)
        observed = subject.observe(settings, smoothing)  # what is quantized now are other tensors
    return choose_ranges(observed, settings, smoothing, start)


def choose_ranges(
    observed: BertCalibrator, settings: Settings, smoothing: dict[str, np.ndarray], start: float
) -> Calibration:
    """Ranges by the settings' method; ``start`` is when the work began, by ``time.perf_counter``."""
    ranges = ranges_of(observed.histograms, settings)
    maxima = {name: histogram.largest for name, histogram in observed.histograms.items()}
    return Calibration(settings, ranges, maxima, smoothing, time.perf_counter() - start, observed.histograms)


def ranges_of(histograms: Mapping[str, Histogram], settings: Settings) -> dict[str, float]:
    """The range of each tensor by the settings' method."""
    return {
        name: find_range(
            histogram.on_cpu(),
            histogram.limit,
            histogram.largest,
            settings.method,
            settings.kind,
            settings.percentile,
        )
        for name, histogram in histograms.items()
    }


# --- the cache --------------------------------------------------------------------------------------------


def fingerprint(folder: ModelFolder, sentences: Sequence[Sentence], settings: Settings) -> dict[str, Any]:
    """Everything that a calibration depends on: if all of it is the same, so are the ranges."""
    words = hashlib.sha256()
    for sentence in sentences:
        words.update(np.int32(len(sentence.ids)).tobytes() + sentence.ids.astype("<i4").tobytes())
        if sentence.types.any():
            words.update(sentence.types.astype("<i4").tobytes())
    return {
        "format": CACHE_FORMAT,
        "weights": _file_hash(folder.path / DATA_NAME),
        "configuration": _file_hash(folder.path / CONFIG_NAME),
        "calibration sentences": words.hexdigest(),
        **{f"setting {key}": value for key, value in json.loads(json.dumps(settings.used())).items()},
    }


def _file_hash(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; write it again with model2onnx.py") from error
    return found.hexdigest()


def read_cache(path: Path, wanted: Mapping[str, Any], settings: Settings) -> Calibration | None:
    """The calibration in the cache if it is exactly the wanted one. Says why if it is not."""
    if not path.exists():
        return None
    try:
        entry = read_json(path, CACHE_REMEDY).get(settings.kind)
        if entry is None:
            return None
        if not isinstance(entry, dict):
            raise ValueError(f"its {settings.kind} part is {entry!r}")
        if entry.pop("checksum") != _checksum(entry):
            raise ValueError(f"the checksum of its {settings.kind} part does not fit")
        found, ranges, maxima = entry["fingerprint"], entry["ranges"], entry["largest values"]
        smoothing = {name: np.array(values, np.float32) for name, values in entry["smoothing"].items()}
    except (UserError, AttributeError, LookupError, TypeError, ValueError) as error:
        warn(f"{path} is damaged ({error}); calibrating again")
        return None
    changed = [key for key in wanted if key not in found or found[key] != wanted[key]]  # others are not read
    if changed:
        told = ", ".join(_tell_change(key, found.get(key), wanted.get(key)) for key in changed)
        log_console.print(f"{path} does not fit any more, calibrating again. Changed: {told}", soft_wrap=True)
        return None
    return Calibration(settings, ranges, maxima, smoothing)


def _checksum(entry: Mapping[str, Any]) -> str:
    """Of everything in an entry, so that a range that was changed or lost is noticed."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _tell_change(key: str, before: Any, now: Any) -> str:
    return f"{key} ({before} -> {now})" if key.startswith("setting ") else key


def write_cache(path: Path, calibration: Calibration, belongs_to: Mapping[str, Any]) -> None:
    """Puts the calibration into the cache, beside that of the other kind."""
    try:
        entries = {key: value for key, value in read_json(path, CACHE_REMEDY).items() if key in QUANTIZED_PRECISIONS}
    except UserError:
        entries = {}  # missing, or damaged, which read_cache has said
    entry = {
        "fingerprint": dict(belongs_to),
        "ranges": calibration.ranges,
        "largest values": calibration.maxima,
        "smoothing": {name: values.tolist() for name, values in calibration.smoothing.items()},
    }
    entries[calibration.settings.kind] = {**entry, "checksum": _checksum(entry)}
    with atomic_write(path) as file:
        file.write((json.dumps(entries, indent=1) + "\n").encode())


# --- from options to a calibration ------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The sentences of a file, parted.

    Attributes:
        path: the file.
        calibration: those to calibrate on.
        evaluation: others, to measure the error on.
        mask_id: the id of [MASK]; None if the tokenizer has none.
    """

    path: Path
    calibration: list[Sentence]
    evaluation: list[Sentence]
    mask_id: int | None


def read_data(folder: ModelFolder, path: Path, wanted: int, evaluation: int) -> Data:
    """Reads the calibration file and parts it; both parts are spread evenly over it.

    Args:
        folder: the model, for its tokenizer.
        path: the file.
        wanted: sentences to calibrate on.
        evaluation: at most so many others; fewer if the file has no more.

    Raises:
        UserError: the file cannot be read, a line is bad, or there are too few.
    """
    sentences, problems = read_sentences(path, load_tokenizer(folder), folder.config, truncate=True)
    if problems:
        raise UserError(f"{problems[0].message} ({len(problems)} bad lines in all)")
    if len(sentences) < wanted:
        raise UserError(
            f"{path} has {len(sentences)} sentences, fewer than the {wanted} asked for; add some, or ask for fewer "
            "with --calibration-sentences"
        )
    chosen = set(spread(len(sentences), wanted))
    rest = [sentence for place, sentence in enumerate(sentences) if place not in chosen]
    kept = [rest[place] for place in spread(len(rest), min(evaluation, len(rest)))]
    mask_id = load_tokenizer(folder).mask_token_id if folder.config.has_head else None
    calibration = [sentences[place] for place in sorted(chosen)]
    _warn_of_unknown_words([*calibration, *kept], load_tokenizer(folder), path)
    return Data(path, calibration, kept, mask_id)


def _warn_of_unknown_words(sentences: Sequence[Sentence], tokenizer: Any, path: Path) -> None:
    """Warns where too many tokens are [UNK]: ranges of a text without words are not those of real text."""
    unknown = tokenizer.unk_token_id
    ids = np.concatenate([sentence.ids for sentence in sentences])
    others = [number for number in tokenizer.all_special_ids if number != unknown]
    words = ids[~np.isin(ids, others)]  # a tokenizer without [UNK] has none of them unknown
    share = float((words == unknown).mean()) if len(words) else 0.0
    if share > UNKNOWN_SHARE:
        warn(
            f"{share:.0%} of the {len(words)} tokens of {path} are {tokenizer.unk_token}: the model's tokenizer does "
            "not know its words, so that neither ranges nor the measured error are those of real text; name text "
            "of the model's language and field with --calibration-data FILE"
        )


def calibrate_cached(
    folder: ModelFolder,
    sentences: Sequence[Sentence],
    settings: Settings,
    cache: Path,
    make: Callable[[], Calibration],
) -> Calibration:
    """The calibration from the cache if everything matches, else what ``make`` returns, which is then cached."""
    belongs_to = fingerprint(folder, sentences, settings)
    found = read_cache(cache, belongs_to, settings)
    if found is not None:
        log_console.print(f"ranges from {cache}: model, sentences and settings are the same", soft_wrap=True)
        return found
    made = make()
    write_cache(cache, made, belongs_to)
    return made


# --- the script -------------------------------------------------------------------------------------------


def print_ranges(calibration: Calibration) -> None:
    """One row for each tensor."""
    table = Table(title=f"Ranges by {calibration.settings.method}", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("largest value", "range", "cut off at", "step"):
        table.add_column(heading, justify="right")
    top = ELEMENT_TYPES[calibration.settings.kind].largest
    for name, chosen in calibration.ranges.items():
        largest = calibration.maxima[name]
        step = f"{chosen / top:.2e}" if calibration.settings.kind == "int8" else "of fp8"
        table.add_row(name, f"{largest:.4g}", f"{chosen:.4g}", f"{chosen / largest:.1%}", step)
    console.print(table)


def plot_histograms(calibration: Calibration, path: Path) -> None:
    """Histograms of the six tensors whose largest value is furthest beyond most others, as a picture."""
    pyplot = load_pyplot()
    worst = sorted(calibration.histograms, key=lambda name: -_outlyingness(calibration.histograms[name]))[:6]
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    for axis in axes.flat[len(worst) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, worst, strict=False):
        histogram = calibration.histograms[name]
        used = math.floor(histogram.largest / histogram.limit * BINS) + 1
        counts = np.add.reduceat(histogram.on_cpu()[:used], np.arange(0, used, max(1, used // 128)))
        edges = np.linspace(0, histogram.largest, len(counts) + 1)
        axis.stairs(counts, edges, fill=True)
        axis.axvline(calibration.ranges[name], color="tab:red", label=f"range {calibration.ranges[name]:.3g}")
        axis.set(
            yscale="log", title=name.replace("encoder.", "").replace("attention.", "att."), xlabel="absolute value"
        )
        axis.title.set_fontsize(8)
        axis.legend()
    figure.suptitle(f"The tensors with the furthest outliers, and their {calibration.settings.method} ranges")
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=120)
    pyplot.close(figure)


def _outlyingness(histogram: Histogram) -> float:
    return histogram.largest / percentile_range(histogram.on_cpu(), histogram.limit, 99)


def load_pyplot() -> Any:
    """Matplotlib without a display.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError("--plot needs Matplotlib: pip install -r requirements-dev.txt") from error
    return pyplot


def main() -> int:
    """The script."""
    from builder import assemble  # builder.py and sensitivity.py come after this file
    from sensitivity import calibrate_best

    args = calibrator_arguments()
    folder, settings = ModelFolder(args.model_dir), Settings.of(args)
    cache = args.cache or folder.path / CACHE_NAME
    outputs = {"--cache": cache, "--json": args.json, "--plot": args.plot}
    check_outputs(outputs, {"--calibration-data": args.calibration_data} | folder.files())
    for path in outputs.values():
        if path is not None:
            make_folder(path.parent)
    data = read_data(folder, args.calibration_data, settings.sentences, 0)
    log = TrtLog()
    encoder = assemble(folder, log, batching="padded").products
    subject = Subject(folder, encoder, data.calibration, data.path, assemble, log)
    made = calibrate_best(subject, settings, data.mask_id)
    write_cache(cache, made, fingerprint(folder, data.calibration, settings))
    print_ranges(made)
    speed = len(data.calibration) / made.seconds
    console.print(
        f"{len(made.ranges)} tensors, {len(data.calibration)} sentences in {made.seconds:.1f} s on {best_device()} "
        f"({speed:.0f} a second) -> {cache}",
        soft_wrap=True,
    )
    if args.plot is not None:
        plot_histograms(made, args.plot)
    results = {"settings": asdict(settings), "seconds": made.seconds, "ranges": made.ranges, "largest": made.maxima}
    write_json(args.json, results)
    return 0


if __name__ == "__main__":
    run_script(main)
