#include "emb_layer_norm/emb_layer_norm_plugin.h"

#include <utility>

namespace bert
{

namespace
{

constexpr char const* kNAME = "EmbLayerNorm";
constexpr char const* kVERSION = "1";
constexpr char const* kINPUT_NAMES[] = {"input_ids", "token_type_ids", "position_ids", "the word table",
    "the position table", "the type table", "gamma", "beta"};
constexpr int32_t kINPUTS = 8; // without output_factors
constexpr int32_t kIDS = 0;    // the first of three
constexpr int32_t kINPUT_IDS = 0;
constexpr int32_t kTOKEN_TYPE_IDS = 1;
constexpr int32_t kPOSITION_IDS = 2;
constexpr int32_t kTABLES = 3; // the first of three
constexpr int32_t kWORDS = 3;
constexpr int32_t kPOSITIONS = 4;
constexpr int32_t kTYPES = 5;
constexpr int32_t kGAMMA = 6;
constexpr int32_t kBETA = 7;
constexpr int32_t kFACTORS = 8;

} // namespace

EmbLayerNormPlugin::EmbLayerNormPlugin(float epsilon, OutputFields output)
    : Plugin(kNAME, kVERSION)
    , mEpsilon(epsilon)
    , mOutput(std::move(output))
{
    checkEpsilon(epsilon);
    mOutput.check();
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* EmbLayerNormPlugin::copy() const
{
    return new EmbLayerNormPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

int32_t EmbLayerNormPlugin::getNbOutputs() const noexcept
{
    return mOutput.count();
}

void EmbLayerNormPlugin::checkInputCount(int32_t count) const
{
    checkCount("number of inputs", count, kINPUTS + mOutput.outputFactors);
}

void EmbLayerNormPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    for (int32_t i = kIDS; i < kTABLES; ++i)
    {
        if (inputs[i] != DataType::kINT32)
        {
            fail(kINPUT_NAMES[i], " is ", describe(inputs[i]), "; expected int32");
        }
    }
    DataType const type = inputs[kWORDS];
    if (!isFloating(type))
    {
        fail(kINPUT_NAMES[kWORDS], " is ", describe(type), "; expected fp32, fp16 or bf16");
    }
    for (int32_t i = kTABLES; i < kGAMMA; ++i)
    {
        if (inputs[i] != type)
        {
            fail(kINPUT_NAMES[i], " is ", describe(inputs[i]), "; expected the type of the word table, ",
                describe(type));
        }
    }
    std::vector<Weight> const weights{{"gamma", inputs[kGAMMA], {}}, {"beta", inputs[kBETA], {}}};
    if (type == DataType::kFLOAT)
    {
        checkWeightTypes(weights, {DataType::kFLOAT});
    }
    else
    {
        checkWeightTypes(weights, {type, DataType::kFLOAT});
    }
    if (mOutput.hasFactors())
    {
        checkFactorsType(inputs[kFACTORS]);
    }
}

void EmbLayerNormPlugin::checkShapes(std::vector<Dims> const& inputs) const
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
        bool const fits = table.nbDims == 2 && table.d[0] != 0 && mayBeEqual(table.d[1], hidden);
        if (!fits)
        {
            fail(kINPUT_NAMES[i], " has the shape ", describe(table), "; expected [at least 1, ",
                hidden < 0 ? "H" : std::to_string(hidden), "]");
        }
    }
    checkWeightShapes({{"gamma", {}, inputs[kGAMMA]}, {"beta", {}, inputs[kBETA]}}, hidden);
    if (mOutput.hasFactors())
    {
        checkWeightShapes({{"output_factors", {}, inputs[kFACTORS]}}, hidden);
    }
}

std::vector<DataType> EmbLayerNormPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    return mOutput.types(inputs[kWORDS]);
}

DimsExprs EmbLayerNormPlugin::outputShape(
    DimsExprs const* inputs, nvinfer1::IExprBuilder& /*exprBuilder*/) const
{
    DimsExprs shape = inputs[kINPUT_IDS];
    shape.d[shape.nbDims++] = inputs[kWORDS].d[1];
    return shape;
}

bool EmbLayerNormPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    auto const position = static_cast<int32_t>(inputs.size()) - 1;
    if (position < kTABLES)
    {
        return type == DataType::kINT32;
    }
    switch (position)
    {
    case kWORDS:
        return isFloating(type);
    case kGAMMA:
        return type == inputs[kWORDS] || type == DataType::kFLOAT;
    case kBETA:
        return type == inputs[kGAMMA];
    case kFACTORS:
        return type == DataType::kFLOAT;
    default: // the other tables
        return type == inputs[kWORDS];
    }
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t EmbLayerNormPlugin::launch(EnqueueCall const& call) const
{
    auto const lookup = [&](int32_t ids, int32_t table)
    {
        return EmbeddingLookup{static_cast<int32_t const*>(call.inputs[ids]), call.inputs[table],
            call.inputDesc[table].dims.d[0]};
    };
    EmbLayerNormArguments arguments{
        {lookup(kINPUT_IDS, kWORDS), lookup(kTOKEN_TYPE_IDS, kTYPES), lookup(kPOSITION_IDS, kPOSITIONS)},
        call.inputs[kGAMMA], call.inputs[kBETA], mOutput.hasFloating() ? call.outputs[0] : nullptr,
        countRows(call.outputDesc[0].dims), static_cast<int32_t>(call.inputDesc[kWORDS].dims.d[1]), mEpsilon,
        elementType(call.inputDesc[kWORDS].type), elementType(call.inputDesc[kGAMMA].type)};
    if (mOutput.hasQuantized())
    {
        arguments.quantized = call.outputs[getNbOutputs() - 1];
        arguments.outputScale = mOutput.outputScale;
        arguments.quantizedType = elementType(mOutput.quantized());
        arguments.outputFactors
            = mOutput.hasFactors() ? static_cast<float const*>(call.inputs[kFACTORS]) : nullptr;
    }
    return launchEmbLayerNorm(arguments, call.stream);
}

std::vector<PluginField> EmbLayerNormPlugin::fieldsToSerialize() const
{
    std::vector<PluginField> fields{fieldOf("epsilon", mEpsilon)};
    mOutput.serialize(fields);
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator embLayerNormCreator()
{
    std::vector<PluginField> names = OutputFields::names();
    names.push_back({"epsilon", nullptr, PluginFieldType::kFLOAT32, 1});
    return {kNAME, kVERSION, std::move(names), [](FieldReader const& fields) -> Plugin*
        { return new EmbLayerNormPlugin(fields.getFloat("epsilon"), OutputFields::read(fields)); }};
}

} // namespace bert
