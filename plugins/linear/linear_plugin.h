// The Linear plugin, version 1: a matrix product with bias and activation.
//
//   inputs   x [..., K], weight [N, K] and bias [N], which may be left out; fp16 or bf16, all of one type
//   outputs  y = activation(x weight^T + bias), [..., N], of the type of x; computed in fp32 and rounded once
//   fields   activation (string: none or gelu; default none): gelu is x Phi(x), the form with erf ·
//            constant_weight (int32: 0 or 1; default 0): 1 where weight and bias are constants of the network;
//            kernels may then fetch them before the layers before this one are done. No kernel that itself triggers
//            early may write them (common/early_launch.cuh)
#pragma once

#include "common/plugin_base.h"
#include "linear/linear_kernels.h"

#include <string>

namespace bert
{

class LinearPlugin : public Plugin
{
public:
    // Throws PluginError for an activation that it does not know. constantWeight: 0 or 1.
    LinearPlugin(std::string activation, int32_t constantWeight);

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
    std::string mActivation;
    int32_t mConstantWeight;
};

class LinearCreator : public PluginCreator
{
public:
    LinearCreator();

protected:
    nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const override;
};

} // namespace bert
