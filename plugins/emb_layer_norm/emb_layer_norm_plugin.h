// The EmbLayerNorm plugin, version 1: three embedding lookups, their sum, layer normalisation.
//
//   inputs   input_ids, token_type_ids, position_ids int32 of one shape [...] · word table [V, H] ·
//            position table [P, H] · type table [Y, H], all of one type: fp32, fp16 or bf16 · gamma [H] · beta [H],
//            both of that type or both fp32
//   output   y [..., H], of the tables' type; NaN in the rows of ids that are not in their table
//   fields   epsilon (float32, required, greater than 0)
#pragma once

#include "common/plugin_base.h"
#include "emb_layer_norm/emb_layer_norm_kernels.h"

#include <string>

namespace bert
{

class EmbLayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for an epsilon that it cannot use.
    explicit EmbLayerNormPlugin(float epsilon);

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
    float mEpsilon;
};

class EmbLayerNormCreator : public PluginCreator
{
public:
    EmbLayerNormCreator();

protected:
    nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const override;
};

} // namespace bert
