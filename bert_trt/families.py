"""The families of BERT, each described by one entry of ``FAMILIES``: how its configuration and its parameters become
those of the one model that builder.py assembles.

model2onnx.py applies the description once, so that the other scripts know one model:

    names               parameters are renamed to those of Hugging Face's BERT
    positions           a table whose first rows are for padding loses them
    token types         a family without them has one type, whose embedding is zero
    narrow embeddings   a projection E -> H after the embeddings (ELECTRA, ALBERT)
    shared layers       every layer has its own copy of the parameters (ALBERT)
    relative positions  the table of buckets becomes a table of distances (MPNet)
    heads               the transform of a masked-language head, and the pooler of a classification head
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig

from bert_trt.console import UserError
from bert_trt.model_files import ENCODER_MODULES, BertConfig
from bert_trt.options import EMBEDDING, FILL_MASK, QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION

CLASS_SUFFIXES = {  # task -> the end of the name of transformers' class; other tasks have the bare encoder, Model
    FILL_MASK: "ForMaskedLM",
    SEQUENCE_CLASSIFICATION: "ForSequenceClassification",
    TOKEN_CLASSIFICATION: "ForTokenClassification",
    QUESTION_ANSWERING: "ForQuestionAnswering",
}
HEAD_WEIGHTS = {  # task -> the beginning of the names of its head's weights, in our names
    FILL_MASK: "cls.predictions.transform.",
    SEQUENCE_CLASSIFICATION: "classifier.",
    TOKEN_CLASSIFICATION: "classifier.",
    QUESTION_ANSWERING: "qa_outputs.",
}
DECODER, DECODER_BIAS, TIED_BIAS = (
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.bias",
)
EXPECTED = {  # entries of config.json that change the computation -> the only value that is supported
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "inner_group_num": 1,
    "auto_map": None,  # code that comes with the checkpoint
}
# Entries that a family's class or our description reads, besides those of transformers.PretrainedConfig.
READ = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size layer_norm_eps hidden_act tie_word_embeddings embedding_size num_hidden_groups dim n_layers "
    "n_heads hidden_dim activation relative_attention_num_buckets sinusoidal_pos_embds model_type architectures "
    "problem_type num_labels id2label label2id quantization_config compression_config"
).split()
# Entries without effect on the answer of an encoder: names, training, other heads, generation, serving.
HARMLESS = re.compile(
    r"^_|dropout|^dropout|initializer|_token_id$|token_ids$|checkpointing|cache|version|dtype|^name|_name|^task|_task"
    r"|^pooler_|^summary_|^directionality$|label|tokenizer|sbert|sentence_transformers|^output_|^return_|^torch"
    r"|^use_(bfloat16|return_dict)|^chunk_size_feed_forward$|^model_max_length$|^do_|language|revision|adapter"
    r"|^attn_implementation$|^gradient|^layer_norm$|^finetuning|^pad_|^license|^training|^max_length$|^prefix$"
)


@dataclass(frozen=True)
class Family:
    """How a family differs from BERT.

    Attributes:
        classes: the beginning of the names of transformers' classes, such as ``Bert`` of ``BertForMaskedLM``.
        names: patterns of its parameters' names, without the encoder's prefix, and what replaces them.
        config: our name of an entry of config.json -> the family's, where they differ.
        fixed: entries that are constants in the family's code.
        pads_positions: the first rows of the position table, up to the padding token's id, are for padding.
        padding_id: that id, where the family's code fixes it; None for the configuration's.
        pooler_activation: the activation of the pooler or of the classification head's first layer.
        has_projection: whether the embeddings are always projected; else where they are narrower than the encoder.
        has_pooler: whether the bare encoder can have a pooler.
    """

    classes: str
    names: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    pads_positions: bool = False
    padding_id: int | None = None
    pooler_activation: str = "hyperbolic_tangent"
    has_projection: bool = False
    has_pooler: bool = True


ROBERTA_HEADS = (
    (r"^lm_head\.dense\.", "cls.predictions.transform.dense."),
    (r"^lm_head\.layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.", "cls.predictions."),
    (r"^classifier\.dense\.", "pooler.dense."),
    (r"^classifier\.out_proj\.", "classifier."),
)
_IN_LAYER = r"(encoder\.layer\.\d+)\."
FAMILIES = {
    "bert": Family("Bert"),
    "roberta": Family("Roberta", ROBERTA_HEADS, fixed={"head_act": "gelu"}, pads_positions=True),
    "xlm-roberta": Family("XLMRoberta", ROBERTA_HEADS, fixed={"head_act": "gelu"}, pads_positions=True),
    "camembert": Family("Camembert", ROBERTA_HEADS, fixed={"head_act": "gelu"}, pads_positions=True),
    "distilbert": Family(
        "DistilBert",
        (
            (r"^transformer\.", "encoder."),
            (rf"^{_IN_LAYER}attention\.q_lin\.", r"\1.attention.self.query."),
            (rf"^{_IN_LAYER}attention\.k_lin\.", r"\1.attention.self.key."),
            (rf"^{_IN_LAYER}attention\.v_lin\.", r"\1.attention.self.value."),
            (rf"^{_IN_LAYER}attention\.out_lin\.", r"\1.attention.output.dense."),
            (rf"^{_IN_LAYER}sa_layer_norm\.", r"\1.attention.output.LayerNorm."),
            (rf"^{_IN_LAYER}ffn\.lin1\.", r"\1.intermediate.dense."),
            (rf"^{_IN_LAYER}ffn\.lin2\.", r"\1.output.dense."),
            (rf"^{_IN_LAYER}output_layer_norm\.", r"\1.output.LayerNorm."),
            (r"^vocab_transform\.", "cls.predictions.transform.dense."),
            (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
            (r"^vocab_projector\.", "cls.predictions.decoder."),
            (r"^pre_classifier\.", "pooler.dense."),
        ),
        config={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        fixed={"layer_norm_eps": 1e-12, "type_vocab_size": 0},
        pooler_activation="relu",
        has_pooler=False,
    ),
    "electra": Family(
        "Electra",
        (
            (r"^embeddings_project\.", "embeddings.projection."),
            (r"^generator_predictions\.dense\.", "cls.predictions.transform.dense."),
            (r"^generator_predictions\.LayerNorm\.", "cls.predictions.transform.LayerNorm."),
            (r"^generator_lm_head\.", "cls.predictions.decoder."),
            *ROBERTA_HEADS[-2:],
        ),
        fixed={"head_act": "gelu"},
        pooler_activation="erf",
        has_pooler=False,
    ),
    "albert": Family(
        "Albert",
        (
            (r"^encoder\.embedding_hidden_mapping_in\.", "embeddings.projection."),
            (r"\.attention\.(query|key|value)\.", r".attention.self.\1."),
            (r"\.attention\.(dense|LayerNorm)\.", r".attention.output.\1."),
            (r"\.ffn\.", ".intermediate.dense."),
            (r"\.ffn_output\.", ".output.dense."),
            (r"\.full_layer_layer_norm\.", ".output.LayerNorm."),
            (r"^pooler\.(weight|bias)$", r"pooler.dense.\1"),
            (r"^predictions\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
            (r"^predictions\.", "cls.predictions."),
        ),
        has_projection=True,
    ),
    "mpnet": Family(
        "MPNet",
        (
            (r"\.attention\.attn\.q\.", ".attention.self.query."),
            (r"\.attention\.attn\.k\.", ".attention.self.key."),
            (r"\.attention\.attn\.v\.", ".attention.self.value."),
            (r"\.attention\.attn\.o\.", ".attention.output.dense."),
            (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
            *ROBERTA_HEADS,
        ),
        fixed={"type_vocab_size": 0, "head_act": "gelu", "relative_positions": True},
        pads_positions=True,
        padding_id=1,
    ),
}


# --- the configuration ----------------------------------------------------------------------------------------


def find_family(values: Mapping[str, Any], source: str) -> Family:
    """The family of a configuration.

    Raises:
        UserError: the family is not supported.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{source}: model_type is {model_type!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def check_entries(values: Mapping[str, Any], source: str, ignored: tuple[str, ...] = ()) -> None:
    """Refuses entries of config.json that change the computation, or that may do so.

    Args:
        values: the entries as the file has them.
        source: names the file in messages.
        ignored: entries that the user has declared to be without effect.

    Raises:
        UserError: an entry has a value that is not supported, or is none that a BERT has; the message names it.
    """
    remedy = "if it has no effect on the answer, add --ignore-config {}"
    every_models = PretrainedConfig().to_dict()
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list):
        raise UserError(f"{source}: architectures is {architectures!r}, expected a list of names")
    for key, value in values.items():
        if key in ignored or (key in EXPECTED and value in (EXPECTED[key], None)):
            continue
        if key in EXPECTED:
            raise UserError(
                f"{source}: {key} is {value!r}, expected {EXPECTED[key]!r}; only plain encoders can be used; "
                + remedy.format(key)
            )
        if key not in READ and key not in every_models and not HARMLESS.search(key):
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
            raise UserError(
                f"{source}: {key} is {shown}, an entry that no supported model has, and that may change what it "
                f"computes; {remedy.format(key)}"
            )


def canonical_entries(hf_config: Any) -> dict[str, Any]:
    """The entries of a checkpoint's configuration under our names, for ``BertConfig.from_dict``.

    Args:
        hf_config: transformers' configuration.
    """
    family, values = FAMILIES[hf_config.model_type], hf_config.to_dict()
    entries = {name: values.get(family.config.get(name, name)) for name in READ if name not in family.fixed}
    entries |= family.fixed
    hidden = entries.get("hidden_size")
    entries["embedding_size"] = entries.get("embedding_size") or hidden
    entries["has_projection"] = family.has_projection or entries["embedding_size"] != hidden
    entries["pooler_activation"] = family.pooler_activation
    entries["type_vocab_size"] = entries.get("type_vocab_size") or (
        1 if entries.get("type_vocab_size") == 0 else None
    )
    if family.pads_positions and isinstance(entries.get("max_position_embeddings"), int):
        entries["max_position_embeddings"] -= num_padding_positions(hf_config)
    return {key: value for key, value in entries.items() if value is not None} | {"model_type": "bert"}


def num_padding_positions(hf_config: Any) -> int:
    """The number of rows at the beginning of the position table that no token has."""
    family = FAMILIES[hf_config.model_type]
    if not family.pads_positions:
        return 0
    return 1 + (hf_config.pad_token_id if family.padding_id is None else family.padding_id)


# --- the parameters -------------------------------------------------------------------------------------------


def canonical_name(name: str, hf_prefix: str, family: Family) -> str:
    """Our name of a parameter, without the prefix of the encoder.

    Args:
        name: the family's name.
        hf_prefix: the encoder's prefix in the family, such as ``roberta``.
        family: the family.
    """
    name = name.removeprefix(f"{hf_prefix}.")
    for pattern, ours in family.names:
        name = re.sub(pattern, ours, name)
    return name


def canonical_state(model: Any, config: BertConfig) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint under our names, for ``PyTorchBert``. Where nothing differs they are shared.

    Args:
        model: the checkpoint in transformers' class for the task.
        config: its configuration in our form.
    """
    family = FAMILIES[model.config.model_type]
    state: dict[str, torch.Tensor] = {}
    value: torch.Tensor
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            first, *others = _layer_names(canonical_name(name, model.base_model_prefix, family), model)
            state[first] = value
            state |= {other: value.clone() for other in others}  # each layer of the graph has weights of its own
    table = state["embeddings.word_embeddings.weight"]
    if DECODER in state:
        bias = state.pop(DECODER_BIAS)
        state.pop(TIED_BIAS, None)  # PyTorch adds the decoder's
        if state[DECODER].data_ptr() == table.data_ptr():
            del state[DECODER]
            state[TIED_BIAS] = bias
        else:
            state[DECODER_BIAS] = bias
    if not config.has_pooler:
        state = {name: value for name, value in state.items() if not name.startswith("pooler.")}
    state.setdefault("embeddings.token_type_embeddings.weight", torch.zeros(1, config.embedding_size))
    positions = "embeddings.position_embeddings.weight"
    state[positions] = state[positions][num_padding_positions(model.config) :]
    if config.has_relative_positions:
        name = "encoder.relative_attention_bias.weight"
        state[name] = _by_distance(state[name], model.base_model.encoder, config)
    return {f"{config.prefix}{name}" if name.startswith(ENCODER_MODULES) else name: state[name] for name in state}


def _layer_names(name: str, model: Any) -> list[str]:
    """The names of a parameter in all layers that share it (ALBERT); else just its name."""
    shared = re.match(r"encoder\.albert_layer_groups\.(\d+)\.albert_layers\.0\.(.+)", name)
    if shared is None:
        return [name]
    layers, groups = model.config.num_hidden_layers, model.config.num_hidden_groups
    members = [layer for layer in range(layers) if int(layer / (layers / groups)) == int(shared[1])]
    return [f"encoder.layer.{layer}.{shared[2]}" for layer in members]


def _by_distance(table: torch.Tensor, encoder: Any, config: BertConfig) -> torch.Tensor:
    """(buckets, N) -> (2 P - 1, N): row p_key - p_query + P - 1 has the bias of that distance."""
    distances = torch.arange(1 - config.max_positions, config.max_positions)
    bucket: Callable[[torch.Tensor], torch.Tensor] = encoder.relative_position_bucket
    return table[bucket(distances)]


def uses_bare_encoder(task: str) -> bool:
    """Whether a task's checkpoint is transformers' class without a head."""
    return task not in CLASS_SUFFIXES


def class_name(family: Family, task: str) -> str:
    """The name of transformers' class for a task."""
    return f"{family.classes}{CLASS_SUFFIXES.get(task, 'Model')}"


def needs_pooler(task: str, pooling: str | None) -> bool:
    """Whether the bare encoder is loaded with its pooler."""
    return task == EMBEDDING and pooling == "pooler"
