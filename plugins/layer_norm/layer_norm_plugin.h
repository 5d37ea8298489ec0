// The LayerNorm plugin, version 1: layer normalisation over the last axis.
//
//   inputs   x [..., H] fp32, fp16 or bf16 · gamma [H] · beta [H], both of x's type or both fp32
//   output   y, of the shape and type of x
//   fields   epsilon (float32, required, greater than 0) · kernel (string: basic, fused or fast; default fast)
#pragma once

#include "common/plugin_base.h"
#include "layer_norm/layer_norm_kernels.h"

#include <string>
#include <vector>

namespace bert
{

class LayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for an epsilon or a kernel that it cannot use.
    LayerNormPlugin(float epsilon, std::string kernel);

protected:
    // --- IPluginV3: TensorRT may copy a plugin at any time, from any thread.
    Plugin* copy() const override;

    // --- IPluginV3OneBuild: types and shapes; no GPU work.
    void checkInputCount(int32_t count) const override;
    void checkTypes(std::vector<DataType> const& inputs) const override;
    void checkShapes(std::vector<Dims> const& inputs) const override;
    std::vector<DataType> outputTypes(std::vector<DataType> const& inputs) const override;
    bool supportsInput(std::vector<DataType> const& inputs) const override;
    // The basic kernel keeps its statistics in memory.
    size_t workspaceSize(TypesAndShapes const& inputs) const override;

    // --- IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait.
    cudaError_t launch(EnqueueCall const& call) const override;
    std::vector<PluginField> fieldsToSerialize() const override;

private:
    using Launcher = cudaError_t (*)(LayerNormArguments const&, cudaStream_t);

    float mEpsilon;
    std::string mKernel;
    Launcher mLaunch;
};

PluginCreator layerNormCreator();

} // namespace bert
