"""The model repository that triton_repository.py writes: its sizes, configurations and files (docs/serving.md).

==========================  =====================================================================
``bert/config.pbtxt``       the network, for Triton's TensorRT backend
``bert/1/model.plan``       the plan
``bert/libbert_plugins.so`` the plan's plugins, if it has any; if they are not in the plan, also their loader
``bert_text/config.pbtxt``  texts in, answers out, for Triton's Python backend
``bert_text/1/``            its code, with what it imports of this package, and the tokenizer
``README.md``               the container, the commands, a client
==========================  =====================================================================

How the configuration of ``bert`` fits its plan: Triton's batcher counts sequences and knows nothing of tokens. It may
put together any ``max_batch_size`` sequences, and each may be as long as the position table. A plan that takes all
of these batches takes every batch; ``Sizes`` gives no other. One batch that the plan refuses would be an error for
everybody in it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_trt.console import UserError
from bert_trt.files import atomic_folder
from bert_trt.model_files import (
    CONFIG_NAME,
    DATA_NAME,
    DEMO_NAME,
    FILE_NAMES,
    INPUT_NAMES,
    MASK_NAME,
    ONNX_NAME,
    REFERENCE_NAME,
    SEQUENCE_LENGTHS_NAME,
    BertConfig,
    ModelFolder,
)
from bert_trt.options import (
    DEFAULT_ANSWER,
    DEFAULT_QUESTION,
    DEFAULT_TEXT,
    EMBEDDING,
    FILL_MASK,
    HERE,
    MASK,
    QUESTION_ANSWERING,
    RAGGED,
    AnswerOptions,
    SequenceRange,
)
from bert_trt.plan import PlanInfo, info_path, profile_shapes
from bert_trt.prediction import BUCKET, TOKENS_PER_BATCH, TOKENS_PER_SMALL_BATCH
from bert_trt.records import Wanted
from bert_trt.triton_text import FOLDER, NETWORK, SETTINGS, TEXT, answer_name
from plugins.triton_loader import LOADER, build_loader

QUEUE_DELAY = 1000  # microseconds that a request waits for others
TEXT_INSTANCES = 2  # of bert_text: one tokenises while another waits for bert
GRAPH_BATCHES = (1, 2, 4, 8)  # sequences in a batch for which CUDA graphs are captured
GRAPH_TOKENS = (32, 64, 128, 256, 512, 1024)  # tokens in a batch; in larger ones launches no longer matter
PADDED_GRAPH_LENGTHS = range(BUCKET, 128 + 1, BUCKET)
PACKAGES = ("numpy", "transformers", "tokenizers", "onnx", "rich")  # what the code of bert_text imports
NOT_SERVED = (
    ONNX_NAME,
    DATA_NAME,
    DEMO_NAME,
    REFERENCE_NAME,
)  # files of the model folder that bert_text does not read


# --- sizes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How large the batches of ``bert`` can be.

    Attributes:
        max_batch: the most sequences in a batch, ``max_batch_size``.
        max_length: the longest sequence, as long as the position table.
    """

    max_batch: int
    max_length: int

    @classmethod
    def of(cls, config: BertConfig, max_batch: int | None, max_tokens: int | None) -> Sizes:
        """The sizes that two options ask for.

        Args:
            config: the model's sizes.
            max_batch: the most sequences in a batch; None for as many as ``max_tokens`` allow.
            max_tokens: the most tokens in a batch; None for as many as ``max_batch`` sequences can have, or the
                task's default if both are None.

        Raises:
            UserError: ``max_tokens`` does not suffice for one sequence, or for ``max_batch`` of them.
        """
        longest = config.max_positions
        if max_batch is None:
            default = TOKENS_PER_BATCH if config.task == FILL_MASK else TOKENS_PER_SMALL_BATCH
            tokens = max(default, longest) if max_tokens is None else max_tokens
            if tokens < longest:
                raise UserError(
                    f"--max-tokens {tokens}: one sequence can have {longest} tokens, as many as the position table; "
                    f"name at least {longest}"
                )
            return cls(tokens // longest, longest)
        if max_tokens is not None and max_tokens < max_batch * longest:
            fitting = max_tokens // longest
            lower = f"lower --max-batch to {fitting}, or " if fitting else ""
            raise UserError(
                f"--max-batch {max_batch}: as many sequences of {longest} tokens are {max_batch * longest} tokens, "
                f"and --max-tokens is {max_tokens}. Triton counts sequences, not tokens, so that both must fit: "
                f"{lower}raise --max-tokens to {max_batch * longest}"
            )
        return cls(max_batch, longest)

    @property
    def seq_len(self) -> SequenceRange:
        """The plan's lengths, for ``profile_shapes``."""
        return SequenceRange(1, min(64, self.max_length), self.max_length)

    @property
    def batch(self) -> SequenceRange:
        """The plan's numbers of sequences, for ``profile_shapes``."""
        return SequenceRange(1, -(-self.max_batch // 2), self.max_batch)

    def check_plan(self, plan: Path, info: PlanInfo, batching: str) -> None:
        """Checks that a plan takes every batch that Triton can make.

        Args:
            plan: the plan file, for messages.
            info: its description.
            batching: padded, or ``RAGGED``.

        Raises:
            UserError: its inputs are others, or its profile has no room for a batch.
        """
        names = input_names(batching)
        if info.profile.keys() != set(names):
            expected = "padded" if batching == "padded" else "packed"
            raise UserError(
                f"{plan} has the inputs {', '.join(info.profile)}; --batching {expected} needs {', '.join(names)}. "
                "Leave out --plan, and triton_repository.py builds the plan"
                + (", or name a plan of builder.py --batching padded" if batching == "padded" else "")
            )
        for name in names:
            shape = [-1] if batching == RAGGED else [-1, -1]
            wanted = profile_shapes(name, shape, self.seq_len, self.batch)
            smallest, _, largest = info.profile[name]
            too_narrow = any(have > want for have, want in zip(smallest, wanted[0], strict=True)) or any(
                have < want for have, want in zip(largest, wanted[2], strict=True)
            )
            if too_narrow:
                raise UserError(
                    f"{plan} takes {name} from {smallest} to {largest}, and batches of 1 to {self.max_batch} "
                    f"sequences of 1 to {self.max_length} tokens need {wanted[0]} to {wanted[2]}. Triton does not "
                    "keep to a plan's profile: leave out --plan, so that the plan is built for the configuration, or "
                    "lower --max-batch"
                )


def input_names(batching: str) -> tuple[str, ...]:
    """The inputs of ``bert``'s plan."""
    return (*INPUT_NAMES, MASK_NAME) if batching == "padded" else (*INPUT_NAMES[:2], SEQUENCE_LENGTHS_NAME)


# --- configurations ---------------------------------------------------------------------------------------------


class Word(str):
    """A value that the text format of protobuf writes without quotes."""

    __slots__ = ()


class Map(dict[str, Any]):
    """A map field of protobuf, whose text format lists keys and values."""


def protobuf_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format: mappings but ``Map`` are messages, lists are repeated fields."""
    lines = []
    for key, value in message.items():
        if isinstance(value, Map):
            repeated = [{"key": name, "value": one} for name, one in value.items()]
        else:
            repeated = value if isinstance(value, list) else [value]
        for one in repeated:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{key} {{\n{protobuf_text(one, indent + '  ')}{indent}}}\n")
            elif isinstance(one, str) and not isinstance(one, Word):
                lines.append(f"{indent}{key}: {json.dumps(one)}\n")  # protobuf has JSON's escapes of ASCII
            else:
                lines.append(f"{indent}{key}: {str(one).lower() if isinstance(one, bool) else one}\n")
    return "".join(lines)


def network_config(config: BertConfig, batching: str, sizes: Sizes) -> dict[str, Any]:
    """The configuration of ``bert``."""
    is_ragged = batching == RAGGED
    inputs = input_names(batching)[:2] if is_ragged else input_names(batching)
    per_token = [] if config.is_per_sequence else [-1]
    values: dict[str, Any] = {
        "name": NETWORK,
        "backend": "tensorrt",
        "max_batch_size": sizes.max_batch,
        "input": [
            {"name": name, "data_type": Word("TYPE_INT32"), "dims": [-1]}
            | ({"allow_ragged_batch": True} if is_ragged else {})
            for name in inputs
        ],
        "output": [
            {
                "name": config.output_name,
                "data_type": Word("TYPE_FP32"),
                "dims": [*per_token, config.output_width],
            }
        ],
    }
    if is_ragged:
        # One length for each sequence. Accumulated counts would be for each request: a request with two sequences
        # would become one of twice the length.
        values["batch_input"] = [
            {
                "kind": Word("BATCH_ITEM_SHAPE_FLATTEN"),
                "target_name": [SEQUENCE_LENGTHS_NAME],
                "data_type": Word("TYPE_INT32"),
                "source_input": [inputs[0]],
            }
        ]
        if not config.is_per_sequence:
            values["batch_output"] = [
                {
                    "target_name": [config.output_name],
                    "kind": Word("BATCH_SCATTER_WITH_INPUT_SHAPE"),
                    "source_input": [inputs[0]],
                }
            ]
    values["dynamic_batching"] = {"max_queue_delay_microseconds": QUEUE_DELAY}
    values["instance_group"] = [{"kind": Word("KIND_GPU"), "count": 1}]
    graphs = ragged_graphs(sizes) if is_ragged else padded_graphs(sizes)
    values["optimization"] = {"cuda": {"graphs": True, "graph_spec": graphs}}
    return values


def ragged_graphs(sizes: Sizes) -> list[dict[str, Any]]:
    """CUDA graphs for some numbers of sequences, each for several numbers of tokens.

    A graph also serves batches with fewer tokens, but not with fewer sequences: the backend pads tokens with what the
    buffer has from earlier batches, and lengths too, which would then be those of sequences that are not there.
    """

    def shapes(batch: int, tokens: int) -> Map:
        numbers = dict.fromkeys(INPUT_NAMES[:2], tokens) | {SEQUENCE_LENGTHS_NAME: batch}
        return Map({name: {"dim": [number]} for name, number in numbers.items()})

    graphs = []
    for batch in GRAPH_BATCHES:
        lowest, most = batch, batch * sizes.max_length
        for tokens in sorted({min(tokens, most) for tokens in GRAPH_TOKENS if tokens >= batch}):
            if batch <= sizes.max_batch and lowest <= tokens:
                bound = {"batch_size": batch, "input": shapes(batch, lowest)}
                graphs.append({"batch_size": batch, "input": shapes(batch, tokens), "graph_lower_bound": bound})
                lowest = tokens + 1
    return graphs


def padded_graphs(sizes: Sizes) -> list[dict[str, Any]]:
    """CUDA graphs for some numbers of sequences and some lengths.

    They serve these sizes alone. For a shorter length the backend would not move the rows apart.
    """
    lengths = sorted({min(length, sizes.max_length) for length in PADDED_GRAPH_LENGTHS})
    return [
        {"batch_size": batch, "input": Map({name: {"dim": [length]} for name in input_names("padded")})}
        for batch in GRAPH_BATCHES
        if batch <= sizes.max_batch
        for length in lengths
    ]


def text_config(config: BertConfig, batching: str, sizes: Sizes, answers: AnswerOptions) -> dict[str, Any]:
    """The configuration of ``bert_text``."""
    wanted = Wanted.by(config.task)
    is_embedding = config.task == EMBEDDING
    return {
        "name": TEXT,
        "backend": "python",
        "max_batch_size": sizes.max_batch,
        "input": [
            {"name": key, "data_type": Word("TYPE_STRING"), "dims": [1]}
            | ({"optional": True} if index >= wanted.minimum else {})
            for index, key in enumerate(wanted.keys[: wanted.maximum])
        ],
        "output": [
            {
                "name": answer_name(config),
                "data_type": Word("TYPE_FP32" if is_embedding else "TYPE_STRING"),
                "dims": [config.output_width if is_embedding else 1],
            }
        ],
        "dynamic_batching": {},
        "instance_group": [{"kind": Word("KIND_CPU"), "count": TEXT_INSTANCES}],
        "parameters": Map(
            {SETTINGS: {"string_value": json.dumps({"batching": batching, "answers": asdict(answers)})}}
        ),
    }


# --- files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A model repository to write.

    Attributes:
        folder: the model.
        plan: the plan.
        info: its description.
        batching: padded, or ``RAGGED``.
        sizes: the sizes of batches.
        answers: how outputs become answers.
        plugin_library: the library of the plan's plugins; None without plugins.
        command: the command line that writes the repository, for its README.md.
    """

    folder: ModelFolder
    plan: Path
    info: PlanInfo
    batching: str
    sizes: Sizes
    answers: AnswerOptions
    plugin_library: Path | None
    command: str

    def write(self, path: Path) -> None:
        """Writes the repository: all of it, or nothing after a failure.

        Raises:
            UserError: the folder is not empty, or cannot be written.
        """
        check_empty(path)
        config = self.folder.config
        with atomic_folder(path) as new:
            network, text = new / NETWORK, new / TEXT
            (network / "1").mkdir(parents=True)
            shutil.copyfile(self.plan, network / "1" / "model.plan")
            shutil.copyfile(info_path(self.plan), network / "1" / info_path(Path("model.plan")).name)
            if self.plugin_library is not None:
                shutil.copyfile(self.plugin_library, network / self.plugin_library.name)
                if not self.info.plugins_embedded:
                    build_loader(network)
            values = network_config(config, self.batching, self.sizes)
            (network / "config.pbtxt").write_text(protobuf_text(values))
            self._write_text_model(text)
            (new / "README.md").write_text(self.readme(path.name), encoding="utf-8")

    def _write_text_model(self, text: Path) -> None:
        (text / "1" / FOLDER).mkdir(parents=True)
        (text / "1" / "bert_trt").mkdir()
        for module in (HERE / "bert_trt").glob("*.py"):
            shutil.copyfile(module, text / "1" / "bert_trt" / module.name)
        (text / "1" / "model.py").write_text(
            '"""Triton\'s Python backend looks for this file."""\n\n'
            "from bert_trt.triton_text import TritonPythonModel\n\n"
            '__all__ = ["TritonPythonModel"]\n'
        )
        for name in FILE_NAMES:
            source = self.folder.path / name
            if name not in NOT_SERVED and (source.is_file() or name == CONFIG_NAME):
                shutil.copyfile(source, text / "1" / FOLDER / name)
        config = text_config(self.folder.config, self.batching, self.sizes, self.answers)
        (text / "config.pbtxt").write_text(protobuf_text(config))
        (text / "requirements.txt").write_text(requirements())

    @property
    def backend_options(self) -> str:
        """What the command of tritonserver has in addition."""
        if self.plugin_library is None:
            return ""
        if self.info.plugins_embedded:
            return " --backend-config=tensorrt,version-compatible=true"
        return f" --backend-config=tensorrt,plugins=/models/{NETWORK}/{LOADER}"

    def readme(self, name: str) -> str:
        """The text of the repository's README.md; ``name`` is the repository's folder."""
        config = self.folder.config
        batching = "padded" if self.batching == "padded" else "packed"
        return README.format(
            name=name,
            task=config.task,
            built_by=f"{self.info.product} {self.info.version}",
            batching=batching,
            command=self.command,
            packages="requirements.txt" + (" -r plugins/requirements-cuda.txt" if self.plugin_library else ""),
            max_batch=self.sizes.max_batch,
            max_length=self.sizes.max_length,
            options=self.backend_options,
            plugins=self._about_plugins(),
            request=shlex.quote(json.dumps({"inputs": example_inputs(self.folder)})),
            answer=answer_name(config),
            output=config.output_name,
            shape=f"[n, {config.output_width}]" if config.is_per_sequence else f"[n, S, {config.output_width}]",
            inputs=", ".join(f"`{one}`" for one in input_names(self.batching) if one != SEQUENCE_LENGTHS_NAME),
        )

    def _about_plugins(self) -> str:
        if self.plugin_library is None:
            return "The plan has no plugins."
        library = f"/models/{NETWORK}/{self.plugin_library.name}"
        if self.info.plugins_embedded:
            return (
                "The plan holds the library of its plugins. The option above allows TensorRT to run code from plans: "
                f"serve only plans that you trust. The same library is `{library}`."
            )
        return (
            f"The plan needs the library of its plugins, `{library}`. The option above loads `{LOADER}` beside it, "
            "which registers them: Triton opens what the option names, and does no more."
        )


def check_empty(path: Path) -> None:
    """Checks that a repository can be written to ``path``.

    Raises:
        UserError: it is a file, or a folder with something in it: Triton would serve old and new models together.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"--out {path} is not empty, and Triton serves every folder in it as a model; name a new folder"
        )


def requirements() -> str:
    """The lines of the project's requirements.txt for the packages that ``bert_text`` imports."""
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if re.split("[=~<>;]", line)[0] in PACKAGES)


def example_inputs(folder: ModelFolder) -> list[dict[str, Any]]:
    """The inputs of an example request to ``bert_text``, in the JSON of Triton's HTTP interface."""
    task = folder.config.task
    # The text of the export has the mask token of the model's own tokenizer.
    text = folder.demo().text if task == FILL_MASK else DEFAULT_TEXT.replace(MASK, DEFAULT_ANSWER)
    texts = (DEFAULT_QUESTION, text) if task == QUESTION_ANSWERING else (text,)
    return [
        {"name": key, "datatype": "BYTES", "shape": [1, 1], "data": [one]}
        for key, one in zip(Wanted.by(task).keys, texts, strict=False)
    ]


README = """\
# Model repository for Triton Inference Server

Two models: `bert_text` takes texts and gives the answers of the task {task}, as predict.py does; `bert` is its
network, {batching}, which takes tokens. Batches have at most {max_batch} sequences of at most {max_length} tokens.

## The container

`bert/1/model.plan` was built by {built_by}. Triton loads it only where TensorRT is the same product of the
same version, on the kind of GPU on which the plan was built. The release notes of Triton's containers name the
version. The container is `tritonserver`, tag `YY.MM-py3`, in NVIDIA's NGC catalogue, which shows the full name to
pull; let `TRITON_IMAGE` be that name. Then this shows the version too:

```sh
docker run --rm "$TRITON_IMAGE" bash -c "ls /usr/lib/*/libnvinfer.so.*"
```

To write the repository again inside the container, into a new folder, with that version and in the folder of the
project:

```sh
docker run --rm --gpus all -v "$PWD":/project -w /project "$TRITON_IMAGE" \\
  bash -c "pip install -r {packages} tensorrt==VERSION && \\
    {command}"
```

## Start

In the folder that holds `{name}` (the models pass arrays to each other through shared memory):

```sh
docker run --rm --gpus all --shm-size 1g -p 8000:8000 -p 8001:8001 \\
  -v "$PWD/{name}":/models "$TRITON_IMAGE" \\
  bash -c "pip install -r /models/bert_text/requirements.txt && \\
    tritonserver --model-repository=/models{options}"
```

{plugins}

## A request

```sh
curl -s localhost:8000/v2/models/bert_text/infer -d {request}
```

The answer is the output `{answer}`. A text that cannot be used, such as one that is too long, is an error of its
own request.

`bert` takes {inputs}, each int32 `[n, S]`, and gives `{output}`, float32 `{shape}`. It checks neither ids
nor lengths, so that only programs should call it that do, as `bert_text` does.
"""
