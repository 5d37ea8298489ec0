"""The calibration cache: ranges of an earlier run, valid only for the same model, sentences and settings."""

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

CACHE_FORMAT = 1
CACHE_REMEDY = "it is made again by itself"


def fingerprint(folder: ModelFolder, sentences: Sequence[Sentence], settings: CalibrationSettings) -> dict[str, Any]:
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


def read_cache(path: Path, wanted: Mapping[str, Any], settings: CalibrationSettings) -> Calibration | None:
    """The calibration in the cache if it is exactly the wanted one. Says why if it is not."""
    if not path.exists():
        return None
    try:
        entry = read_json(path, CACHE_REMEDY).get(settings.kind)
        if entry is None:
            return None
        if not isinstance(entry, dict):
            raise ValueError(f"its {settings.kind} part is {entry!r}")
        found, ranges, maxima = entry["fingerprint"], entry["ranges"], entry["largest values"]
        smoothing = {name: np.array(values, np.float32) for name, values in entry["smoothing"].items()}
        _check_values(ranges, maxima, smoothing)
    except (UserError, AttributeError, LookupError, TypeError, ValueError) as error:
        warn(f"{path} is damaged ({error}); calibrating again")
        return None
    changed = [key for key in wanted if key not in found or found[key] != wanted[key]]  # others are not read
    if changed:
        told = ", ".join(_tell_change(key, found.get(key), wanted.get(key)) for key in changed)
        log_console.print(f"{path} does not fit any more, calibrating again. Changed: {told}", soft_wrap=True)
        return None
    return Calibration(settings, ranges, maxima, smoothing)


def _check_values(ranges: Any, maxima: Any, smoothing: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where values cannot be those of a calibration."""
    for title, values in (("ranges", ranges), ("largest values", maxima)):
        if not isinstance(values, dict):
            raise ValueError(f"its {title} are {values!r}")
        for name, value in values.items():
            if not isinstance(value, float) or not 0 < value < math.inf:
                raise ValueError(f"its {title} hold {value!r} for {name!r}, expected a number greater than 0")
    if set(ranges) != set(maxima):
        raise ValueError("its ranges and its largest values are of different tensors")
    for name, divisors in smoothing.items():
        if f"{name}.smoothed" not in ranges or divisors.ndim != 1 or not (divisors > 0).all():
            raise ValueError(f"its smoothing of {name!r} is not that of a tensor with a range")


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
    """The calibration from the cache if everything matches, else what ``make`` returns, which is then cached."""
    belongs_to = fingerprint(folder, sentences, settings)
    found = read_cache(cache, belongs_to, settings)
    if found is not None:
        log_console.print(f"ranges from {cache}: model, sentences and settings are the same", soft_wrap=True)
        return found
    made = make()
    write_cache(cache, made, belongs_to)
    return made
