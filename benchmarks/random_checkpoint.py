"""Makes a BERT checkpoint of any size with random weights, for timing. Its tokenizer knows the words of the
calibration text, so that sentences have about as many tokens as with a trained model's.

python benchmarks/random_checkpoint.py out/base-checkpoint                 the size of bert-base-uncased
python benchmarks/random_checkpoint.py DIR --layers 24 --hidden 1024 --heads 16
python benchmarks/random_checkpoint.py DIR --architecture BertForSequenceClassification     a reranker
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert_trt.interrupts import begin_script

ARCHITECTURES = ("BertForMaskedLM", "BertForSequenceClassification")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Make a BERT checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0])
    return parser.parse_args()


if __name__ == "__main__":
    begin_script(parse_arguments)  # answers --help, wrong usage and Ctrl-C before PyTorch and TensorRT are imported

import torch
import transformers
from transformers import BertConfig, BertTokenizer

from bert_trt.console import console, run_script
from bert_trt.files import make_folder
from bert_trt.options import DEFAULT_DATA
from model2onnx import quiet_libraries

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_random_checkpoint(
    folder: Path,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    vocabulary: int = 30522,
    seed: int = 0,
    architecture: str = ARCHITECTURES[0],
) -> None:
    """Saves a model with Hugging Face's initialisation and biases different from zero; a classifier has one label."""
    make_folder(folder)
    words = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz,.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    known = sorted(set(re.findall(r"[a-z]{2,}", DEFAULT_DATA.read_text(encoding="utf-8").lower())))
    words += known[: max(0, vocabulary - len(words))]
    words += [f"word{number}" for number in range(vocabulary - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    if architecture == "BertForSequenceClassification":
        config.num_labels = 1
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.02)
    model.save_pretrained(folder)


def main() -> int:
    """Runs the script; returns its exit code."""
    args = parse_arguments()
    quiet_libraries()
    make_random_checkpoint(
        args.folder, args.layers, args.hidden, args.heads, args.vocabulary, args.seed, args.architecture
    )
    console.print(f"wrote {args.folder}")
    return 0


if __name__ == "__main__":
    run_script(main)
