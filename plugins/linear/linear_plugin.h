// The Linear plugin, version 1: a matrix multiplication with bias and activation, in 16 or in 8 bits.
//
//   inputs   16 bits: x [..., K], weight [N, K] and bias [N], which may be left out; fp16 or bf16, all of one type ·
//            8 bits, where x_scale is given: x and weight both int8 or both fp8 (E4M3), then weight_scales [N] fp32,
//            output_factors [N] fp32 with the field of that name, and bias [N] fp32, which may be left out
//   outputs  y, [..., N] ·
//            16 bits: activation(x weight^T + bias), of the type of x; computed in fp32 and rounded once ·
//            8 bits: activation(x weight^T * x_scale * weight_scales + bias), computed in int32 (int8) or fp32, rounded
//            once to output_type; y in 8 bits is multiplied with output_factors and divided by output_scale, rounded half to even
//            and saturated
//   fields   activation (string: none or gelu; default none): gelu is x Phi(x), the form with erf ·
//            constant_weight (int32: 0 or 1; default 0): 1 where weight, weight_scales, output_factors and bias are
//            constants of the network; kernels may then load them before the previous layers have finished. No kernel that itself
//            triggers early may write them (common/programmatic_dependent_launch.cuh) ·
//            x_scale (float32): real value = x * scale; given if and only if x has 8 bits ·
//            output_type (string: fp16, bf16, or the type of x): given if and only if x_scale is ·
//            output_scale (float32): of y; given if and only if output_type has 8 bits ·
//            output_factors (int32: 0 or 1; default 0): 1 where there is an input of that name; only for y in 8 bits
//
// In 8 bits there are kernels for int8 from compute capability 7.5 (Turing) on, for fp8 from 8.9 (Ada) on.
// configurePlugin and onShapeChange refuse other GPUs.
#pragma once

#include "common/plugin_base.h"
#include "linear/linear_kernels.h"

#include <string>
#include <vector>

namespace bert
{

struct LinearFields
{
    std::string activation{"none"};
    int32_t constantWeight{};
    float xScale{}; // 0: not given
    float outputScale{};
    int32_t outputFactors{};
    std::string outputType; // empty: not given
};

class LinearPlugin : public Plugin
{
public:
    // Throws PluginError for invalid fields.
    explicit LinearPlugin(LinearFields fields);

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

    // --- IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait.
    cudaError_t launch(EnqueueCall const& call) const override;
    std::vector<PluginField> fieldsToSerialize() const override;

private:
    bool inEightBits() const;
    std::vector<char const*> inputNames() const; // with the bias
    DataType outputType(DataType x) const;

    LinearFields mFields;
};

PluginCreator linearCreator();

} // namespace bert
