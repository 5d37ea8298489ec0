"""Answers every line of a file: tokenises, puts sequences into batches, runs the network and writes the answers.

predict.py and builder.py --sentences use it. The file is read and answered piece by piece, so that memory does not
grow with it. records.py reads it, tasks.py makes answers of outputs, answer_files.py writes them.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from bert_trt.answer_files import Answer, AnswerFile, form_of, open_answers
from bert_trt.comparison import Run
from bert_trt.console import UserError, console, log_console, note, remaining_time, warn
from bert_trt.model_files import (
    INPUT_NAMES,
    LENGTHS_NAME,
    MASK_NAME,
    SEQUENCE_LENGTHS_NAME,
    ModelFolder,
    check_inputs,
)
from bert_trt.options import (
    FILL_MASK,
    HIDDEN_STATES,
    QUESTION_ANSWERING,
    RAGGED,
    TOKEN_CLASSIFICATION,
    AnswerOptions,
    SequenceRange,
)
from bert_trt.packing import UNPADDED, Limits, NetworkBatch, pack, pad, padded_batch, single_batch
from bert_trt.records import Chunk, Record, check_input, read_chunks
from bert_trt.sentences import load_tokenizer, pair_types
from bert_trt.tasks import Answers, NotFiniteError, Window

TOKENS_PER_BATCH = 4096  # bounds an output that has a row of the size of the vocabulary for each token
TOKENS_PER_SMALL_BATCH = 16384  # of other tasks
BUCKET = 16  # padded lengths are multiples of it, so that a plan meets few shapes
GROUP = 32  # sequences of nearly the same length, in a padded batch without buckets
SHOWN_PROBLEMS = 5  # on the terminal


@dataclass(frozen=True)
class BatchRanges:
    """The batches that a network takes.

    Attributes:
        batching: single, padded, packed or ``RAGGED``.
        seq_len: sequence lengths.
        batch: sequences in a batch.
        tokens: the most tokens in a batch, padding included; None for the task's default.
        bucket: padded lengths are multiples of it; None for the lengths of every 32nd sequence, which costs the least
            padding, and for which every batch may have another shape.
    """

    batching: str
    seq_len: SequenceRange
    batch: SequenceRange
    tokens: int | None = None
    bucket: int | None = BUCKET

    @classmethod
    def of_plan(cls, profile: Mapping[str, Sequence[Sequence[int]]]) -> BatchRanges:
        """Those of a plan.

        Args:
            profile: by input, its [minimum, optimum, maximum] shape.

        Raises:
            UserError: the inputs are not those of BERT.
        """
        is_ragged = profile.keys() == {*INPUT_NAMES[:2], SEQUENCE_LENGTHS_NAME}
        if not is_ragged and not profile.keys() >= set(INPUT_NAMES):
            raise UserError(f"the plan's inputs are {', '.join(profile)}; expected a plan of builder.py")
        ids = np.array(profile[INPUT_NAMES[0]])  # (3, rank): minimum, optimum, maximum
        if is_ragged or LENGTHS_NAME in profile:
            lengths_name, extra = (
                (SEQUENCE_LENGTHS_NAME, 0) if is_ragged else (LENGTHS_NAME, 1)
            )  # cu_seqlens (B + 1,)
            batch = np.array(profile[lengths_name])[:, 0] - extra
            lengths = SequenceRange(*(ids[:, 0] // batch).tolist())
            return cls(RAGGED if is_ragged else "packed", lengths, SequenceRange(*batch.tolist()))
        lengths = SequenceRange(*ids[:, 1].tolist())
        batching = "padded" if MASK_NAME in profile else "single"
        return cls(batching, lengths, SequenceRange(*ids[:, 0].tolist()))


class Tokens(Protocol):
    """A tokenised text."""

    @property
    def ids(self) -> np.ndarray:
        """Token ids, int32 (S,)."""
        ...

    @property
    def types(self) -> np.ndarray:
        """Token types, int32 (S,)."""
        ...


def make_batches(sequences: Sequence[Tokens], ranges: BatchRanges) -> list[NetworkBatch]:
    """Puts sequences, whose lengths are within ``ranges``, into batches that the network takes."""
    if ranges.batching == "single":
        return [single_batch(one.ids, one.types, index) for index, one in enumerate(sequences)]
    if not sequences:
        return []
    longest, most = ranges.seq_len.maximum, ranges.batch.maximum
    budget = min(max(ranges.tokens or TOKENS_PER_BATCH, longest), most * longest)
    limits = Limits(budget, most, longest)
    ids, types = [one.ids for one in sequences], [one.types for one in sequences]
    if ranges.batching in UNPADDED:
        return [UNPADDED[ranges.batching](packed) for packed in pack(ids, limits, types)]
    buckets = ranges.bucket or np.sort([len(one) for one in ids])[::-1][::GROUP].tolist()
    return [padded_batch(padded) for padded in pad(ids, limits, types, buckets=buckets)]


# --- tokens ---------------------------------------------------------------------------------------------------


class Tokenization:
    """Tokenises records as transformers' tokenizer does it.

    Args:
        folder: the model.
        seq_len: the sequence lengths that the network takes.
        options: what happens to texts that are too long.
    """

    def __init__(self, folder: ModelFolder, seq_len: SequenceRange, options: AnswerOptions) -> None:
        from transformers.tokenization_utils_base import TruncationStrategy
        from transformers.utils.generic import PaddingStrategy

        self.config = config = folder.config
        self.seq_len = seq_len
        self.options = options
        self.tokenizer = load_tokenizer(folder)
        if config.task == FILL_MASK and self.tokenizer.mask_token is None:
            raise UserError("the checkpoint's tokenizer has no mask token; expected one, such as [MASK]")
        self.limit = config.truncated_length
        if options.stride is not None:  # windows may be shorter than what the checkpoint takes
            self.limit = min(self.limit, seq_len.maximum)
        is_pair = config.task == QUESTION_ANSWERING
        cut = TruncationStrategy.ONLY_SECOND if is_pair else TruncationStrategy.LONGEST_FIRST
        self.strategies = {True: cut, False: TruncationStrategy.DO_NOT_TRUNCATE}
        self.padding = PaddingStrategy.DO_NOT_PAD
        self.cuts = options.truncate or options.stride is not None
        self.num_special = self.tokenizer.num_special_tokens_to_add()  # of one text
        self.room = self.limit - self.tokenizer.num_special_tokens_to_add(pair=is_pair)
        if options.stride is not None and options.stride >= self.room - 1:
            raise UserError(
                f"--stride {options.stride}: windows have {self.limit} tokens, the question among them; name fewer "
                "tokens that they have in common"
            )
        needs_characters = config.task in (TOKEN_CLASSIFICATION, QUESTION_ANSWERING)
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        self.encode = backend.encode_batch if needs_characters else backend.encode_batch_fast
        has_types = config.type_vocab_size > 1 and "token_type_ids" in self.tokenizer.model_input_names
        self.has_types = has_types and config.task != FILL_MASK
        # With most tokenizers the types of a text that is not of a pair are all 0, and need not be read.
        self.one_has_types = self.has_types and any(self.encode(["a"])[0].type_ids)

    def tokenise(self, records: Sequence[Record]) -> list[list[Window] | str]:
        """For each record its windows, none for a blank line; or what is wrong with it."""
        results: list[list[Window] | str] = [record.problem or [] for record in records]
        readable = [index for index, record in enumerate(records) if record.texts]
        texts = [records[index].texts for index in readable]
        encodings = self._encode(texts)
        has_types = self.has_types if any(len(one) > 1 for one in texts) else self.one_has_types
        every = self._windows(encodings, has_types)
        for index, own, encoding, windows in zip(readable, texts, encodings, every, strict=True):
            try:
                self._check(own, encoding, windows)
                results[index] = windows
            except UserError as error:
                results[index] = str(error)
        self._check_ids(results)
        return results

    def _encode(self, texts: Sequence[tuple[str, ...]]) -> list[Any]:
        """The encodings of texts and pairs; an exception in place of one that cannot be had."""
        inputs = [one[0] if len(one) == 1 else one for one in texts]
        if not self.cuts or self.config.task != QUESTION_ANSWERING:
            return self._encode_batch(inputs, cut=self.cuts)
        encodings = self._encode_batch(inputs, cut=False)
        long = [
            index
            for index, encoding in enumerate(encodings)
            if not isinstance(encoding, UserError) and len(encoding.ids) > self.limit
        ]
        for index in [*long]:  # the library panics where it finds no room for the context
            question = encodings[index].sequence_ids.count(0)
            if self.room - question <= (self.options.stride or 0):
                encodings[index] = UserError(
                    f"the question has {question} tokens, which leaves {max(self.room - question, 0)} of "
                    f"{self.limit} for the context; shorten it"
                    + (", or lower --stride" if self.options.stride else "")
                )
                long.remove(index)
        for index, encoding in zip(
            long, self._encode_batch([inputs[index] for index in long], cut=True), strict=True
        ):
            encodings[index] = encoding
        return encodings

    def _encode_batch(self, inputs: Sequence[Any], cut: bool) -> list[Any]:
        """What ``tokenizer(...)`` does, without the lists that it makes of the result: they take longer than the
        tokenisation."""
        self.tokenizer.set_truncation_and_padding(
            padding_strategy=self.padding,
            truncation_strategy=self.strategies[cut],
            max_length=self.limit,
            stride=self.options.stride or 0,
            pad_to_multiple_of=None,
            padding_side=None,
        )
        try:
            return self.encode(inputs)
        except Exception:  # the tokenizers library raises plain Exception
            return [self._encode_alone(one) for one in inputs]

    def _encode_alone(self, text: Any) -> Any:
        try:
            return self.encode([text])[0]
        except Exception as error:  # as above
            reason = " ".join(str(error).split())
            return UserError(
                f"the checkpoint's tokenizer cannot read it ({reason}); its vocabulary is incomplete or damaged"
            )

    def _windows(self, encodings: Sequence[Any], has_types: bool) -> list[list[Window]]:
        """The windows of each encoding, with its token types or with 0; none for an exception in place of one."""
        parts = [[] if isinstance(encoding, UserError) else self._parts(encoding) for encoding in encodings]
        every = list(itertools.chain.from_iterable(parts))
        ids = _rows_of([one.ids for one in every])
        if self.config.task == FILL_MASK:
            types = [pair_types(row, self.tokenizer.sep_token_id, self.config.type_vocab_size) for row in ids]
        elif has_types:
            types = _rows_of([one.type_ids for one in every])
        else:
            zeros = np.zeros(max(map(len, ids), default=0), np.int32)
            types = [zeros[: len(row)] for row in ids]
        windows = map(Window, ids, types, every)
        return [list(itertools.islice(windows, len(part))) for part in parts]

    def _parts(self, encoding: Any) -> list[Any]:
        """An encoding, and with a stride those of the windows behind it."""
        return [encoding] if self.options.stride is None else [encoding, *encoding.overflowing]

    def _check(self, texts: tuple[str, ...], encoding: Any, windows: Sequence[Window]) -> None:
        """Checks an encoding.

        Raises:
            UserError: it cannot be used.
        """
        if isinstance(encoding, UserError):
            raise encoding
        if len(texts) > 1 or len(windows[0].ids) <= self.num_special:
            self._check_words(texts, encoding)
        for window in windows:
            self._check_length(len(window.ids))
            if self.config.task == FILL_MASK:
                self._check_mask(window.ids)

    def _check_ids(self, results: list[list[Window] | str]) -> None:
        """Puts what is wrong in place of windows with an id outside its table.

        The largest ids of all windows are found at once, which is faster than looking at each.
        """
        readable = [
            (index, windows) for index, windows in enumerate(results) if windows and isinstance(windows, list)
        ]
        every = [window for _, windows in readable for window in windows]
        if not every or (
            np.concatenate([one.ids for one in every]).max() < self.config.vocab_size
            and np.concatenate([one.types for one in every]).max() < self.config.type_vocab_size
        ):
            return
        for index, windows in readable:
            try:
                for one in windows:
                    values = (one.ids[None], one.types[None], np.arange(len(one.ids))[None])
                    check_inputs(dict(zip(INPUT_NAMES, values, strict=True)), self.config, "its tokens")
            except UserError as error:
                results[index] = str(error)

    def _check_words(self, texts: tuple[str, ...], encoding: Any) -> None:
        present = set(encoding.sequence_ids)
        for index, text in enumerate(texts):
            if index not in present:
                shown = ascii(text if len(text) <= 40 else f"{text[:40]}...")
                raise UserError(f"{shown} has no word; write a text")

    def _check_length(self, length: int) -> None:
        if length > self.limit:
            what = "the position table has" if self.limit == self.config.max_positions else "the checkpoint takes"
            remedy = "shorten the text, or add --truncate"
            remedy += " or --stride N" if self.config.task == QUESTION_ANSWERING else ""
            raise UserError(f"{length} tokens, but {what} {self.limit}; {remedy}")
        if not self.seq_len.minimum <= length <= self.seq_len.maximum:
            raise UserError(
                f"{length} tokens, but the plan takes {self.seq_len.minimum} to {self.seq_len.maximum}; "
                "build with a wider --seq-len"
            )

    def _check_mask(self, ids: np.ndarray) -> None:
        if self.tokenizer.mask_token_id not in ids:
            is_cut = self.options.truncate and len(ids) == self.limit
            where = f" among its first {len(ids)} tokens" if is_cut else ""
            raise UserError(f"no {self.tokenizer.mask_token}{where}; write it where a word is to be filled in")


def _rows_of(lists: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Each list as int32 (its length,). One array holds all: to make one of each list takes three times as long."""
    joined = np.fromiter(itertools.chain.from_iterable(lists), np.int32)
    ends = itertools.accumulate(map(len, lists))
    return [joined[end - len(one) : end] for one, end in zip(lists, ends, strict=True)]


# --- the source -----------------------------------------------------------------------------------------------


class Source:
    """A file of texts for a model.

    Args:
        folder: the model.
        path: the file.
        ranges: the batches that the network takes.
        options: how outputs become answers.

    Raises:
        UserError: the model gives no answers, an option does not suit its task, or there is no such file.
    """

    def __init__(self, folder: ModelFolder, path: Path, ranges: BatchRanges, options: AnswerOptions) -> None:
        check_options(folder, options)
        if ranges.batch.minimum > 1:
            raise UserError(
                f"the plan's smallest batch has {ranges.batch.minimum} sequences, but the last ones of a file may be "
                "fewer; build with --batch 1,OPT,MAX"
            )
        self.size = check_input(path)
        self.folder = folder
        self.path = path
        self.ranges = ranges
        self.options = options
        self.tokenization = Tokenization(folder, ranges.seq_len, options)

    @property
    def task(self) -> str:
        """The model's task."""
        return self.folder.config.task

    def of_file(self, path: Path) -> Source:
        """The same for another file, with the same tokenizer."""
        other = copy.copy(self)
        other.path = path
        return other

    def check(self) -> None:
        """Reads until the first line that can be used.

        Raises:
            UserError: there is none.
        """
        bad, first = 0, ""
        for chunk in read_chunks(self.path, self.task):
            for record, windows in zip(chunk.records, self.tokenization.tokenise(chunk.records), strict=True):
                if isinstance(windows, str):
                    bad, first = bad + 1, first or self.problem(record, windows)
                elif windows:
                    return
        raise nothing_usable(self.path, bad, first)

    def problem(self, record: Record, reason: str) -> str:
        """What is wrong with a line, with the file and the line's number."""
        return f"{self.path}, line {record.line}: {reason}"


def nothing_usable(path: Path, bad: int, first: str) -> UserError:
    """The error for a file without a line that can be used."""
    if not bad:
        return UserError(f"{path} holds no text, only blank lines or none; expected one text a line")
    return UserError(f"{path}: no line can be used ({bad} are bad); the first: {first}")


def check_options(folder: ModelFolder, options: AnswerOptions) -> None:
    """Checks that the model gives answers, and that every option has an effect.

    Raises:
        UserError: it does not, or one has none.
    """
    task, defaults = folder.config.task, AnswerOptions()
    if task == HIDDEN_STATES:
        raise UserError(
            f"{folder.path} is a bare encoder, and hidden states are no answer: {folder.config.hidden_size} "
            "numbers for every token; export a task (model2onnx.py --task), such as embedding for a vector a text"
        )
    needed = {
        "--top-k": (options.top_k != defaults.top_k, FILL_MASK),
        "--aggregate": (options.aggregate, TOKEN_CLASSIFICATION),
        "--max-answer": (options.max_answer != defaults.max_answer, QUESTION_ANSWERING),
        "--no-answer": (options.no_answer, QUESTION_ANSWERING),
        "--stride": (options.stride is not None, QUESTION_ANSWERING),
    }
    for option, (is_given, wanted) in needed.items():
        if is_given and task != wanted:
            raise UserError(f"{option} has no effect on the task {task}; it is for {wanted}; leave it out")


# --- answers --------------------------------------------------------------------------------------------------

RunAll = Callable[
    [Iterable[Mapping[str, np.ndarray]]], Iterator[np.ndarray]
]  # the inputs of batches to their outputs


def one_by_one(run: Run) -> RunAll:
    """Runs one batch after another by a function for a single one."""
    return lambda batches: map(run, batches)


class _Begun:
    """Records that are in batches, and their answers as far as outputs have come.

    Args:
        source: the file that they are from.
        answers: makes answers of outputs.
        chunk: consecutive lines.
        tokenised: what ``Tokenization.tokenise`` makes of them.

    Attributes:
        position: bytes of the file up to the end of the chunk.
        batches: the batches.
        results: an answer or a problem for each record, in their order.
        missing: the number of batches whose output has not come.
    """

    def __init__(
        self, source: Source, answers: Answers, chunk: Chunk, tokenised: Sequence[list[Window] | str]
    ) -> None:
        self._source = source
        self._answers = answers
        self.position = chunk.position
        self.results = [
            Answer(record, problem=source.problem(record, windows) if isinstance(windows, str) else None)
            for record, windows in zip(chunk.records, tokenised, strict=True)
        ]
        self._parts = [windows if isinstance(windows, list) else [] for windows in tokenised]
        self._owners = [index for index, windows in enumerate(self._parts) for _ in windows]
        self._first = [0, *itertools.accumulate(map(len, self._parts))]
        self._outputs: dict[int, np.ndarray] = {}  # of records of which not all windows have been run
        self.batches = make_batches([window for windows in self._parts for window in windows], source.ranges)
        self.missing = len(self.batches)

    def add(self, batch: NetworkBatch, output: np.ndarray) -> None:
        """Makes the answers of the records that the batch completes."""
        self.missing -= 1
        # Of words, only the mask tokens' scores count, and to look at all takes long.
        is_finite = self._source.task != FILL_MASK and bool(np.isfinite(output).all())
        for index, own in zip(batch.sequences, batch.split(output), strict=True):
            owner = self._owners[index]
            windows, outputs = self._parts[owner], [own]
            if len(windows) > 1:
                self._outputs[index] = own
                members = range(self._first[owner], self._first[owner] + len(windows))
                if not all(member in self._outputs for member in members):
                    continue
                outputs = [self._outputs.pop(member) for member in members]
            self.results[owner] = self._decode(self.results[owner].record, windows, outputs, is_finite)

    def _decode(
        self, record: Record, windows: Sequence[Window], outputs: Sequence[np.ndarray], is_finite: bool
    ) -> Answer:
        try:
            # Of several windows, others may come from other batches.
            return Answer(record, self._answers.of(record.texts, windows, outputs, is_finite and len(windows) == 1))
        except NotFiniteError:
            reason = "the network's output is not finite; take --precision bf16 or fp32"
            return Answer(record, problem=self._source.problem(record, reason))


class Predictor:
    """Answers records.

    Args:
        source: the file that they are from.
        run_all: runs the network; it may read the next inputs before it returns an output.
    """

    def __init__(self, source: Source, run_all: RunAll) -> None:
        self.source = source
        self.run_all = run_all
        self._answers = Answers(source.folder, source.tokenization.tokenizer, source.options)

    def answer(self, records: list[Record]) -> list[Answer]:
        """An answer or a problem for each record, in their order."""
        ((_, answers),) = self.answer_chunks([Chunk(records, 0)])
        return answers

    def answer_chunks(self, chunks: Iterable[Chunk]) -> Iterator[tuple[int, list[Answer]]]:
        """For each chunk its position, and an answer or a problem for each record, in their order."""
        begun: deque[_Begun] = deque()
        expected: deque[tuple[_Begun, NetworkBatch]] = deque()  # whose outputs come next

        def inputs() -> Iterator[Mapping[str, np.ndarray]]:
            for chunk, tokenised in one_ahead(self._tokenise, chunks):
                begun.append(_Begun(self.source, self._answers, chunk, tokenised))
                for batch in begun[-1].batches:
                    expected.append((begun[-1], batch))
                    yield batch.inputs

        for output in self.run_all(inputs()):
            owner, batch = expected.popleft()
            owner.add(batch, output)
            while begun and not begun[0].missing:
                done = begun.popleft()
                yield done.position, done.results
        yield from ((done.position, done.results) for done in begun)  # which are of lines without a text

    def _tokenise(self, chunk: Chunk) -> tuple[Chunk, list[list[Window] | str]]:
        return chunk, self.source.tokenization.tokenise(chunk.records)


Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(function: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """``function`` of each item, computed in a thread while the caller works with the result before it."""
    thread = ThreadPoolExecutor(1)
    try:
        pending: Future[Made] | None = None
        for item in items:
            following = thread.submit(function, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
    finally:
        # Without waiting: after Ctrl-C Python may close this generator in any thread, that one too.
        thread.shutdown(wait=False, cancel_futures=True)


def predict_file(
    source: Source, run_all: RunAll, target: Path, command: Mapping[str, Any] | None = None, restart: bool = True
) -> None:
    """Answers every line of a file.

    Args:
        source: the file.
        run_all: runs the network, as in ``Predictor``.
        target: the output; its name says its form.
        command: what the answers depend on, by which an interrupted run is known again; None for a run that cannot be
            continued.
        restart: discard what an interrupted run has left.

    Raises:
        UserError: no line can be used, the output cannot be written, or a run of another command was
            interrupted.
    """
    config = source.folder.config
    form = form_of(target, source.task, config.output_width)
    can_continue = command is not None and source.size > 0
    predictor = Predictor(source, run_all)
    with open_answers(target, form, command or {}, restart or not can_continue) as answers, ExitStack() as shown:
        progress, start = answers.progress, answers.progress.lines
        if answers.was_continued:
            note(f"{start} lines were done before; going on from there (--restart would begin again)")
        shows_bar = log_console.is_terminal and source.size > 0
        advance = shown.enter_context(remaining_time("predicting", source.size)) if shows_bar else None
        position = 0
        try:
            for end, results in predictor.answer_chunks(read_chunks(source.path, source.task, start)):
                answers.add(results, SHOWN_PROBLEMS)
                if advance is not None:
                    advance(end - position)
                position = end
        except BaseException:
            if not can_continue:
                answers.discard()
            elif progress.lines:
                note(f"{progress.lines} lines are done; the same command goes on from there")
            raise
        if not progress.answered:
            answers.discard()
            raise nothing_usable(source.path, progress.bad, next(iter(progress.first_bad), ""))
        shown.close()
        answers.finish()
    _report(answers, form.has_rows, target)


def _report(answers: AnswerFile, has_rows: bool, target: Path) -> None:
    progress = answers.progress
    for problem in progress.first_bad:
        warn(problem)
    more = progress.bad - len(progress.first_bad)
    if more > 0:
        warn(f"{more} more bad lines" + ("" if has_rows else f"; {target} has the reason of each"))
    rest = progress.lines - progress.answered
    if has_rows and rest:
        warn(f"{rest} of the {progress.lines} rows are NaN: those of bad and of blank lines")
    summary = f"{progress.answered} answers, {progress.bad} bad lines -> {target}"
    if answers.is_direct:  # perhaps standard output, which has the answers
        note(summary)
    else:
        console.print(summary, soft_wrap=True, markup=False)
