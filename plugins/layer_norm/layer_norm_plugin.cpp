#include "layer_norm/layer_norm_plugin.h"

#include "common/checks.h"
#include "common/fields.h"

namespace bert
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace
{

constexpr char const* kNAME = "LayerNorm";
constexpr char const* kVERSION = "1";
constexpr char const* kDEFAULT_KERNEL = "fast";
constexpr int32_t kINPUTS = 3;

bool isWeightType(DataType weight, DataType x)
{
    return weight == x || weight == DataType::kFLOAT;
}

void checkTypes(DataType x, DataType gamma, DataType beta)
{
    if (!isFloating(x))
    {
        fail("x is ", describe(x), "; expected fp32, fp16 or bf16");
    }
    if (gamma != beta || !isWeightType(gamma, x))
    {
        fail("gamma is ", describe(gamma), " and beta is ", describe(beta), " for x of ", describe(x),
            "; expected both ", describe(x), x == DataType::kFLOAT ? "" : " or both fp32");
    }
}

// A dimension of -1 is not known yet and is checked again when it is.
void checkShapes(Dims const& x, Dims const& gamma, Dims const& beta)
{
    int64_t const hidden = checkedHidden("x", x);
    auto const fits = [hidden](Dims const& weight)
    { return weight.nbDims == 1 && (weight.d[0] == hidden || weight.d[0] < 0 || hidden < 0); };
    if (!fits(gamma) || !fits(beta))
    {
        fail("gamma has the shape ", describe(gamma), " and beta ", describe(beta), " for x of ", describe(x),
            "; expected both [", hidden < 0 ? "H" : std::to_string(hidden), "]");
    }
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------
// Plugin
// ---------------------------------------------------------------------------------------------------------------

LayerNormPlugin::LayerNormPlugin(float epsilon, std::string kernel)
    : Plugin(kNAME, kVERSION)
    , mEpsilon(epsilon)
    , mKernel(std::move(kernel))
{
    checkEpsilon(epsilon);
    if (mKernel == "basic")
    {
        mLaunch = launchLayerNormBasic;
    }
    else if (mKernel == "fused")
    {
        mLaunch = launchLayerNormFused;
    }
    else if (mKernel == "fast")
    {
        mLaunch = launchLayerNormFast;
    }
    else
    {
        fail("field kernel is \"", mKernel, "\"; expected basic, fused or fast");
    }
}

nvinfer1::IPluginV3* LayerNormPlugin::clone() noexcept
{
    return run<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new LayerNormPlugin(*this); });
}

int32_t LayerNormPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            checkCount("number of outputs", nbOutputs, 1);
            checkTypes(inputTypes[0], inputTypes[1], inputTypes[2]);
            outputTypes[0] = inputTypes[0];
        });
}

int32_t LayerNormPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& /*exprBuilder*/) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            checkCount("number of outputs", nbOutputs, 1);
            checkShapes(knownDims(inputs[0]), knownDims(inputs[1]), knownDims(inputs[2]));
            outputs[0] = inputs[0];
        });
}

// TensorRT asks for one tensor after another, inputs first; only those up to `pos` are filled in.
bool LayerNormPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    if (nbInputs != kINPUTS || nbOutputs != 1 || inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    DataType const type = inOut[pos].desc.type;
    DataType const x = inOut[0].desc.type;
    switch (pos)
    {
    case 0:
        return isFloating(type);
    case 1:
        return isWeightType(type, x);
    case 2:
        return type == inOut[1].desc.type;
    case 3:
        return type == x;
    default:
        return false;
    }
}

int32_t LayerNormPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept
{
    return check("configurePlugin",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            checkTypes(in[0].desc.type, in[1].desc.type, in[2].desc.type);
            checkShapes(in[0].max, in[1].max, in[2].max);
        });
}

size_t LayerNormPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t /*nbInputs*/,
    DynamicPluginTensorDesc const* /*outputs*/, int32_t /*nbOutputs*/) const noexcept
{
    return mKernel == "basic" ? layerNormBasicWorkspace(countRows(inputs[0].max)) : 0;
}

void LayerNormPlugin::checkInputs(PluginTensorDesc const* in, int32_t nbInputs) const
{
    checkCount("number of inputs", nbInputs, kINPUTS);
    checkTypes(in[0].type, in[1].type, in[2].type);
    checkShapes(in[0].dims, in[1].dims, in[2].dims);
}

cudaError_t LayerNormPlugin::launch(PluginTensorDesc const* inputDesc, int32_t /*nbInputs*/,
    PluginTensorDesc const* /*outputDesc*/, void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) const
{
    Dims const& shape = inputDesc[0].dims;
    LayerNormArguments arguments{};
    arguments.x = inputs[0];
    arguments.gamma = inputs[1];
    arguments.beta = inputs[2];
    arguments.y = outputs[0];
    arguments.workspace = static_cast<float*>(workspace);
    arguments.rows = countRows(shape);
    arguments.hidden = static_cast<int32_t>(shape.d[shape.nbDims - 1]);
    arguments.epsilon = mEpsilon;
    arguments.type = elementType(inputDesc[0].type);
    arguments.weightType = elementType(inputDesc[1].type);
    return mLaunch(arguments, stream);
}

std::vector<PluginField> LayerNormPlugin::fieldsToSerialize() const
{
    return {{"epsilon", &mEpsilon, PluginFieldType::kFLOAT32, 1},
        {"kernel", mKernel.data(), PluginFieldType::kCHAR, static_cast<int32_t>(mKernel.size())}};
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

LayerNormCreator::LayerNormCreator()
    : PluginCreator(kNAME, kVERSION,
          {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1},
              {"kernel", nullptr, PluginFieldType::kCHAR, 1}})
{
}

nvinfer1::IPluginV3* LayerNormCreator::create(nvinfer1::PluginFieldCollection const* fields) const
{
    FieldReader const reader{fields, knownFields()};
    std::string const kernel = reader.has("kernel") ? reader.getString("kernel") : kDEFAULT_KERNEL;
    return new LayerNormPlugin(reader.getFloat("epsilon"), kernel);
}

} // namespace bert
