// The SkipLayerNorm plugin, version 1: residual sum, the bias of the preceding linear layer, layer normalisation.
//
//   inputs   x [..., H] and skip [..., H], each fp32, fp16, bf16 or int8, the floating ones of one type ·
//            gamma [H] · beta [H] · output_factors [H] fp32, with the field of that name · bias [H], which may be left
//            out; gamma, beta and bias all of that type, or all fp32
//   outputs  y = LN(x + skip + bias), of the shape of x: of the floating type; or in 8 bits, if output_scale is given;
//            or both, the floating one first
//   fields   epsilon (float32, required, greater than 0) ·
//            x_scale, skip_scale (float32): real value = int8 * scale; given if and only if that input is int8 ·
//            output_scale, outputs, quantized_type, output_factors: common/quantized_output.h ·
//            output_type (string: fp32, fp16 or bf16): the floating type, where x and skip are both int8 ·
//            constant_weights (int32: 0 or 1; default 0): 1 where gamma, beta, output_factors and bias are constants of
//            the network; kernels may then load them before the previous layers have finished. No kernel that itself triggers
//            early may write them (common/programmatic_dependent_launch.cuh)
#pragma once

#include "common/plugin_base.h"
#include "common/quantized_output.h"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

#include <optional>
#include <string>
#include <vector>

namespace bert
{

struct SkipLayerNormFields
{
    float epsilon{};
    float xScale{}; // 0: not given
    float skipScale{};
    OutputFields output;
    std::string outputType; // empty: not given
    int32_t constantWeights{};
};

class SkipLayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for invalid fields.
    explicit SkipLayerNormPlugin(SkipLayerNormFields fields);

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
    bool supportsInput(std::vector<DataType> const& inputs) const override;

    // --- IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait.
    cudaError_t launch(EnqueueCall const& call) const override;
    std::vector<PluginField> fieldsToSerialize() const override;

private:
    std::optional<DataType> floatingType(DataType x, DataType skip) const;
    size_t biasIndex() const;

    SkipLayerNormFields mFields;
    std::optional<DataType> mNamedType; // output_type
};

PluginCreator skipLayerNormCreator();

} // namespace bert
