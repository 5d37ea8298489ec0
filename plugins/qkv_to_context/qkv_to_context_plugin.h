// The QkvToContext plugin, version 1: softmax(Q K^T / sqrt(D)) V for each head, from the packed output of one product.
//
//   inputs   qkv [..., 3H], (3, N, D) along the last axis: Q of all heads, K, V; fp32, fp16, bf16 or int8, and
//            layout single: nothing more; qkv [S, 3H] or [B, S, 3H]
//            layout padded: mask [B, S] int32, 0 where a key is padding; qkv [B, S, 3H]
//            layout packed: cu_seqlens [B + 1] int32, where each sentence begins and the last one ends; qkv [T, 3H]
//   output   context [..., H], of qkv's type unless a field says otherwise
//   fields   num_heads (int32, required; D = H / N is 32, 64 or 128) · layout (string: single, padded or packed;
//            default single) · qkv_scale, output_scale (float32; greater than 0 if and only if that tensor is int8;
//            default 0) · output_type (string: fp16, bf16 or fp32; required if and only if qkv is int8 and the output
//            is not)
#pragma once

#include "common/plugin_base.h"
#include "qkv_to_context/qkv_to_context_kernels.h"

#include <string>

namespace bert
{

struct QkvToContextFields
{
    int32_t numHeads;
    std::string layout{"single"};
    float qkvScale{0.0F};
    float outputScale{0.0F};
    std::string outputType{}; // empty: that of qkv, or int8 if there is an output scale
};

class QkvToContextPlugin : public Plugin
{
public:
    // Throws PluginError for fields that it cannot use or that contradict each other.
    explicit QkvToContextPlugin(QkvToContextFields fields);

    // --- IPluginV3
    nvinfer1::IPluginV3* clone() noexcept override;

    // --- IPluginV3OneBuild: called while the network is defined (types, shapes) and while the engine is built.
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
        nvinfer1::DimsExprs const* shapeInputs, int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs,
        int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
        int32_t nbInputs, int32_t nbOutputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;

protected:
    std::vector<nvinfer1::PluginField> fieldsToSerialize() const override;
    void checkInputs(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs) const override;
    cudaError_t launch(nvinfer1::PluginTensorDesc const* inputDesc, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) const override;

private:
    int32_t nbInputs() const;
    nvinfer1::DataType outputType(nvinfer1::DataType qkv) const;
    void checkTypes(nvinfer1::DataType qkv, nvinfer1::DataType second) const; // second: ignored if single
    void checkShapes(nvinfer1::Dims const& qkv, nvinfer1::Dims const* second) const;

    QkvToContextFields mOwn;
};

class QkvToContextCreator : public PluginCreator
{
public:
    QkvToContextCreator();

protected:
    nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const override;
};

} // namespace bert
