#include "layer_norm/layer_norm_plugin.h"

namespace bert
{

namespace
{

constexpr char const* kNAME = "LayerNorm";
constexpr char const* kVERSION = "1";
constexpr char const* kDEFAULT_KERNEL = "fast";
constexpr int32_t kINPUTS = 3;
constexpr int32_t kX = 0;
constexpr int32_t kGAMMA = 1;
constexpr int32_t kBETA = 2;

bool isWeightType(DataType weight, DataType x)
{
    return weight == x || weight == DataType::kFLOAT;
}

} // namespace

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

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* LayerNormPlugin::copy() const
{
    return new LayerNormPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

void LayerNormPlugin::checkInputCount(int32_t count) const
{
    checkCount("number of inputs", count, kINPUTS);
}

void LayerNormPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    DataType const x = inputs[kX];
    DataType const gamma = inputs[kGAMMA];
    DataType const beta = inputs[kBETA];
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

void LayerNormPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    Dims const& x = inputs[kX];
    Dims const& gamma = inputs[kGAMMA];
    Dims const& beta = inputs[kBETA];
    int64_t const hidden = checkedHidden("x", x);
    auto const fits
        = [hidden](Dims const& weight) { return weight.nbDims == 1 && mayBeEqual(weight.d[0], hidden); };
    if (!fits(gamma) || !fits(beta))
    {
        fail("gamma has the shape ", describe(gamma), " and beta ", describe(beta), " for x of ", describe(x),
            "; expected both [", hidden < 0 ? "H" : std::to_string(hidden), "]");
    }
}

std::vector<DataType> LayerNormPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    return {inputs[kX]};
}

bool LayerNormPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    switch (inputs.size() - 1)
    {
    case kX:
        return isFloating(type);
    case kGAMMA:
        return isWeightType(type, inputs[kX]);
    default:
        return type == inputs[kGAMMA];
    }
}

size_t LayerNormPlugin::workspaceSize(TypesAndShapes const& inputs) const
{
    return mKernel == "basic" ? layerNormBasicWorkspace(countRows(inputs.shapes[kX])) : 0;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t LayerNormPlugin::launch(EnqueueCall const& call) const
{
    Dims const& shape = call.inputDesc[kX].dims;
    LayerNormArguments arguments{};
    arguments.x = call.inputs[kX];
    arguments.gamma = call.inputs[kGAMMA];
    arguments.beta = call.inputs[kBETA];
    arguments.y = call.outputs[0];
    arguments.workspace = static_cast<float*>(call.workspace);
    arguments.rows = countRows(shape);
    arguments.hidden = static_cast<int32_t>(shape.d[shape.nbDims - 1]);
    arguments.epsilon = mEpsilon;
    arguments.type = elementType(call.inputDesc[kX].type);
    arguments.weightType = elementType(call.inputDesc[kGAMMA].type);
    return mLaunch(arguments, call.stream);
}

std::vector<PluginField> LayerNormPlugin::fieldsToSerialize() const
{
    return {fieldOf("epsilon", mEpsilon), fieldOf("kernel", mKernel)};
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator layerNormCreator()
{
    return {kNAME, kVERSION,
        {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1}, {"kernel", nullptr, PluginFieldType::kCHAR, 1}},
        [](FieldReader const& fields) -> Plugin*
        {
            return new LayerNormPlugin(fields.getFloat("epsilon"),
                fields.has("kernel") ? fields.getString("kernel") : kDEFAULT_KERNEL);
        }};
}

} // namespace bert
