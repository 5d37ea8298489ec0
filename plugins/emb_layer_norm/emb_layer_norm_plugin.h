// The EmbLayerNorm plugin, version 1: three embedding lookups, their sum, layer normalisation.
//
//   inputs   input_ids, token_type_ids, position_ids int32 of one shape [...] · word table [V, H] ·
//            position table [P, H] · type table [Y, H], all of one type: fp32, fp16 or bf16 · gamma [H] · beta [H],
//            both of that type or both fp32 · output_factors [H] fp32, with the field of that name
//   outputs  y [..., H]: of the tables' type; or in 8 bits, if output_scale is given; or both, the floating one first.
//            In the rows of ids that are not in their table NaN, in int8 -128
//   fields   epsilon (float32, required, greater than 0) · output_scale, outputs, quantized_type,
//            output_factors: common/quantized_output.h
#pragma once

#include "common/plugin_base.h"
#include "common/quantized_output.h"
#include "emb_layer_norm/emb_layer_norm_kernels.h"

#include <vector>

namespace bert
{

class EmbLayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for invalid fields.
    EmbLayerNormPlugin(float epsilon, OutputFields output);

    // --- IPluginV3OneBuild: the number of outputs, which depends on the fields.
    int32_t getNbOutputs() const noexcept override;

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
    float mEpsilon;
    OutputFields mOutput;
};

PluginCreator embLayerNormCreator();

} // namespace bert
