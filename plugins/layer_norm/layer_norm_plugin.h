// The LayerNorm plugin, version 1: layer normalisation over the last axis.
//
//   inputs   x [..., H] fp32, fp16 or bf16 · gamma [H] · beta [H], both of x's type or both fp32
//   output   y, of the shape and type of x
//   fields   epsilon (float32, required, greater than 0) · kernel (string: basic, fused or fast; default fast)
#pragma once

#include "common/plugin_base.h"
#include "layer_norm/layer_norm_kernels.h"

#include <string>

namespace bert
{

class LayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for an epsilon or a kernel that it cannot use.
    LayerNormPlugin(float epsilon, std::string kernel);

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
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;

protected:
    std::vector<nvinfer1::PluginField> fieldsToSerialize() const override;
    void checkInputs(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs) const override;
    cudaError_t launch(nvinfer1::PluginTensorDesc const* inputDesc, int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) const override;

private:
    using Launcher = cudaError_t (*)(LayerNormArguments const&, cudaStream_t);

    float mEpsilon;
    std::string mKernel;
    Launcher mLaunch;
};

class LayerNormCreator : public PluginCreator
{
public:
    LayerNormCreator();

protected:
    nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const override;
};

} // namespace bert
