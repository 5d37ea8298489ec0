#include "skip_layer_norm/skip_layer_norm_plugin.h"

#include "common/checks.h"
#include "common/fields.h"

#include <algorithm>
#include <utility>

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

constexpr char const* kNAME = "SkipLayerNorm";
constexpr char const* kVERSION = "1";
constexpr char const* kINPUT_NAMES[] = {"x", "skip", "gamma", "beta", "bias"};
constexpr int32_t kMOST_INPUTS = 5; // with the bias
constexpr int32_t kX = 0;
constexpr int32_t kSKIP = 1;
constexpr int32_t kGAMMA = 2;
constexpr int32_t kBETA = 3;
constexpr int32_t kBIAS = 4;

// Without a floating tensor there is no floating type. The kernel is compiled for one all the same.
constexpr DataType kANY_FLOATING_TYPE = DataType::kHALF;

void checkScale(char const* name, float scale)
{
    if (!(scale == 0.0F || (scale >= kSMALLEST_SCALE && scale <= kLARGEST_SCALE)))
    {
        fail("field ", name, " is ", scale, "; expected ", kSMALLEST_SCALE, " to ", kLARGEST_SCALE,
            ", or 0 for no scale");
    }
}

// A scale belongs to an int8 tensor, and an int8 tensor has a scale.
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

DataType typeNamed(std::string const& name)
{
    for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
    {
        if (describe(type) == name)
        {
            return type;
        }
    }
    fail("field output_type is \"", name, "\"; expected fp32, fp16 or bf16");
}

void checkNumberOfInputs(int32_t count)
{
    if (count != kMOST_INPUTS && count != kMOST_INPUTS - 1)
    {
        fail("number of inputs: ", count, ", expected 4, or 5 with a bias");
    }
}

// A dimension of -1 is not known yet and is checked again when it is.
void checkShapes(std::vector<Dims> const& inputs)
{
    int64_t const hidden = checkedHidden("x", inputs[kX]);
    if (!mayBeEqual(inputs[kX], inputs[kSKIP]))
    {
        fail("skip has the shape ", describe(inputs[kSKIP]), "; expected that of x, ", describe(inputs[kX]));
    }
    std::vector<Weight> weights;
    for (size_t i = kGAMMA; i < inputs.size(); ++i)
    {
        weights.push_back({kINPUT_NAMES[i], {}, inputs[i]});
    }
    checkWeightShapes(weights, hidden);
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------
// Plugin
// ---------------------------------------------------------------------------------------------------------------

SkipLayerNormPlugin::SkipLayerNormPlugin(SkipLayerNormFields fields)
    : Plugin(kNAME, kVERSION)
    , mFields(std::move(fields))
{
    checkEpsilon(mFields.epsilon);
    checkScale("x_scale", mFields.xScale);
    checkScale("skip_scale", mFields.skipScale);
    checkScale("output_scale", mFields.outputScale);
    if (!mFields.outputType.empty())
    {
        mNamedType = typeNamed(mFields.outputType);
    }
    if (mFields.outputs != "y" && mFields.outputs != "both")
    {
        fail("field outputs is \"", mFields.outputs, "\"; expected y or both");
    }
    if (mFields.outputs == "both" && mFields.outputScale == 0.0F)
    {
        fail("field outputs is \"both\"; give the scale of the int8 output in the field output_scale");
    }
}

nvinfer1::IPluginV3* SkipLayerNormPlugin::clone() noexcept
{
    return run<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new SkipLayerNormPlugin(*this); });
}

bool SkipLayerNormPlugin::hasFloatingOutput() const
{
    return mFields.outputs == "both" || mFields.outputScale == 0.0F;
}

// The one floating type of x, skip and y; none if all three are int8 and output_type names none.
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
    if (!mNamedType && hasFloatingOutput())
    {
        fail("x and skip are int8; name the type of y in the field output_type: fp32, fp16 or bf16");
    }
    return mNamedType;
}

std::vector<DataType> SkipLayerNormPlugin::outputTypes(std::optional<DataType> floating) const
{
    std::vector<DataType> types;
    if (hasFloatingOutput())
    {
        types.push_back(*floating);
    }
    if (mFields.outputScale > 0.0F)
    {
        types.push_back(DataType::kINT8);
    }
    return types;
}

void SkipLayerNormPlugin::checkTypes(DataType const* types, int32_t count) const
{
    checkNumberOfInputs(count);
    auto const floating = floatingType(types[kX], types[kSKIP]);
    std::vector<Weight> weights;
    for (int32_t i = kGAMMA; i < count; ++i)
    {
        weights.push_back({kINPUT_NAMES[i], types[i], {}});
    }
    if (floating.value_or(DataType::kFLOAT) == DataType::kFLOAT)
    {
        checkWeightTypes(weights, {DataType::kFLOAT});
    }
    else
    {
        checkWeightTypes(weights, {*floating, DataType::kFLOAT});
    }
}

int32_t SkipLayerNormPlugin::getNbOutputs() const noexcept
{
    return mFields.outputs == "both" ? 2 : 1;
}

int32_t SkipLayerNormPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            checkTypes(inputTypes, nbInputs);
            auto const types = this->outputTypes(floatingType(inputTypes[kX], inputTypes[kSKIP]));
            std::copy(types.begin(), types.end(), outputTypes);
        });
}

int32_t SkipLayerNormPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& /*exprBuilder*/) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkNumberOfInputs(nbInputs);
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            std::vector<Dims> shapes(static_cast<size_t>(nbInputs));
            std::transform(inputs, inputs + nbInputs, shapes.begin(), knownDims);
            checkShapes(shapes);
            std::fill(outputs, outputs + nbOutputs, inputs[kX]);
        });
}

// TensorRT asks for one tensor after another, inputs first; only those up to `pos` are filled in.
bool SkipLayerNormPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return run<bool>("supportsFormatCombination", false,
        [&]
        {
            checkNumberOfInputs(nbInputs);
            checkCount("number of outputs", nbOutputs, getNbOutputs());
            DataType const type = inOut[pos].desc.type;
            if (inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR)
            {
                return false;
            }
            bool const mayBeFloating = isFloating(type) && (!mNamedType || type == *mNamedType);
            if (pos == kX)
            {
                return mFields.xScale > 0.0F ? type == DataType::kINT8 : mayBeFloating;
            }
            DataType const x = inOut[kX].desc.type;
            if (pos == kSKIP)
            {
                return mFields.skipScale > 0.0F ? type == DataType::kINT8
                                                : mayBeFloating && (!isFloating(x) || type == x);
            }
            auto const floating = floatingType(x, inOut[kSKIP].desc.type);
            if (pos == kGAMMA)
            {
                return type == DataType::kFLOAT || type == floating;
            }
            return pos < nbInputs ? type == inOut[kGAMMA].desc.type
                                  : type == outputTypes(floating)[static_cast<size_t>(pos - nbInputs)];
        });
}

int32_t SkipLayerNormPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept
{
    return check("configurePlugin",
        [&]
        {
            TypesAndShapes const inputs{in, nbInputs};
            checkTypes(inputs.types.data(), nbInputs);
            checkShapes(inputs.shapes);
        });
}

void SkipLayerNormPlugin::checkInputs(PluginTensorDesc const* in, int32_t nbInputs) const
{
    TypesAndShapes const inputs{in, nbInputs};
    checkTypes(inputs.types.data(), nbInputs);
    checkShapes(inputs.shapes);
}

cudaError_t SkipLayerNormPlugin::launch(PluginTensorDesc const* inputDesc, int32_t nbInputs,
    PluginTensorDesc const* /*outputDesc*/, void const* const* inputs, void* const* outputs,
    void* /*workspace*/, cudaStream_t stream) const
{
    Dims const& shape = inputDesc[kX].dims;
    auto const floating = floatingType(inputDesc[kX].type, inputDesc[kSKIP].type);
    SkipLayerNormArguments arguments{};
    arguments.x = inputs[kX];
    arguments.skip = inputs[kSKIP];
    arguments.gamma = inputs[kGAMMA];
    arguments.beta = inputs[kBETA];
    arguments.bias = nbInputs == kMOST_INPUTS ? inputs[kBIAS] : nullptr;
    arguments.y = hasFloatingOutput() ? outputs[0] : nullptr;
    arguments.quantized
        = mFields.outputScale > 0.0F ? static_cast<int8_t*>(outputs[getNbOutputs() - 1]) : nullptr;
    arguments.rows = countRows(shape);
    arguments.hidden = static_cast<int32_t>(shape.d[shape.nbDims - 1]);
    arguments.epsilon = mFields.epsilon;
    arguments.xScale = mFields.xScale;
    arguments.skipScale = mFields.skipScale;
    arguments.outputScale = mFields.outputScale;
    arguments.type = elementType(floating.value_or(kANY_FLOATING_TYPE));
    arguments.weightType = elementType(inputDesc[kGAMMA].type);
    arguments.constantWeights = mFields.constantWeights == 1;
    return launchSkipLayerNorm(arguments, stream);
}

std::vector<PluginField> SkipLayerNormPlugin::fieldsToSerialize() const
{
    auto const text = [](char const* name, std::string const& value)
    { return PluginField{name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())}; };
    std::vector<PluginField> fields{{"epsilon", &mFields.epsilon, PluginFieldType::kFLOAT32, 1},
        {"x_scale", &mFields.xScale, PluginFieldType::kFLOAT32, 1},
        {"skip_scale", &mFields.skipScale, PluginFieldType::kFLOAT32, 1},
        {"output_scale", &mFields.outputScale, PluginFieldType::kFLOAT32, 1},
        text("outputs", mFields.outputs),
        {"constant_weights", &mFields.constantWeights, PluginFieldType::kINT32, 1}};
    if (mNamedType)
    {
        fields.push_back(text("output_type", mFields.outputType));
    }
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

SkipLayerNormCreator::SkipLayerNormCreator()
    : PluginCreator(kNAME, kVERSION,
          {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1},
              {"x_scale", nullptr, PluginFieldType::kFLOAT32, 1},
              {"skip_scale", nullptr, PluginFieldType::kFLOAT32, 1},
              {"output_scale", nullptr, PluginFieldType::kFLOAT32, 1},
              {"output_type", nullptr, PluginFieldType::kCHAR, 1},
              {"outputs", nullptr, PluginFieldType::kCHAR, 1},
              {"constant_weights", nullptr, PluginFieldType::kINT32, 1}})
{
}

nvinfer1::IPluginV3* SkipLayerNormCreator::create(nvinfer1::PluginFieldCollection const* fields) const
{
    FieldReader const reader{fields, knownFields()};
    SkipLayerNormFields read;
    read.epsilon = reader.getFloat("epsilon");
    for (auto const& [name, value] : {std::pair{"x_scale", &read.xScale}, {"skip_scale", &read.skipScale},
             {"output_scale", &read.outputScale}})
    {
        *value = reader.has(name) ? reader.getFloat(name) : 0.0F;
    }
    read.outputType = reader.has("output_type") ? reader.getString("output_type") : "";
    read.outputs = reader.has("outputs") ? reader.getString("outputs") : "y";
    read.constantWeights = reader.getFlag("constant_weights");
    return new SkipLayerNormPlugin(std::move(read));
}

} // namespace bert
