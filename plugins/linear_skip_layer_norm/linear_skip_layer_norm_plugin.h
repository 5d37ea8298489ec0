// The LinearSkipLayerNorm plugin, version 1: a linear layer, residual sum, layer normalisation.
//
//   inputs   x [..., K] and weight [N, K], both fp16 or bf16; or both int8 or both fp8 (E4M3), where x_scale is given ·
//            skip [..., N], fp16 or bf16: the type of x where that has 16 bits · gamma [N] · beta [N] ·
//            weight_scales [N] fp32, where x_scale is given · output_factors [N] fp32, with the field of that name ·
//            bias [N], which may be left out; gamma, beta and bias all of the type of skip, or all fp32
//   outputs  y = LN(x weight^T [* x_scale * weight_scales] + bias + skip), of the type and shape of skip; with outputs
//            both also y in 8 bits. Sums are fp32 (int8: int32). Where two kernels compute it, x weight^T is rounded to
//            the type of skip
//   fields   epsilon (float32, required, greater than 0) ·
//            x_scale (float32): real value = x * scale; given if and only if x has 8 bits ·
//            outputs, output_scale, quantized_type, output_factors: common/quantized_output.h; y in 8 bits alone is refused ·
//            constant_weights (int32: 0 or 1; default 0): 1 where weight, weight_scales, gamma, beta, output_factors and
//            bias are constants of the network; kernels may then load them before the previous layers have finished. No
//            kernel that itself triggers early may write them (common/programmatic_dependent_launch.cuh)
//
// In 8 bits x has kernels where Linear has: int8 from compute capability 7.5 (Turing) on, fp8 from 8.9 (Ada) on.
#pragma once

#include "common/plugin_base.h"
#include "common/quantized_output.h"
#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"

#include <vector>

namespace bert
{

struct LinearSkipLayerNormFields
{
    float epsilon{};
    float xScale{}; // 0: not given
    OutputFields output;
    int32_t constantWeights{};
};

class LinearSkipLayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for invalid fields.
    explicit LinearSkipLayerNormPlugin(LinearSkipLayerNormFields fields);

    // --- IPluginV3OneBuild: the number of outputs, which depends on the fields.
    int32_t getNbOutputs() const noexcept override;

protected:
    // --- IPluginV3: TensorRT may copy a plugin at any time, from any thread.
    Plugin* copy() const override;

    // --- IPluginV3OneBuild: types and shapes; no GPU work.
    void checkInputCount(int32_t count) const override;
    void checkTypes(std::vector<DataType> const& inputs) const override;
    void checkShapes(std::vector<Dims> const& inputs) const override;
    void checkKernel(TypesAndShapes const& inputs) const override;
    std::vector<DataType> outputTypes(std::vector<DataType> const& inputs) const override;
    DimsExprs outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& exprBuilder) const override;
    bool supportsInput(std::vector<DataType> const& inputs) const override;
    size_t workspaceSize(TypesAndShapes const& inputs) const override;

    // --- IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait.
    cudaError_t launch(EnqueueCall const& call) const override;
    std::vector<PluginField> fieldsToSerialize() const override;

private:
    bool inEightBits() const;
    size_t factorsIndex() const; // of the input output_factors, where there is one
    size_t biasIndex() const;    // of the input bias, likewise

    LinearSkipLayerNormFields mFields;
};

PluginCreator linearSkipLayerNormCreator();

} // namespace bert
