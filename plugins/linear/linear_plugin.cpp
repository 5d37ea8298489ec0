#include "linear/linear_plugin.h"

#include "linear/linear_inputs.h"

#include <utility>

namespace bert
{

namespace
{

constexpr char const* kNAME = "Linear";
constexpr char const* kVERSION = "1";
constexpr int32_t kX = 0;
constexpr int32_t kWEIGHT = 1;
constexpr int32_t kWEIGHT_SCALES = 2;  // in 8 bits
constexpr int32_t kOUTPUT_FACTORS = 3; // with the field of that name

} // namespace

LinearPlugin::LinearPlugin(LinearFields fields)
    : Plugin(kNAME, kVERSION)
    , mFields(std::move(fields))
{
    if (mFields.activation != "none" && mFields.activation != "gelu")
    {
        fail("field activation is \"", mFields.activation, "\"; expected none or gelu");
    }
    checkScale("x_scale", mFields.xScale);
    checkScale("output_scale", mFields.outputScale);
    std::string const& type = mFields.outputType;
    if (!inEightBits())
    {
        if (mFields.outputFactors == 1)
        {
            fail("field output_factors is 1, but x_scale is not given; only y in 8 bits has factors");
        }
        if (mFields.outputScale > 0.0F || !type.empty())
        {
            fail("field ", type.empty() ? "output_scale" : "output_type",
                " is given, but not x_scale; expected both for x of int8 or fp8, or neither: then y has the "
                "type "
                "of x");
        }
        return;
    }
    if (type.empty())
    {
        fail("field x_scale is ", mFields.xScale,
            ", so x has 8 bits; name the type of y in the field output_type: fp16, bf16, or the type of x");
    }
    DataType const named
        = outputTypeNamed(type, {DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kFP8});
    if (isQuantized(named) && mFields.outputScale == 0.0F)
    {
        fail("field output_type is ", type, "; give the scale of y in the field output_scale");
    }
    if (!isQuantized(named) && mFields.outputScale > 0.0F)
    {
        fail("field output_type is ", type, ", but the field output_scale is ", mFields.outputScale,
            "; expected an output_type of 8 bits, or no scale");
    }
    if (!isQuantized(named) && mFields.outputFactors == 1)
    {
        fail("field output_factors is 1, but output_type is ", type, "; only y in 8 bits has factors");
    }
}

bool LinearPlugin::inEightBits() const
{
    return mFields.xScale > 0.0F;
}

std::vector<char const*> LinearPlugin::inputNames() const
{
    if (!inEightBits())
    {
        return {"x", "weight", "bias"};
    }
    if (mFields.outputFactors == 1)
    {
        return {"x", "weight", "weight_scales", "output_factors", "bias"};
    }
    return {"x", "weight", "weight_scales", "bias"};
}

// In 8 bits any type of x but its own is refused.
DataType LinearPlugin::outputType(DataType x) const
{
    return inEightBits() ? outputTypeNamed(mFields.outputType, {DataType::kHALF, DataType::kBF16, x}) : x;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* LinearPlugin::copy() const
{
    return new LinearPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

void LinearPlugin::checkInputCount(int32_t count) const
{
    auto const most = static_cast<int32_t>(inputNames().size());
    if (count != most && count != most - 1)
    {
        fail("number of inputs: ", count, ", expected ", most - 1, ", or ", most, " with a bias",
            mFields.outputFactors == 1
                ? "; with output_factors they are x, weight, weight_scales, output_factors, bias"
            : inEightBits() ? "; with x_scale they are x, weight, weight_scales, bias"
                            : "");
    }
}

void LinearPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    checkLinearTypes(inputs[kX], inputs[kWEIGHT], mFields.xScale);
    for (size_t i = kWEIGHT + 1; i < inputs.size(); ++i)
    {
        if (inEightBits())
        {
            checkFp32BesideEightBits(inputNames()[i], inputs[i], inputs[kX]);
        }
        else if (inputs[i] != inputs[kX])
        {
            fail(inputNames()[i], " is ", describe(inputs[i]), "; expected the type of x, ",
                describe(inputs[kX]));
        }
    }
    outputType(inputs[kX]);
}

void LinearPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    checkLinearShapes(inputs[kX], inputs[kWEIGHT]);
    for (size_t i = kWEIGHT + 1; i < inputs.size(); ++i)
    {
        checkChannels(inputNames()[i], inputs[i], inputs[kWEIGHT]);
    }
}

void LinearPlugin::checkKernel(TypesAndShapes const& inputs) const
{
    checkLinearKernel(inputs.types[kX]);
}

std::vector<DataType> LinearPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    return {outputType(inputs[kX])};
}

DimsExprs LinearPlugin::outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& /*exprBuilder*/) const
{
    DimsExprs shape = inputs[kX];
    shape.d[shape.nbDims - 1] = inputs[kWEIGHT].d[0];
    return shape;
}

bool LinearPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    if (!inEightBits())
    {
        return isLinearType(type) && type == inputs[kX];
    }
    bool const isMatrix = inputs.size() <= kWEIGHT_SCALES;
    return isMatrix ? isQuantized(type) && type == inputs[kX] : type == DataType::kFLOAT;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t LinearPlugin::launch(EnqueueCall const& call) const
{
    Dims const& weight = call.inputDesc[kWEIGHT].dims;
    LinearArguments arguments{};
    arguments.x = call.inputs[kX];
    arguments.weight = call.inputs[kWEIGHT];
    auto const biasIndex = static_cast<int32_t>(inputNames().size()) - 1;
    arguments.bias = call.nbInputs > biasIndex ? call.inputs[biasIndex] : nullptr;
    arguments.y = call.outputs[0];
    arguments.rows = countRows(call.inputDesc[kX].dims);
    arguments.in = static_cast<int32_t>(weight.d[1]);
    arguments.out = static_cast<int32_t>(weight.d[0]);
    arguments.gelu = mFields.activation == "gelu";
    arguments.constantWeight = mFields.constantWeight == 1;
    arguments.type = elementType(call.inputDesc[kX].type);
    if (inEightBits())
    {
        arguments.weightScales = static_cast<float const*>(call.inputs[kWEIGHT_SCALES]);
        arguments.xScale = mFields.xScale;
        arguments.outputType = elementType(call.outputDesc[0].type);
        arguments.outputScale = mFields.outputScale > 0.0F ? mFields.outputScale : 1.0F;
        arguments.outputFactors
            = mFields.outputFactors == 1 ? static_cast<float const*>(call.inputs[kOUTPUT_FACTORS]) : nullptr;
    }
    return launchLinear(arguments, call.stream);
}

std::vector<PluginField> LinearPlugin::fieldsToSerialize() const
{
    std::vector<PluginField> fields{fieldOf("activation", mFields.activation),
        fieldOf("constant_weight", mFields.constantWeight), fieldOf("x_scale", mFields.xScale),
        fieldOf("output_scale", mFields.outputScale)};
    if (!mFields.outputType.empty())
    {
        fields.push_back(fieldOf("output_type", mFields.outputType));
    }
    if (mFields.outputFactors == 1)
    {
        fields.push_back(fieldOf("output_factors", mFields.outputFactors));
    }
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator linearCreator()
{
    return {kNAME, kVERSION,
        {{"activation", nullptr, PluginFieldType::kCHAR, 1},
            {"constant_weight", nullptr, PluginFieldType::kINT32, 1},
            {"x_scale", nullptr, PluginFieldType::kFLOAT32, 1},
            {"output_scale", nullptr, PluginFieldType::kFLOAT32, 1},
            {"output_type", nullptr, PluginFieldType::kCHAR, 1},
            {"output_factors", nullptr, PluginFieldType::kINT32, 1}},
        [](FieldReader const& fields) -> Plugin*
        {
            LinearFields read;
            read.activation = fields.has("activation") ? fields.getString("activation") : read.activation;
            read.constantWeight = fields.getFlag("constant_weight");
            read.xScale = fields.has("x_scale") ? fields.getFloat("x_scale") : 0.0F;
            read.outputScale = fields.has("output_scale") ? fields.getFloat("output_scale") : 0.0F;
            read.outputType = fields.has("output_type") ? fields.getString("output_type") : "";
            read.outputFactors = fields.getFlag("output_factors");
            return new LinearPlugin(std::move(read));
        }};
}

} // namespace bert
