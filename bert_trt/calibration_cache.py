"""The calibration cache: a JSON file with the ranges of an earlier run, valid only for the same model, sentences and
settings, which its fingerprint identifies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_trt.calibration import Calibration
from bert_trt.console import UserError, log_console, warn
from bert_trt.files import atomic_write, read_json
from bert_trt.model_files import CONFIG_NAME, DATA_NAME, ModelFolder
from bert_trt.options import QUANTIZED_PRECISIONS, CalibrationSettings
from bert_trt.sentences import Sentence

CACHE_FORMAT = 2
CACHE_REMEDY = "it is made again by itself"


def fingerprint(folder: ModelFolder, sentences: Sequence[Sentence], settings: CalibrationSettings) -> dict[str, Any]:
    """Everything that the ranges depend on: hashes of the model and of the sentences, and the settings."""
    tokens = hashlib.sha256()
    for sentence in sentences:
        tokens.update(np.int32(len(sentence.ids)).tobytes() + sentence.ids.astype("<i4").tobytes())
        if sentence.types.any():
            tokens.update(sentence.types.astype("<i4").tobytes())
    return {
        "format": CACHE_FORMAT,
        "weights": _file_hash(folder.path / DATA_NAME),
        "configuration": _file_hash(folder.path / CONFIG_NAME),
        "calibration sentences": tokens.hexdigest(),
        **{f"setting {key}": value for key, value in json.loads(json.dumps(settings.used())).items()},
    }


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; write it again with model2onnx.py") from error
    return digest.hexdigest()


def read_cache(path: Path, wanted: Mapping[str, Any], settings: CalibrationSettings) -> Calibration | None:
    """The calibration in the cache if its fingerprint is ``wanted``; else None, after a message that says why.

    Args:
        path: the cache file.
        wanted: the fingerprint that the calibration must have.
        settings: the settings of the calibration.
    """
    if not path.exists():
        return None
    try:
        entry = read_json(path, CACHE_REMEDY).get(settings.kind)
        if entry is None:
            return None
        if not isinstance(entry, dict):
            raise ValueError(f"its {settings.kind} part is {entry!r}")
        cached, ranges, amax = entry["fingerprint"], entry["ranges"], entry["largest values"]
        smoothing = {name: np.array(values, np.float32) for name, values in entry["smoothing"].items()}
        if not isinstance(cached, dict):
            raise ValueError(f"its fingerprint is {cached!r}")
        _check_values(ranges, amax, smoothing)
    except (UserError, AttributeError, LookupError, TypeError, ValueError) as error:
        warn(f"{path} is damaged ({error}); calibrating again")
        return None
    changed = [key for key in wanted if key not in cached or cached[key] != wanted[key]]  # other keys do not matter
    if changed:
        changes = ", ".join(_describe_change(key, cached.get(key), wanted.get(key)) for key in changed)
        log_console.print(f"{path} does not fit any more, calibrating again. Changed: {changes}", soft_wrap=True)
        return None
    return Calibration(settings, ranges, amax, smoothing)


def _check_values(ranges: Any, amax: Any, smoothing: Mapping[str, np.ndarray]) -> None:
    """Checks the values of a cached calibration; raises ValueError if they are invalid."""
    for title, values in (("ranges", ranges), ("largest values", amax)):
        if not isinstance(values, dict):
            raise ValueError(f"its {title} are {values!r}")
        for name, value in values.items():
            if not isinstance(value, float) or not 0 < value < math.inf:
                raise ValueError(f"its {title} hold {value!r} for {name!r}, expected a number greater than 0")
    if set(ranges) != set(amax):
        raise ValueError("its ranges and its largest values are of different tensors")
    for name, factors in smoothing.items():
        if f"{name}.smoothed" not in ranges or factors.ndim != 1 or not (factors > 0).all():
            raise ValueError(f"its smoothing of {name!r} is not that of a tensor with a range")


def _describe_change(key: str, before: Any, now: Any) -> str:
    if key == "format":
        return f"{key} ({before} -> {now}: an earlier version wrote it)"
    return f"{key} ({before} -> {now})" if key.startswith("setting ") else key


def write_cache(path: Path, calibration: Calibration, belongs_to: Mapping[str, Any]) -> None:
    """Writes the calibration and its fingerprint ``belongs_to`` to the cache, beside the entry of the other kind."""
    try:
        entries = {key: value for key, value in read_json(path, CACHE_REMEDY).items() if key in QUANTIZED_PRECISIONS}
    except UserError:
        entries = {}  # the file is missing, or damaged, of which read_cache has warned
    entry = {
        "fingerprint": dict(belongs_to),
        "ranges": calibration.ranges,
        "largest values": calibration.amax,
        "smoothing": {name: values.tolist() for name, values in calibration.smoothing.items()},
    }
    entries[calibration.settings.kind] = entry
    with atomic_write(path) as file:
        file.write((json.dumps(entries, indent=1) + "\n").encode())


def calibrate_cached(
    folder: ModelFolder,
    sentences: Sequence[Sentence],
    settings: CalibrationSettings,
    cache: Path,
    make: Callable[[], Calibration],
) -> Calibration:
    """Returns the calibration in the cache if its fingerprint matches; else calls ``make`` and caches its result."""
    belongs_to = fingerprint(folder, sentences, settings)
    cached = read_cache(cache, belongs_to, settings)
    if cached is not None:
        log_console.print(f"ranges from {cache}: model, sentences and settings are the same", soft_wrap=True)
        return cached
    calibration = make()
    write_cache(cache, calibration, belongs_to)
    return calibration
