"""What the fusion report reads out of a verbose log."""

import pytest

from bert_trt.console import UserError
from bert_trt.fusion_log import read_fusions

PARTS = ["bert.encoder.layer.1.act.gelu_erf", "bert.encoder.layer.1.act", "bert.encoder.layer.11.act"]

# Lines in the form that the full TensorRT writes, where layers keep their names.
FULL = """\
[VERBOSE] Original: 40 layers
[VERBOSE] After dead-layer removal: 40 layers
[VERBOSE] Running: PointWiseFusion on bert.encoder.layer.1.act.gelu_erf
[VERBOSE] PointWiseFusion: Fusing bert.encoder.layer.1.act.gelu_erf with bert.encoder.layer.1.act
[VERBOSE] After vertical fusions: 31 layers
[VERBOSE] Engine Layer Information:
Layer(PointWiseV2): PWN(bert.encoder.layer.1.act.gelu_erf, bert.encoder.layer.1.act), Tactic: 0x1, x (Float[1,4]) -> y
Layer(gemm): cls.predictions.decoder, Tactic: 0x2, a (Float[1]) -> b (Float[1])
"""

RTX = """\
[VERBOSE] Original: 128 layers
[VERBOSE] After Myelin optimization: 1 layers
[VERBOSE] Engine Layer Information:
Layer(Myelin): {ForeignNode[cls.predictions.bias...cls.predictions]}, Tactic: 0x0, ids (Int32[1,-1]) -> logit
"""


def test_a_log_with_named_layers():
    report = read_fusions(FULL.splitlines(), PARTS)
    assert report.stages == [("Original", 40), ("After vertical fusions", 31)]
    assert report.fusions == [
        "Running: PointWiseFusion on bert.encoder.layer.1.act.gelu_erf",
        "PointWiseFusion: Fusing bert.encoder.layer.1.act.gelu_erf with bert.encoder.layer.1.act",
    ]
    assert report.engine_layers["PWN(bert.encoder.layer.1.act.gelu_erf, bert.encoder.layer.1.act)"] == PARTS[:2]
    assert report.engine_layers["cls.predictions.decoder"] == []
    assert report.unnamed == PARTS[2:]  # layer 11 is not found just because layer 1 is


def test_a_log_with_one_foreign_node():
    report = read_fusions(RTX.splitlines(), PARTS)
    assert report.stages == [("Original", 128), ("After Myelin optimization", 1)]
    assert report.fusions == []
    assert list(report.engine_layers) == ["{ForeignNode[cls.predictions.bias...cls.predictions]}"]
    assert report.unnamed == PARTS


def test_a_log_without_engine_layers_is_an_error():
    with pytest.raises(UserError, match=r"no section 'Engine Layer Information'.*--verbose"):
        read_fusions(["[VERBOSE] Original: 3 layers"], PARTS)
