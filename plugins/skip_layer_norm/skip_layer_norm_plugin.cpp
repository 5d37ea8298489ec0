#include "skip_layer_norm/skip_layer_norm_plugin.h"

#include <utility>

namespace bert
{

namespace
{

constexpr char const* kNAME = "SkipLayerNorm";
constexpr char const* kVERSION = "1";
constexpr int32_t kX = 0;
constexpr int32_t kSKIP = 1;
constexpr int32_t kGAMMA = 2;
constexpr int32_t kBETA = 3;
constexpr int32_t kFACTORS = 4; // with output_factors; the bias comes last

// If all tensors are int8, there is no floating type, but the kernel is a template with one.
constexpr DataType kANY_FLOATING_TYPE = DataType::kHALF;

// A tensor has a scale if and only if it is int8.
void checkInputType(char const* name, DataType type, float scale)
{
    if (!isFloating(type) && type != DataType::kINT8)
    {
        fail(name, " is ", describe(type), "; expected fp32, fp16, bf16 or int8");
    }
    if (type == DataType::kINT8 && scale == 0.0F)
    {
        fail(name, " is int8; give its scale in the field ", name, "_scale");
    }
    if (type != DataType::kINT8 && scale > 0.0F)
    {
        fail(name, " is ", describe(type), ", but the field ", name, "_scale is ", scale,
            "; expected int8, or no scale");
    }
}

} // namespace

SkipLayerNormPlugin::SkipLayerNormPlugin(SkipLayerNormFields fields)
    : Plugin(kNAME, kVERSION)
    , mFields(std::move(fields))
{
    checkEpsilon(mFields.epsilon);
    checkScale("x_scale", mFields.xScale);
    checkScale("skip_scale", mFields.skipScale);
    mFields.output.check();
    if (!mFields.outputType.empty())
    {
        mNamedType = floatingTypeNamed(mFields.outputType);
    }
}

// Of the input bias, where there is one.
size_t SkipLayerNormPlugin::biasIndex() const
{
    return mFields.output.hasFactors() ? kFACTORS + 1 : kFACTORS;
}

// The floating type that x, skip and y share; none if all three are int8 and output_type is not given.
std::optional<DataType> SkipLayerNormPlugin::floatingType(DataType x, DataType skip) const
{
    checkInputType("x", x, mFields.xScale);
    checkInputType("skip", skip, mFields.skipScale);
    if (isFloating(x) && isFloating(skip) && x != skip)
    {
        fail("x is ", describe(x), " and skip is ", describe(skip), "; expected both of one type, or int8");
    }
    if (isFloating(x) || isFloating(skip))
    {
        DataType const found = isFloating(x) ? x : skip;
        if (mNamedType && *mNamedType != found)
        {
            fail("field output_type is ", describe(*mNamedType), ", but ", isFloating(x) ? "x" : "skip",
                " is ", describe(found), "; expected the same type");
        }
        return found;
    }
    if (!mNamedType && mFields.output.hasFloating())
    {
        fail("x and skip are int8; name the type of y in the field output_type: fp32, fp16 or bf16");
    }
    return mNamedType;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* SkipLayerNormPlugin::copy() const
{
    return new SkipLayerNormPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

int32_t SkipLayerNormPlugin::getNbOutputs() const noexcept
{
    return mFields.output.count();
}

void SkipLayerNormPlugin::checkInputCount(int32_t count) const
{
    auto const bias = static_cast<int32_t>(biasIndex());
    if (count != bias && count != bias + 1)
    {
        fail("number of inputs: ", count, ", expected ", bias, ", or ", bias + 1, " with a bias",
            mFields.output.hasFactors() ? "; they are x, skip, gamma, beta, output_factors, bias" : "");
    }
}

void SkipLayerNormPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    auto const floating = floatingType(inputs[kX], inputs[kSKIP]);
    std::vector<Weight> weights{{"gamma", inputs[kGAMMA], {}}, {"beta", inputs[kBETA], {}}};
    if (inputs.size() > biasIndex())
    {
        weights.push_back({"bias", inputs[biasIndex()], {}});
    }
    if (floating.value_or(DataType::kFLOAT) == DataType::kFLOAT)
    {
        checkWeightTypes(weights, {DataType::kFLOAT});
    }
    else
    {
        checkWeightTypes(weights, {*floating, DataType::kFLOAT});
    }
    if (mFields.output.hasFactors())
    {
        checkFactorsType(inputs[kFACTORS]);
    }
}

void SkipLayerNormPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    int64_t const hidden = checkedHidden("x", inputs[kX]);
    if (!mayBeEqual(inputs[kX], inputs[kSKIP]))
    {
        fail("skip has the shape ", describe(inputs[kSKIP]), "; expected that of x, ", describe(inputs[kX]));
    }
    std::vector<Weight> weights{{"gamma", {}, inputs[kGAMMA]}, {"beta", {}, inputs[kBETA]}};
    if (mFields.output.hasFactors())
    {
        weights.push_back({"output_factors", {}, inputs[kFACTORS]});
    }
    if (inputs.size() > biasIndex())
    {
        weights.push_back({"bias", {}, inputs[biasIndex()]});
    }
    checkWeightShapes(weights, hidden);
}

std::vector<DataType> SkipLayerNormPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    auto const floating = floatingType(inputs[kX], inputs[kSKIP]);
    return mFields.output.types(floating.value_or(kANY_FLOATING_TYPE));
}

bool SkipLayerNormPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    bool const mayBeFloating = isFloating(type) && (!mNamedType || type == *mNamedType);
    size_t const position = inputs.size() - 1;
    if (mFields.output.hasFactors() && position == kFACTORS)
    {
        return type == DataType::kFLOAT;
    }
    switch (position)
    {
    case kX:
        return mFields.xScale > 0.0F ? type == DataType::kINT8 : mayBeFloating;
    case kSKIP:
        return mFields.skipScale > 0.0F ? type == DataType::kINT8
                                        : mayBeFloating && (!isFloating(inputs[kX]) || type == inputs[kX]);
    case kGAMMA:
        return type == DataType::kFLOAT || type == floatingType(inputs[kX], inputs[kSKIP]);
    default: // beta and bias
        return type == inputs[kGAMMA];
    }
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t SkipLayerNormPlugin::launch(EnqueueCall const& call) const
{
    Dims const& shape = call.inputDesc[kX].dims;
    auto const floating = floatingType(call.inputDesc[kX].type, call.inputDesc[kSKIP].type);
    SkipLayerNormArguments arguments{};
    arguments.x = call.inputs[kX];
    arguments.skip = call.inputs[kSKIP];
    arguments.gamma = call.inputs[kGAMMA];
    arguments.beta = call.inputs[kBETA];
    arguments.bias = static_cast<size_t>(call.nbInputs) > biasIndex() ? call.inputs[biasIndex()] : nullptr;
    arguments.y = mFields.output.hasFloating() ? call.outputs[0] : nullptr;
    arguments.quantized = mFields.output.hasQuantized() ? call.outputs[getNbOutputs() - 1] : nullptr;
    arguments.quantizedType = elementType(mFields.output.quantized());
    arguments.rows = countRows(shape);
    arguments.hidden = static_cast<int32_t>(shape.d[shape.nbDims - 1]);
    arguments.epsilon = mFields.epsilon;
    arguments.xScale = mFields.xScale;
    arguments.skipScale = mFields.skipScale;
    arguments.outputScale = mFields.output.outputScale;
    arguments.type = elementType(floating.value_or(kANY_FLOATING_TYPE));
    arguments.weightType = elementType(call.inputDesc[kGAMMA].type);
    arguments.constantWeights = mFields.constantWeights == 1;
    arguments.outputFactors
        = mFields.output.hasFactors() ? static_cast<float const*>(call.inputs[kFACTORS]) : nullptr;
    return launchSkipLayerNorm(arguments, call.stream);
}

std::vector<PluginField> SkipLayerNormPlugin::fieldsToSerialize() const
{
    std::vector<PluginField> fields{fieldOf("epsilon", mFields.epsilon), fieldOf("x_scale", mFields.xScale),
        fieldOf("skip_scale", mFields.skipScale)};
    mFields.output.serialize(fields);
    fields.push_back(fieldOf("constant_weights", mFields.constantWeights));
    if (mNamedType)
    {
        fields.push_back(fieldOf("output_type", mFields.outputType));
    }
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator skipLayerNormCreator()
{
    std::vector<PluginField> names = OutputFields::names();
    names.insert(names.end(), {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"x_scale", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"skip_scale", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"output_type", nullptr, PluginFieldType::kCHAR, 1},
                                  {"constant_weights", nullptr, PluginFieldType::kINT32, 1}});
    return {kNAME, kVERSION, std::move(names), [](FieldReader const& fields) -> Plugin*
        {
            auto const scale
                = [&](char const* name) { return fields.has(name) ? fields.getFloat(name) : 0.0F; };
            SkipLayerNormFields read;
            read.epsilon = fields.getFloat("epsilon");
            read.xScale = scale("x_scale");
            read.skipScale = scale("skip_scale");
            read.output = OutputFields::read(fields);
            read.outputType = fields.has("output_type") ? fields.getString("output_type") : "";
            read.constantWeights = fields.getFlag("constant_weights");
            return new SkipLayerNormPlugin(std::move(read));
        }};
}

} // namespace bert
