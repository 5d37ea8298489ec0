// The SkipLayerNorm plugin, version 1: residual sum, the bias of the linear layer before, layer normalisation.
//
//   inputs   x [..., H] and skip [..., H], each fp32, fp16, bf16 or int8, the floating ones of one type ·
//            gamma [H] · beta [H] · bias [H], which may be left out; all three of that type, or all fp32
//   outputs  y = LN(x + skip + bias), of the shape of x: of the floating type; or int8, if output_scale is given; or
//            both, the floating one first
//   fields   epsilon (float32, required, greater than 0) ·
//            x_scale, skip_scale (float32): real value = int8 * scale; given if and only if that input is int8 ·
//            output_scale (float32): of an int8 output, round half to even of y / scale, saturated ·
//            output_type (string: fp32, fp16 or bf16): the floating type, where x and skip are both int8 ·
//            outputs (string: y or both; default y) ·
//            constant_weights (int32: 0 or 1; default 0): 1 where gamma, beta and bias are constants of the network;
//            kernels may then fetch them before the layers before this one are done. No kernel that itself triggers
//            early may write them (common/early_launch.cuh)
#pragma once

#include "common/plugin_base.h"
#include "skip_layer_norm/skip_layer_norm_kernels.h"

#include <optional>
#include <string>

namespace bert
{

struct SkipLayerNormFields
{
    float epsilon{};
    float xScale{}; // 0: not given
    float skipScale{};
    float outputScale{};
    std::string outputType; // empty: not given
    std::string outputs{"y"};
    int32_t constantWeights{};
};

class SkipLayerNormPlugin : public Plugin
{
public:
    // Throws PluginError for fields that it cannot use.
    explicit SkipLayerNormPlugin(SkipLayerNormFields fields);

    // --- IPluginV3
    nvinfer1::IPluginV3* clone() noexcept override;

    // --- IPluginV3OneBuild: called while the network is defined (types, shapes) and while the engine is built.
    int32_t getNbOutputs() const noexcept override;
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
    std::optional<nvinfer1::DataType> floatingType(nvinfer1::DataType x, nvinfer1::DataType skip) const;
    std::vector<nvinfer1::DataType> outputTypes(std::optional<nvinfer1::DataType> floating) const;
    void checkTypes(nvinfer1::DataType const* types, int32_t count) const;
    bool hasFloatingOutput() const;

    SkipLayerNormFields mFields;
    std::optional<nvinfer1::DataType> mNamedType; // output_type
};

class SkipLayerNormCreator : public PluginCreator
{
public:
    SkipLayerNormCreator();

protected:
    nvinfer1::IPluginV3* create(nvinfer1::PluginFieldCollection const* fields) const override;
};

} // namespace bert
