#include "qkv_to_context/qkv_to_context_plugin.h"

#include "common/checks.h"
#include "common/fields.h"

#include <climits>
#include <cmath>

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

constexpr char const* kNAME = "QkvToContext";
constexpr char const* kVERSION = "1";
constexpr int64_t kMOST_TOKENS = int64_t{1} << 30; // token numbers are int32 in the kernels
constexpr int64_t kMOST_BLOCKS = INT_MAX;
constexpr int64_t kFEWEST_QUERIES = 32; // of a kernel's tile

bool isNumberFrom0(float value)
{
    return std::isfinite(value) && value >= 0.0F;
}

bool isQkvType(DataType type)
{
    return isFloating(type) || type == DataType::kINT8;
}

void checkScale(char const* field, float scale)
{
    if (!isNumberFrom0(scale))
    {
        fail("field ", field, " is ", scale, "; expected a finite number greater than 0, or 0 for none");
    }
}

// The tensor beside qkv, for messages.
char const* secondInput(std::string const& layout)
{
    return layout == "padded" ? "mask" : "cu_seqlens";
}

// Whether a dimension is one of two numbers or not known yet (-1).
bool fits(int64_t found, int64_t expected)
{
    return found < 0 || expected < 0 || found == expected;
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------
// Plugin: fields, types, shapes
// ---------------------------------------------------------------------------------------------------------------

QkvToContextPlugin::QkvToContextPlugin(QkvToContextFields fields)
    : Plugin(kNAME, kVERSION)
    , mOwn(std::move(fields))
{
    if (mOwn.numHeads < 1)
    {
        fail("field num_heads is ", mOwn.numHeads, "; expected 1 or more");
    }
    if (mOwn.layout != "single" && mOwn.layout != "padded" && mOwn.layout != "packed")
    {
        fail("field layout is \"", mOwn.layout, "\"; expected single, padded or packed");
    }
    checkScale("qkv_scale", mOwn.qkvScale);
    checkScale("output_scale", mOwn.outputScale);
    std::string const& type = mOwn.outputType;
    if (!type.empty() && type != "fp32" && type != "fp16" && type != "bf16")
    {
        fail("field output_type is \"", type, "\"; expected fp32, fp16 or bf16");
    }
    if (!type.empty() && (mOwn.qkvScale == 0.0F || mOwn.outputScale > 0.0F))
    {
        fail("field output_type is \"", type, "\", but qkv_scale is ", mOwn.qkvScale, " and output_scale ",
            mOwn.outputScale,
            "; it is for qkv of int8 (qkv_scale greater than 0) and an output that is not "
            "(no output_scale)");
    }
    if (type.empty() && mOwn.qkvScale > 0.0F && mOwn.outputScale == 0.0F)
    {
        fail("field qkv_scale is ", mOwn.qkvScale,
            ", so qkv is int8, but neither output_scale (for an output of "
            "int8) nor output_type (fp32, fp16 or bf16) says what the output is");
    }
}

int32_t QkvToContextPlugin::nbInputs() const
{
    return mOwn.layout == "single" ? 1 : 2;
}

DataType QkvToContextPlugin::outputType(DataType qkv) const
{
    if (mOwn.outputScale > 0.0F)
    {
        return DataType::kINT8;
    }
    if (mOwn.outputType.empty())
    {
        return qkv;
    }
    return mOwn.outputType == "fp32" ? DataType::kFLOAT
                                     : (mOwn.outputType == "fp16" ? DataType::kHALF : DataType::kBF16);
}

void QkvToContextPlugin::checkTypes(DataType qkv, DataType second) const
{
    if (!isQkvType(qkv))
    {
        fail("qkv is ", describe(qkv), "; expected fp32, fp16, bf16 or int8");
    }
    if (qkv == DataType::kINT8 && mOwn.qkvScale == 0.0F)
    {
        fail("qkv is int8, but field qkv_scale is missing or 0; expected a number greater than 0");
    }
    if (qkv != DataType::kINT8 && mOwn.qkvScale > 0.0F)
    {
        fail("qkv is ", describe(qkv), ", but field qkv_scale is ", mOwn.qkvScale, "; it is for int8 only");
    }
    if (nbInputs() == 2 && second != DataType::kINT32)
    {
        fail(secondInput(mOwn.layout), " is ", describe(second), "; expected int32");
    }
}

// A dimension of -1 is not known yet and is checked again when it is.
void QkvToContextPlugin::checkShapes(Dims const& qkv, Dims const* second) const
{
    bool const single = mOwn.layout == "single";
    int32_t const rank = mOwn.layout == "packed" ? 2 : 3;
    if (qkv.nbDims != rank && !(single && qkv.nbDims == 2))
    {
        fail("qkv has the shape ", describe(qkv), "; expected ",
            single ? "[S, 3H] or [B, S, 3H]" : (rank == 2 ? "[T, 3H]" : "[B, S, 3H]"), " for layout ",
            mOwn.layout);
    }
    int64_t const width = qkv.d[qkv.nbDims - 1];
    int64_t const ofHeads = int64_t{3} * mOwn.numHeads;
    int64_t const headSize = width / ofHeads;
    if (width >= 0 && (width % ofHeads != 0 || (headSize != 32 && headSize != 64 && headSize != 128)))
    {
        fail("qkv has the shape ", describe(qkv), ", so with num_heads ", mOwn.numHeads, " a head has ",
            static_cast<float>(width) / static_cast<float>(ofHeads), " elements; expected 32, 64 or 128");
    }
    int64_t tokens = 1;
    for (int32_t i = 0; i + 1 < qkv.nbDims; ++i)
    {
        tokens = qkv.d[i] < 0 || tokens < 0 ? -1 : tokens * qkv.d[i];
        if (tokens > kMOST_TOKENS)
        {
            fail("qkv has the shape ", describe(qkv), "; at most ", kMOST_TOKENS, " tokens are possible");
        }
    }
    int64_t sentences = qkv.nbDims == 2 ? 1 : qkv.d[0];
    if (mOwn.layout == "padded")
    {
        if (second->nbDims != 2 || !fits(second->d[0], qkv.d[0]) || !fits(second->d[1], qkv.d[1]))
        {
            fail(
                "mask has the shape ", describe(*second), " for qkv of ", describe(qkv), "; expected [B, S]");
        }
    }
    if (mOwn.layout == "packed")
    {
        if (second->nbDims != 1 || second->d[0] == 0)
        {
            fail("cu_seqlens has the shape ", describe(*second), "; expected [B + 1]");
        }
        sentences = second->d[0] - 1;
    }
    int64_t const tiles
        = std::max<int64_t>(tokens, 0) / kFEWEST_QUERIES + std::max<int64_t>(sentences, 0) + 1;
    if (tiles * mOwn.numHeads > kMOST_BLOCKS)
    {
        fail("qkv has the shape ", describe(qkv), ": with num_heads ", mOwn.numHeads,
            " that is more than one kernel can be launched for");
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Plugin: what TensorRT calls
// ---------------------------------------------------------------------------------------------------------------

nvinfer1::IPluginV3* QkvToContextPlugin::clone() noexcept
{
    return run<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new QkvToContextPlugin(*this); });
}

int32_t QkvToContextPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkCount("number of inputs", nbInputs, this->nbInputs());
            checkCount("number of outputs", nbOutputs, 1);
            checkTypes(inputTypes[0], inputTypes[nbInputs - 1]);
            outputTypes[0] = outputType(inputTypes[0]);
        });
}

int32_t QkvToContextPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkCount("number of inputs", nbInputs, this->nbInputs());
            checkCount("number of outputs", nbOutputs, 1);
            Dims const second = knownDims(inputs[nbInputs - 1]);
            checkShapes(knownDims(inputs[0]), &second);
            outputs[0] = inputs[0];
            auto const*& width = outputs[0].d[outputs[0].nbDims - 1];
            width = exprBuilder.operation(
                nvinfer1::DimensionOperation::kFLOOR_DIV, *width, *exprBuilder.constant(3));
        });
}

// TensorRT asks for one tensor after another, inputs first; only those up to `pos` are filled in.
bool QkvToContextPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    if (nbInputs != this->nbInputs() || nbOutputs != 1
        || inOut[pos].desc.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    DataType const type = inOut[pos].desc.type;
    if (pos == 0)
    {
        return mOwn.qkvScale > 0.0F ? type == DataType::kINT8 : isFloating(type);
    }
    if (pos == nbInputs)
    {
        return type == outputType(inOut[0].desc.type);
    }
    return type == DataType::kINT32;
}

int32_t QkvToContextPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
    DynamicPluginTensorDesc const* /*out*/, int32_t /*nbOutputs*/) noexcept
{
    return check("configurePlugin",
        [&]
        {
            checkCount("number of inputs", nbInputs, this->nbInputs());
            checkTypes(in[0].desc.type, in[nbInputs - 1].desc.type);
            checkShapes(in[0].max, &in[nbInputs - 1].max);
        });
}

void QkvToContextPlugin::checkInputs(PluginTensorDesc const* in, int32_t nbInputs) const
{
    checkCount("number of inputs", nbInputs, this->nbInputs());
    checkTypes(in[0].type, in[nbInputs - 1].type);
    checkShapes(in[0].dims, &in[nbInputs - 1].dims);
}

cudaError_t QkvToContextPlugin::launch(PluginTensorDesc const* inputDesc, int32_t /*nbInputs*/,
    PluginTensorDesc const* outputDesc, void const* const* inputs, void* const* outputs, void* /*workspace*/,
    cudaStream_t stream) const
{
    Dims const& shape = inputDesc[0].dims;
    auto const* const second = nbInputs() == 2 ? static_cast<int32_t const*>(inputs[1]) : nullptr;
    bool const packed = mOwn.layout == "packed";
    bool const batch = shape.nbDims == 3;
    QkvToContextArguments arguments{};
    arguments.qkv = inputs[0];
    arguments.mask = packed ? nullptr : second;
    arguments.cuSeqlens = packed ? second : nullptr;
    arguments.context = outputs[0];
    arguments.sentences
        = static_cast<int32_t>(packed ? inputDesc[1].dims.d[0] - 1 : (batch ? shape.d[0] : 1));
    arguments.length = static_cast<int32_t>(shape.d[shape.nbDims - 2]);
    arguments.heads = mOwn.numHeads;
    arguments.headSize = static_cast<int32_t>(shape.d[shape.nbDims - 1] / (3 * mOwn.numHeads));
    arguments.type = elementType(inputDesc[0].type);
    arguments.outputType = elementType(outputDesc[0].type);
    arguments.qkvScale = arguments.type == ElementType::kINT8 ? mOwn.qkvScale : 1.0F;
    arguments.outputScale = arguments.outputType == ElementType::kINT8 ? mOwn.outputScale : 1.0F;
    return launchQkvToContext(arguments, stream);
}

std::vector<PluginField> QkvToContextPlugin::fieldsToSerialize() const
{
    auto const text = [](char const* name, std::string const& value) -> PluginField
    { return {name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())}; };
    std::vector<PluginField> fields{{"num_heads", &mOwn.numHeads, PluginFieldType::kINT32, 1},
        text("layout", mOwn.layout), {"qkv_scale", &mOwn.qkvScale, PluginFieldType::kFLOAT32, 1},
        {"output_scale", &mOwn.outputScale, PluginFieldType::kFLOAT32, 1}};
    if (!mOwn.outputType.empty())
    {
        fields.push_back(text("output_type", mOwn.outputType));
    }
    return fields;
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

QkvToContextCreator::QkvToContextCreator()
    : PluginCreator(kNAME, kVERSION,
          {{"num_heads", nullptr, PluginFieldType::kINT32, 1}, {"layout", nullptr, PluginFieldType::kCHAR, 1},
              {"qkv_scale", nullptr, PluginFieldType::kFLOAT32, 1},
              {"output_scale", nullptr, PluginFieldType::kFLOAT32, 1},
              {"output_type", nullptr, PluginFieldType::kCHAR, 1}})
{
}

nvinfer1::IPluginV3* QkvToContextCreator::create(nvinfer1::PluginFieldCollection const* fields) const
{
    FieldReader const reader{fields, knownFields()};
    QkvToContextFields own{};
    own.numHeads = reader.getInt("num_heads");
    own.layout = reader.has("layout") ? reader.getString("layout") : own.layout;
    own.qkvScale = reader.has("qkv_scale") ? reader.getFloat("qkv_scale") : own.qkvScale;
    own.outputScale = reader.has("output_scale") ? reader.getFloat("output_scale") : own.outputScale;
    own.outputType = reader.has("output_type") ? reader.getString("output_type") : own.outputType;
    return new QkvToContextPlugin(std::move(own));
}

} // namespace bert
