#include "emb_layer_norm/emb_layer_norm_plugin.h"

#include "common/checks.h"
#include "common/fields.h"

#include <algorithm>

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

constexpr char const* kNAME = "EmbLayerNorm";
constexpr char const* kVERSION = "1";
constexpr char const* kINPUT_NAMES[] = {"input_ids", "token_type_ids", "position_ids", "the word table",
    "the position table", "the type table", "gamma", "beta"};
constexpr int32_t kINPUTS = 8;
constexpr int32_t kIDS = 0; // the first of three
constexpr int32_t kINPUT_IDS = 0;
constexpr int32_t kTOKEN_TYPE_IDS = 1;
constexpr int32_t kPOSITION_IDS = 2;
constexpr int32_t kTABLES = 3; // the first of three
constexpr int32_t kWORDS = 3;
constexpr int32_t kPOSITIONS = 4;
constexpr int32_t kTYPES = 5;
constexpr int32_t kGAMMA = 6;
constexpr int32_t kBETA = 7;

void checkTypes(DataType const* types)
{
    for (int32_t i = kIDS; i < kTABLES; ++i)
    {
        if (types[i] != DataType::kINT32)
        {
            fail(kINPUT_NAMES[i], " is ", describe(types[i]), "; expected int32");
        }
    }
    DataType const type = types[kWORDS];
    if (!isFloating(type))
    {
        fail(kINPUT_NAMES[kWORDS], " is ", describe(type), "; expected fp32, fp16 or bf16");
    }
    for (int32_t i = kTABLES; i < kGAMMA; ++i)
    {
        if (types[i] != type)
        {
            fail(kINPUT_NAMES[i], " is ", describe(types[i]), "; expected the type of the word table, ",
                describe(type));
        }
    }
    std::vector<Weight> const weights{{"gamma", types[kGAMMA], {}}, {"beta", types[kBETA], {}}};
    if (type == DataType::kFLOAT)
    {
        checkWeightTypes(weights, {DataType::kFLOAT});
    }
    else
    {
        checkWeightTypes(weights, {type, DataType::kFLOAT});
    }
}

// A dimension of -1 is not known yet and is checked again when it is.
void checkShapes(std::vector<Dims> const& inputs)
{
    for (int32_t i = kIDS; i < kTABLES; ++i)
    {
        if (!mayBeEqual(inputs[i], inputs[kINPUT_IDS]))
        {
            fail(kINPUT_NAMES[i], " has the shape ", describe(inputs[i]), "; expected that of input_ids, ",
                describe(inputs[kINPUT_IDS]));
        }
    }
    if (inputs[kINPUT_IDS].nbDims >= Dims::MAX_DIMS)
    {
        fail("input_ids has ", inputs[kINPUT_IDS].nbDims, " dimensions; expected at most ",
            Dims::MAX_DIMS - 1);
    }
    int64_t const hidden = checkedHidden(kINPUT_NAMES[kWORDS], inputs[kWORDS]);
    for (int32_t i = kTABLES; i < kGAMMA; ++i)
    {
        Dims const& table = inputs[i];
        bool const fits
            = table.nbDims == 2 && table.d[0] != 0 && (table.d[1] == hidden || table.d[1] < 0 || hidden < 0);
        if (!fits)
        {
            fail(kINPUT_NAMES[i], " has the shape ", describe(table), "; expected [at least 1, ",
                hidden < 0 ? "H" : std::to_string(hidden), "]");
        }
    }
    checkWeightShapes({{"gamma", {}, inputs[kGAMMA]}, {"beta", {}, inputs[kBETA]}}, hidden);
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------
// Plugin
// ---------------------------------------------------------------------------------------------------------------

EmbLayerNormPlugin::EmbLayerNormPlugin(float epsilon)
    : Plugin(kNAME, kVERSION)
    , mEpsilon(epsilon)
{
    checkEpsilon(epsilon);
}

nvinfer1::IPluginV3* EmbLayerNormPlugin::clone() noexcept
{
    return run<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new EmbLayerNormPlugin(*this); });
}

int32_t EmbLayerNormPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            checkCount("number of outputs", nbOutputs, 1);
            checkTypes(inputTypes);
            outputTypes[0] = inputTypes[kWORDS];
        });
}

int32_t EmbLayerNormPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& /*exprBuilder*/) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            checkCount("number of outputs", nbOutputs, 1);
            std::vector<Dims> shapes(kINPUTS);
            std::transform(inputs, inputs + kINPUTS, shapes.begin(), knownDims);
            checkShapes(shapes);
            outputs[0] = inputs[kINPUT_IDS];
            outputs[0].d[outputs[0].nbDims++] = inputs[kWORDS].d[1];
        });
}

// TensorRT asks for one tensor after another, inputs first; only those up to `pos` are filled in.
bool EmbLayerNormPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    if (nbInputs != kINPUTS || nbOutputs != 1 || inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    DataType const type = inOut[pos].desc.type;
    if (pos < kTABLES)
    {
        return type == DataType::kINT32;
    }
    DataType const tables = inOut[kTABLES].desc.type;
    switch (pos)
    {
    case kWORDS:
        return isFloating(type);
    case kGAMMA:
        return type == tables || type == DataType::kFLOAT;
    case kBETA:
        return type == inOut[kGAMMA].desc.type;
    default: // the other tables, and the output
        return type == tables;
    }
}

int32_t EmbLayerNormPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept
{
    return check("configurePlugin",
        [&]
        {
            checkCount("number of inputs", nbInputs, kINPUTS);
            TypesAndShapes const inputs{in, kINPUTS};
            checkTypes(inputs.types.data());
            checkShapes(inputs.shapes);
        });
}

void EmbLayerNormPlugin::checkInputs(PluginTensorDesc const* in, int32_t nbInputs) const
{
    checkCount("number of inputs", nbInputs, kINPUTS);
    TypesAndShapes const inputs{in, kINPUTS};
    checkTypes(inputs.types.data());
    checkShapes(inputs.shapes);
}

cudaError_t EmbLayerNormPlugin::launch(PluginTensorDesc const* inputDesc, int32_t /*nbInputs*/,
    PluginTensorDesc const* outputDesc, void const* const* inputs, void* const* outputs, void* /*workspace*/,
    cudaStream_t stream) const
{
    auto const lookup = [&](int32_t ids, int32_t table)
    {
        return EmbeddingLookup{
            static_cast<int32_t const*>(inputs[ids]), inputs[table], inputDesc[table].dims.d[0]};
    };
    EmbLayerNormArguments const arguments{
        {lookup(kINPUT_IDS, kWORDS), lookup(kTOKEN_TYPE_IDS, kTYPES), lookup(kPOSITION_IDS, kPOSITIONS)},
        inputs[kGAMMA], inputs[kBETA], outputs[0], countRows(outputDesc[0].dims),
        static_cast<int32_t>(inputDesc[kWORDS].dims.d[1]), mEpsilon, elementType(inputDesc[kWORDS].type),
        elementType(inputDesc[kGAMMA].type)};
    return launchEmbLayerNorm(arguments, stream);
}

std::vector<PluginField> EmbLayerNormPlugin::fieldsToSerialize() const
{
    return {{"epsilon", &mEpsilon, PluginFieldType::kFLOAT32, 1}};
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

EmbLayerNormCreator::EmbLayerNormCreator()
    : PluginCreator(kNAME, kVERSION, {{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1}})
{
}

nvinfer1::IPluginV3* EmbLayerNormCreator::create(nvinfer1::PluginFieldCollection const* fields) const
{
    FieldReader const reader{fields, knownFields()};
    return new EmbLayerNormPlugin(reader.getFloat("epsilon"));
}

} // namespace bert
