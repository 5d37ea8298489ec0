// The QkvToContext plugin, version 1: softmax(Q K^T / sqrt(D)) V for each head, from the output of one merged matmul.
//
//   inputs   qkv [..., 3H], (3, N, D) along the last axis: Q of all heads, K, V; fp32, fp16, bf16 or int8, and
//            layout single: nothing more; qkv [S, 3H] or [B, S, 3H]
//            layout padded: mask [B, S] int32, 0 where a key is padding; qkv [B, S, 3H]
//            layout packed: cu_seqlens [B + 1] int32, starts of all sequences, then T; qkv [T, 3H]
//   output   context [..., H], of qkv's type unless a field says otherwise
//   fields   num_heads (int32, required; D = H / N is 32, 64 or 128) · layout (string: single, padded or packed;
//            default single) · max_sequence_length (int32; layout packed: the tokens of the longest sequence to expect,
//            which chooses the kernel: longer ones are computed as well, but slowly; 0, the default: not known) ·
//            qkv_scale, output_scale (float32; greater than 0 if and only if that tensor has 8 bits;
//            default 0) · output_type (string): of an output with a scale int8 (the default), or fp8 (E4M3) unless qkv
//            is int8; without a scale fp16, bf16 or fp32, required if and only if qkv is int8
#pragma once

#include "common/plugin_base.h"
#include "qkv_to_context/qkv_to_context_kernels.h"

#include <string>
#include <vector>

namespace bert
{

struct QkvToContextFields
{
    int32_t numHeads;
    std::string layout{"single"};
    int32_t maxSequenceLength{0};
    float qkvScale{0.0F};
    float outputScale{0.0F};
    std::string outputType{}; // empty: that of qkv, or int8 if there is an output scale
};

class QkvToContextPlugin : public Plugin
{
public:
    // Throws PluginError for fields that are invalid or contradict each other.
    explicit QkvToContextPlugin(QkvToContextFields fields);

protected:
    // --- IPluginV3: TensorRT may copy a plugin at any time, from any thread.
    Plugin* copy() const override;

    // --- IPluginV3OneBuild: types and shapes; no GPU work.
    void checkInputCount(int32_t count) const override;
    void checkTypes(std::vector<DataType> const& inputs) const override;
    void checkShapes(std::vector<Dims> const& inputs) const override;
    std::vector<DataType> outputTypes(std::vector<DataType> const& inputs) const override;
    DimsExprs outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& exprBuilder) const override;
    bool supportsInput(std::vector<DataType> const& inputs) const override;

    // --- IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait.
    cudaError_t launch(EnqueueCall const& call) const override;
    std::vector<PluginField> fieldsToSerialize() const override;

private:
    QkvToContextFields mFields;
};

PluginCreator qkvToContextCreator();

} // namespace bert
