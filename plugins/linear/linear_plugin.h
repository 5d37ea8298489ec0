// The Linear plugin, version 1: a matrix multiplication with bias and activation.
//
//   inputs   x [..., K], weight [N, K] and bias [N], which may be left out; fp16 or bf16, all of one type
//   outputs  y = activation(x weight^T + bias), [..., N], of the type of x; computed in fp32 and rounded once
//   fields   activation (string: none or gelu; default none): gelu is x Phi(x), the form with erf ·
//            constant_weight (int32: 0 or 1; default 0): 1 where weight and bias are constants of the network;
//            kernels may then load them before the previous layers have finished. No kernel that itself triggers
//            early may write them (common/programmatic_dependent_launch.cuh)
#pragma once

#include "common/plugin_base.h"
#include "linear/linear_kernels.h"

#include <string>
#include <vector>

namespace bert
{

class LinearPlugin : public Plugin
{
public:
    // Throws PluginError for an unknown activation. constantWeight: 0 or 1.
    LinearPlugin(std::string activation, int32_t constantWeight);

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
    std::string mActivation;
    int32_t mConstantWeight;
};

PluginCreator linearCreator();

} // namespace bert
