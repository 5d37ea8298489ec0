#include "qkv_to_context/qkv_to_context_plugin.h"

#include <algorithm>
#include <climits>

namespace bert
{

namespace
{

constexpr char const* kNAME = "QkvToContext";
constexpr char const* kVERSION = "1";
constexpr int32_t kQKV = 0;
constexpr int32_t kSECOND = 1;                    // mask or cu_seqlens
constexpr int64_t kMAX_TOKENS = int64_t{1} << 30; // token numbers are int32 in the kernels
constexpr int64_t kMAX_BLOCKS = INT_MAX;
constexpr int64_t kMIN_QUERIES = 32; // of a tile, in the kernel with the smallest tiles

bool isQkvType(DataType type)
{
    return isFloating(type) || type == DataType::kINT8;
}

// The name of the second input, for messages.
char const* secondInput(std::string const& layout)
{
    return layout == "padded" ? "mask" : "cu_seqlens";
}

} // namespace

QkvToContextPlugin::QkvToContextPlugin(QkvToContextFields fields)
    : Plugin(kNAME, kVERSION)
    , mFields(std::move(fields))
{
    if (mFields.numHeads < 1)
    {
        fail("field num_heads is ", mFields.numHeads, "; expected 1 or more");
    }
    if (mFields.layout != "single" && mFields.layout != "padded" && mFields.layout != "packed")
    {
        fail("field layout is \"", mFields.layout, "\"; expected single, padded or packed");
    }
    if (mFields.maxSequenceLength < 0)
    {
        fail("field max_sequence_length is ", mFields.maxSequenceLength, "; expected 0 (not known) or more");
    }
    if (mFields.maxSequenceLength > 0 && mFields.layout != "packed")
    {
        fail("field max_sequence_length is ", mFields.maxSequenceLength, " for layout ", mFields.layout,
            "; it is for layout packed: the other layouts have the length in their shapes");
    }
    checkScale("qkv_scale", mFields.qkvScale);
    checkScale("output_scale", mFields.outputScale);
    std::string const& type = mFields.outputType;
    bool const inEightBits
        = !type.empty()
          && isQuantized(outputTypeNamed(
              type, {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kFP8}));
    if (inEightBits && mFields.outputScale == 0.0F)
    {
        fail("field output_type is \"", type, "\"; give the scale of the context in the field output_scale");
    }
    if (type == "fp8" && mFields.qkvScale > 0.0F)
    {
        fail("field output_type is \"fp8\", but qkv_scale is ", mFields.qkvScale,
            ", so qkv is int8; expected int8, or qkv of fp32, fp16 or bf16");
    }
    if (!type.empty() && !inEightBits && (mFields.qkvScale == 0.0F || mFields.outputScale > 0.0F))
    {
        fail("field output_type is \"", type, "\", but qkv_scale is ", mFields.qkvScale, " and output_scale ",
            mFields.outputScale,
            "; it is for qkv of int8 (qkv_scale greater than 0) and an output that is not "
            "(no output_scale)");
    }
    if (type.empty() && mFields.qkvScale > 0.0F && mFields.outputScale == 0.0F)
    {
        fail("field qkv_scale is ", mFields.qkvScale,
            ", so qkv is int8, but neither output_scale (for an output of "
            "int8) nor output_type (fp32, fp16 or bf16) says what the output is");
    }
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3: TensorRT may copy a plugin at any time, from any thread
// ---------------------------------------------------------------------------------------------------------------

Plugin* QkvToContextPlugin::copy() const
{
    return new QkvToContextPlugin(*this);
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneBuild: called while a network is defined and while an engine is built; host work only
// ---------------------------------------------------------------------------------------------------------------

void QkvToContextPlugin::checkInputCount(int32_t count) const
{
    checkCount("number of inputs", count, mFields.layout == "single" ? 1 : 2);
}

void QkvToContextPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    DataType const qkv = inputs[kQKV];
    if (!isQkvType(qkv))
    {
        fail("qkv is ", describe(qkv), "; expected fp32, fp16, bf16 or int8");
    }
    if (qkv == DataType::kINT8 && mFields.qkvScale == 0.0F)
    {
        fail("qkv is int8, but field qkv_scale is missing or 0; expected a number greater than 0");
    }
    if (qkv != DataType::kINT8 && mFields.qkvScale > 0.0F)
    {
        fail(
            "qkv is ", describe(qkv), ", but field qkv_scale is ", mFields.qkvScale, "; it is for int8 only");
    }
    if (inputs.size() == 2 && inputs[kSECOND] != DataType::kINT32)
    {
        fail(secondInput(mFields.layout), " is ", describe(inputs[kSECOND]), "; expected int32");
    }
}

void QkvToContextPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    Dims const& qkv = inputs[kQKV];
    bool const single = mFields.layout == "single";
    int32_t const rank = mFields.layout == "packed" ? 2 : 3;
    if (qkv.nbDims != rank && !(single && qkv.nbDims == 2))
    {
        fail("qkv has the shape ", describe(qkv), "; expected ",
            single ? "[S, 3H] or [B, S, 3H]" : (rank == 2 ? "[T, 3H]" : "[B, S, 3H]"), " for layout ",
            mFields.layout);
    }
    int64_t const width = qkv.d[qkv.nbDims - 1];
    int64_t const ofHeads = int64_t{3} * mFields.numHeads;
    int64_t const headSize = width / ofHeads;
    if (width >= 0 && (width % ofHeads != 0 || (headSize != 32 && headSize != 64 && headSize != 128)))
    {
        fail("qkv has the shape ", describe(qkv), ", so with num_heads ", mFields.numHeads, " a head has ",
            static_cast<float>(width) / static_cast<float>(ofHeads), " elements; expected 32, 64 or 128");
    }
    int64_t tokens = 1;
    for (int32_t i = 0; i + 1 < qkv.nbDims; ++i)
    {
        tokens = qkv.d[i] < 0 || tokens < 0 ? -1 : tokens * qkv.d[i];
        if (tokens > kMAX_TOKENS)
        {
            fail("qkv has the shape ", describe(qkv), "; at most ", kMAX_TOKENS, " tokens are possible");
        }
    }
    int64_t sequences = qkv.nbDims == 2 ? 1 : qkv.d[0];
    if (mFields.layout == "padded")
    {
        Dims const& mask = inputs[kSECOND];
        if (mask.nbDims != 2 || !mayBeEqual(mask.d[0], qkv.d[0]) || !mayBeEqual(mask.d[1], qkv.d[1]))
        {
            fail("mask has the shape ", describe(mask), " for qkv of ", describe(qkv), "; expected [B, S]");
        }
    }
    if (mFields.layout == "packed")
    {
        Dims const& cuSeqlens = inputs[kSECOND];
        if (cuSeqlens.nbDims != 1 || cuSeqlens.d[0] == 0)
        {
            fail("cu_seqlens has the shape ", describe(cuSeqlens), "; expected [B + 1]");
        }
        sequences = cuSeqlens.d[0] - 1;
    }
    int64_t const tiles = std::max<int64_t>(tokens, 0) / kMIN_QUERIES + std::max<int64_t>(sequences, 0) + 1;
    if (tiles * mFields.numHeads > kMAX_BLOCKS)
    {
        fail("qkv has the shape ", describe(qkv), ": with num_heads ", mFields.numHeads,
            " that is more than one kernel can be launched for");
    }
}

std::vector<DataType> QkvToContextPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    if (mFields.outputScale > 0.0F)
    {
        return {mFields.outputType == "fp8" ? DataType::kFP8 : DataType::kINT8};
    }
    return {mFields.outputType.empty() ? inputs[kQKV] : floatingTypeNamed(mFields.outputType)};
}

DimsExprs QkvToContextPlugin::outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& exprBuilder) const
{
    DimsExprs shape = inputs[kQKV];
    auto const*& width = shape.d[shape.nbDims - 1];
    width = exprBuilder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *width, *exprBuilder.constant(3));
    return shape;
}

bool QkvToContextPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    DataType const type = inputs.back();
    if (inputs.size() - 1 == kQKV)
    {
        return mFields.qkvScale > 0.0F ? type == DataType::kINT8 : isFloating(type);
    }
    return type == DataType::kINT32;
}

// ---------------------------------------------------------------------------------------------------------------
// IPluginV3OneRuntime: launch starts kernels in the stream and returns; it must not allocate or wait
// ---------------------------------------------------------------------------------------------------------------

cudaError_t QkvToContextPlugin::launch(EnqueueCall const& call) const
{
    Dims const& shape = call.inputDesc[kQKV].dims;
    auto const* const second
        = call.nbInputs == 2 ? static_cast<int32_t const*>(call.inputs[kSECOND]) : nullptr;
    bool const packed = mFields.layout == "packed";
    bool const batch = shape.nbDims == 3;
    QkvToContextArguments arguments{};
    arguments.qkv = call.inputs[kQKV];
    arguments.mask = packed ? nullptr : second;
    arguments.cuSeqlens = packed ? second : nullptr;
    arguments.context = call.outputs[0];
    arguments.sequences
        = static_cast<int32_t>(packed ? call.inputDesc[kSECOND].dims.d[0] - 1 : (batch ? shape.d[0] : 1));
    arguments.length = static_cast<int32_t>(shape.d[shape.nbDims - 2]);
    arguments.heads = mFields.numHeads;
    arguments.headSize = static_cast<int32_t>(shape.d[shape.nbDims - 1] / (3 * mFields.numHeads));
    arguments.type = elementType(call.inputDesc[kQKV].type);
    arguments.outputType = elementType(call.outputDesc[0].type);
    arguments.qkvScale = arguments.type == ElementType::kINT8 ? mFields.qkvScale : 1.0F;
    arguments.outputScale = mFields.outputScale > 0.0F ? mFields.outputScale : 1.0F;
    arguments.maxSequenceLength = mFields.maxSequenceLength;
    return launchQkvToContext(arguments, call.stream);
}

std::vector<PluginField> QkvToContextPlugin::fieldsToSerialize() const
{
    std::vector<PluginField> fields{fieldOf("num_heads", mFields.numHeads), fieldOf("layout", mFields.layout),
        fieldOf("max_sequence_length", mFields.maxSequenceLength), fieldOf("qkv_scale", mFields.qkvScale),
        fieldOf("output_scale", mFields.outputScale)};
    if (!mFields.outputType.empty())
    {
        fields.push_back(fieldOf("output_type", mFields.outputType));
    }
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator qkvToContextCreator()
{
    return {kNAME, kVERSION,
        {{"num_heads", nullptr, PluginFieldType::kINT32, 1}, {"layout", nullptr, PluginFieldType::kCHAR, 1},
            {"max_sequence_length", nullptr, PluginFieldType::kINT32, 1},
            {"qkv_scale", nullptr, PluginFieldType::kFLOAT32, 1},
            {"output_scale", nullptr, PluginFieldType::kFLOAT32, 1},
            {"output_type", nullptr, PluginFieldType::kCHAR, 1}},
        [](FieldReader const& fields) -> Plugin*
        {
            QkvToContextFields read{};
            read.numHeads = fields.getInt("num_heads");
            read.layout = fields.has("layout") ? fields.getString("layout") : read.layout;
            read.maxSequenceLength
                = fields.has("max_sequence_length") ? fields.getInt("max_sequence_length") : 0;
            read.qkvScale = fields.has("qkv_scale") ? fields.getFloat("qkv_scale") : read.qkvScale;
            read.outputScale
                = fields.has("output_scale") ? fields.getFloat("output_scale") : read.outputScale;
            read.outputType = fields.has("output_type") ? fields.getString("output_type") : read.outputType;
            return new QkvToContextPlugin(std::move(read));
        }};
}

} // namespace bert
