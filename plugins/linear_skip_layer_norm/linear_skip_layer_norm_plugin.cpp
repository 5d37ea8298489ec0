#include "linear_skip_layer_norm/linear_skip_layer_norm_plugin.h"

#include "linear/linear_inputs.h"

#include <utility>

namespace bert
{

namespace
{

constexpr char const* kNAME = "LinearSkipLayerNorm";
constexpr char const* kVERSION = "1";
constexpr int32_t kX = 0;
constexpr int32_t kWEIGHT = 1;
constexpr int32_t kSKIP = 2;
constexpr int32_t kGAMMA = 3;
constexpr int32_t kBETA = 4;
constexpr int32_t kWEIGHT_SCALES = 5; // in 8 bits; output_factors and the bias come last

} // namespace

LinearSkipLayerNormPlugin::LinearSkipLayerNormPlugin(LinearSkipLayerNormFields fields)
    : Plugin(kNAME, kVERSION)
    , mFields(std::move(fields))
{
    checkEpsilon(mFields.epsilon);
    checkScale("x_scale", mFields.xScale);
    mFields.output.check();
    if (!mFields.output.hasFloating())
    {
        fail("field output_scale is ", mFields.output.outputScale,
            ", but the field outputs is \"y\"; expected both: y, which the residual sum behind it reads, and "
            "y "
            "in 8 bits");
    }
}

bool LinearSkipLayerNormPlugin::inEightBits() const
{
    return mFields.xScale > 0.0F;
}

size_t LinearSkipLayerNormPlugin::factorsIndex() const
{
    return inEightBits() ? kWEIGHT_SCALES + 1 : kWEIGHT_SCALES;
}

size_t LinearSkipLayerNormPlugin::biasIndex() const
{
    return mFields.output.hasFactors() ? factorsIndex() + 1 : factorsIndex();
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* LinearSkipLayerNormPlugin::copy() const
{
    return new LinearSkipLayerNormPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

int32_t LinearSkipLayerNormPlugin::getNbOutputs() const noexcept
{
    return mFields.output.count();
}

void LinearSkipLayerNormPlugin::checkInputCount(int32_t count) const
{
    auto const bias = static_cast<int32_t>(biasIndex());
    if (count != bias && count != bias + 1)
    {
        fail("number of inputs: ", count, ", expected ", bias, ", or ", bias + 1,
            " with a bias; they are x, weight, skip, gamma, beta, ", inEightBits() ? "weight_scales, " : "",
            mFields.output.hasFactors() ? "output_factors, " : "", "bias");
    }
}

void LinearSkipLayerNormPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    DataType const skip = inputs[kSKIP];
    checkLinearTypes(inputs[kX], inputs[kWEIGHT], mFields.xScale);
    if (!inEightBits() && skip != inputs[kX])
    {
        fail("skip is ", describe(skip), "; expected the type of x, ", describe(inputs[kX]));
    }
    if (!isLinearType(skip))
    {
        fail("skip is ", describe(skip), "; expected fp16 or bf16");
    }
    std::vector<Weight> weights{{"gamma", inputs[kGAMMA], {}}, {"beta", inputs[kBETA], {}}};
    if (inputs.size() > biasIndex())
    {
        weights.push_back({"bias", inputs[biasIndex()], {}});
    }
    checkWeightTypes(weights, {skip, DataType::kFLOAT});
    if (inEightBits())
    {
        checkFp32BesideEightBits("weight_scales", inputs[kWEIGHT_SCALES], inputs[kX]);
    }
    if (mFields.output.hasFactors())
    {
        checkFactorsType(inputs[factorsIndex()]);
    }
}

void LinearSkipLayerNormPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    Dims const& weight = inputs[kWEIGHT];
    checkLinearShapes(inputs[kX], weight);
    Dims expected = inputs[kX];
    expected.d[expected.nbDims - 1] = weight.d[0];
    if (!mayBeEqual(inputs[kSKIP], expected))
    {
        fail("skip has the shape ", describe(inputs[kSKIP]), " for x of ", describe(inputs[kX]),
            " and a weight of ", describe(weight), "; expected ", describe(expected));
    }
    checkChannels("gamma", inputs[kGAMMA], weight);
    checkChannels("beta", inputs[kBETA], weight);
    if (inEightBits())
    {
        checkChannels("weight_scales", inputs[kWEIGHT_SCALES], weight);
    }
    if (mFields.output.hasFactors())
    {
        checkChannels("output_factors", inputs[factorsIndex()], weight);
    }
    if (inputs.size() > biasIndex())
    {
        checkChannels("bias", inputs[biasIndex()], weight);
    }
}

void LinearSkipLayerNormPlugin::checkKernel(TypesAndShapes const& inputs) const
{
    checkLinearKernel(inputs.types[kX]);
}

std::vector<DataType> LinearSkipLayerNormPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    return mFields.output.types(inputs[kSKIP]);
}

DimsExprs LinearSkipLayerNormPlugin::outputShape(
    DimsExprs const* inputs, nvinfer1::IExprBuilder& /*exprBuilder*/) const
{
    return inputs[kSKIP];
}

bool LinearSkipLayerNormPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    size_t const position = inputs.size() - 1;
    bool const isScales = inEightBits() && position == kWEIGHT_SCALES;
    if (isScales || (mFields.output.hasFactors() && position == factorsIndex()))
    {
        return type == DataType::kFLOAT;
    }
    switch (position)
    {
    case kX:
        return inEightBits() ? isQuantized(type) : isLinearType(type);
    case kWEIGHT:
        return type == inputs[kX];
    case kSKIP:
        return inEightBits() ? isLinearType(type) : type == inputs[kX];
    case kGAMMA:
        return type == DataType::kFLOAT || type == inputs[kSKIP];
    default: // beta and bias
        return type == inputs[kGAMMA];
    }
}

// For x weight^T, where that is a kernel of its own.
size_t LinearSkipLayerNormPlugin::workspaceSize(TypesAndShapes const& inputs) const
{
    constexpr size_t kBYTES = 2; // of an element of y
    return static_cast<size_t>(countRows(inputs.shapes[kX]) * inputs.shapes[kWEIGHT].d[0]) * kBYTES;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t LinearSkipLayerNormPlugin::launch(EnqueueCall const& call) const
{
    Dims const& weight = call.inputDesc[kWEIGHT].dims;
    LinearSkipLayerNormArguments arguments{};
    arguments.x = call.inputs[kX];
    arguments.weight = call.inputs[kWEIGHT];
    arguments.skip = call.inputs[kSKIP];
    arguments.gamma = call.inputs[kGAMMA];
    arguments.beta = call.inputs[kBETA];
    arguments.bias = static_cast<size_t>(call.nbInputs) > biasIndex() ? call.inputs[biasIndex()] : nullptr;
    arguments.y = call.outputs[0];
    arguments.quantized = mFields.output.hasQuantized() ? call.outputs[1] : nullptr;
    arguments.workspace = call.workspace;
    arguments.rows = countRows(call.inputDesc[kX].dims);
    arguments.in = static_cast<int32_t>(weight.d[1]);
    arguments.out = static_cast<int32_t>(weight.d[0]);
    arguments.epsilon = mFields.epsilon;
    arguments.type = elementType(call.inputDesc[kX].type);
    arguments.outputType = elementType(call.inputDesc[kSKIP].type);
    arguments.normType = elementType(call.inputDesc[kGAMMA].type);
    arguments.constantWeights = mFields.constantWeights == 1;
    if (inEightBits())
    {
        arguments.weightScales = static_cast<float const*>(call.inputs[kWEIGHT_SCALES]);
        arguments.xScale = mFields.xScale;
    }
    if (mFields.output.hasQuantized())
    {
        arguments.quantizedType = elementType(mFields.output.quantized());
        arguments.outputScale = mFields.output.outputScale;
    }
    if (mFields.output.hasFactors())
    {
        arguments.outputFactors = static_cast<float const*>(call.inputs[factorsIndex()]);
    }
    if (arguments.workspace == nullptr && arguments.rows > 0)
    {
        fail("there is no workspace; expected as many bytes as getWorkspaceSize says");
    }
    return launchLinearSkipLayerNorm(arguments, call.stream);
}

std::vector<PluginField> LinearSkipLayerNormPlugin::fieldsToSerialize() const
{
    std::vector<PluginField> fields{fieldOf("epsilon", mFields.epsilon), fieldOf("x_scale", mFields.xScale)};
    mFields.output.serialize(fields);
    fields.push_back(fieldOf("constant_weights", mFields.constantWeights));
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator linearSkipLayerNormCreator()
{
    std::vector<PluginField> names = OutputFields::names();
    names.insert(names.end(), {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"x_scale", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"constant_weights", nullptr, PluginFieldType::kINT32, 1}});
    return {kNAME, kVERSION, std::move(names), [](FieldReader const& fields) -> Plugin*
        {
            LinearSkipLayerNormFields read;
            read.epsilon = fields.getFloat("epsilon");
            read.xScale = fields.has("x_scale") ? fields.getFloat("x_scale") : 0.0F;
            read.output = OutputFields::read(fields);
            read.constantWeights = fields.getFlag("constant_weights");
            return new LinearSkipLayerNormPlugin(std::move(read));
        }};
}

} // namespace bert
