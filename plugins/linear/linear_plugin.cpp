#include "linear/linear_plugin.h"

#include "common/checks.h"
#include "common/fields.h"

#include <algorithm>
#include <climits>
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

constexpr char const* kNAME = "Linear";
constexpr char const* kVERSION = "1";
constexpr char const* kINPUT_NAMES[] = {"x", "weight", "bias"};
constexpr int32_t kMOST_INPUTS = 3; // with the bias
constexpr int32_t kX = 0;
constexpr int32_t kWEIGHT = 1;
constexpr int32_t kBIAS = 2;
constexpr int64_t kWIDEST = int64_t{1} << 30; // column numbers are int32 in the kernels
constexpr int64_t kMOST_TILES = INT_MAX;
constexpr int64_t kTILE = 64; // rows and columns of the smallest tile of a kernel

bool isLinearType(DataType type)
{
    return type == DataType::kHALF || type == DataType::kBF16;
}

void checkNumberOfInputs(int32_t count)
{
    if (count != kMOST_INPUTS && count != kMOST_INPUTS - 1)
    {
        fail("number of inputs: ", count, ", expected 2, or 3 with a bias");
    }
}

void checkTypes(DataType const* types, int32_t count)
{
    checkNumberOfInputs(count);
    if (!isLinearType(types[kX]))
    {
        fail("x is ", describe(types[kX]),
            "; expected fp16 or bf16; for other types take TensorRT's own layers, MatrixMultiply above all");
    }
    for (int32_t i = kWEIGHT; i < count; ++i)
    {
        if (types[i] != types[kX])
        {
            fail(kINPUT_NAMES[i], " is ", describe(types[i]), "; expected the type of x, ",
                describe(types[kX]));
        }
    }
}

// Whether a dimension is one of two numbers or not known yet (-1).
bool fits(int64_t found, int64_t expected)
{
    return found < 0 || expected < 0 || found == expected;
}

// A dimension of -1 is not known yet and is checked again when it is.
void checkShapes(std::vector<Dims> const& inputs)
{
    Dims const& x = inputs[kX];
    Dims const& weight = inputs[kWEIGHT];
    if (x.nbDims < 1)
    {
        fail("x is a scalar; expected [..., K]");
    }
    if (weight.nbDims != 2 || !fits(weight.d[1], x.d[x.nbDims - 1]))
    {
        fail("weight has the shape ", describe(weight), " for x of ", describe(x),
            "; expected [N, K] where x is [..., K]");
    }
    if (weight.d[0] == 0 || weight.d[1] == 0 || weight.d[0] > kWIDEST || weight.d[1] > kWIDEST)
    {
        fail("weight has the shape ", describe(weight), "; expected 1 to ", kWIDEST, " rows and columns");
    }
    int64_t const mostRows = kMOST_TILES / ((weight.d[0] + kTILE - 1) / kTILE + 1) * kTILE;
    int64_t rows = 1;
    for (int32_t i = 0; i + 1 < x.nbDims; ++i)
    {
        if (rows > 0 && x.d[i] > mostRows / rows)
        {
            fail("x has the shape ", describe(x), ": with ", weight.d[0],
                " rows of the weight that is more than one kernel can be launched for");
        }
        rows = x.d[i] < 0 || rows < 0 ? -1 : rows * x.d[i];
    }
    if (inputs.size() == kMOST_INPUTS)
    {
        Dims const& bias = inputs[kBIAS];
        if (bias.nbDims != 1 || !fits(bias.d[0], weight.d[0]))
        {
            fail("bias has the shape ", describe(bias), " for a weight of ", describe(weight),
                "; expected [N] where the weight is [N, K]");
        }
    }
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------
// Plugin
// ---------------------------------------------------------------------------------------------------------------

LinearPlugin::LinearPlugin(std::string activation, int32_t constantWeight)
    : Plugin(kNAME, kVERSION)
    , mActivation(std::move(activation))
    , mConstantWeight(constantWeight)
{
    if (mActivation != "none" && mActivation != "gelu")
    {
        fail("field activation is \"", mActivation, "\"; expected none or gelu");
    }
}

nvinfer1::IPluginV3* LinearPlugin::clone() noexcept
{
    return run<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new LinearPlugin(*this); });
}

int32_t LinearPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return check("getOutputDataTypes",
        [&]
        {
            checkCount("number of outputs", nbOutputs, 1);
            checkTypes(inputTypes, nbInputs);
            outputTypes[0] = inputTypes[kX];
        });
}

int32_t LinearPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& /*exprBuilder*/) noexcept
{
    return check("getOutputShapes",
        [&]
        {
            checkNumberOfInputs(nbInputs);
            checkCount("number of outputs", nbOutputs, 1);
            std::vector<Dims> shapes(static_cast<size_t>(nbInputs));
            std::transform(inputs, inputs + nbInputs, shapes.begin(), knownDims);
            checkShapes(shapes);
            outputs[0] = inputs[kX];
            outputs[0].d[outputs[0].nbDims - 1] = inputs[kWEIGHT].d[0];
        });
}

// TensorRT asks for one tensor after another, inputs first; only those up to `pos` are filled in.
bool LinearPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return run<bool>("supportsFormatCombination", false,
        [&]
        {
            checkNumberOfInputs(nbInputs);
            checkCount("number of outputs", nbOutputs, 1);
            PluginTensorDesc const& tensor = inOut[pos].desc;
            return tensor.format == nvinfer1::TensorFormat::kLINEAR && isLinearType(tensor.type)
                   && tensor.type == inOut[kX].desc.type;
        });
}

int32_t LinearPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
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

void LinearPlugin::checkInputs(PluginTensorDesc const* in, int32_t nbInputs) const
{
    TypesAndShapes const inputs{in, nbInputs};
    checkTypes(inputs.types.data(), nbInputs);
    checkShapes(inputs.shapes);
}

cudaError_t LinearPlugin::launch(PluginTensorDesc const* inputDesc, int32_t nbInputs,
    PluginTensorDesc const* /*outputDesc*/, void const* const* inputs, void* const* outputs,
    void* /*workspace*/, cudaStream_t stream) const
{
    Dims const& weight = inputDesc[kWEIGHT].dims;
    LinearArguments arguments{};
    arguments.x = inputs[kX];
    arguments.weight = inputs[kWEIGHT];
    arguments.bias = nbInputs == kMOST_INPUTS ? inputs[kBIAS] : nullptr;
    arguments.y = outputs[0];
    arguments.rows = countRows(inputDesc[kX].dims);
    arguments.in = static_cast<int32_t>(weight.d[1]);
    arguments.out = static_cast<int32_t>(weight.d[0]);
    arguments.gelu = mActivation == "gelu";
    arguments.constantWeight = mConstantWeight == 1;
    arguments.type = elementType(inputDesc[kX].type);
    return launchLinear(arguments, stream);
}

std::vector<PluginField> LinearPlugin::fieldsToSerialize() const
{
    return {
        {"activation", mActivation.data(), PluginFieldType::kCHAR, static_cast<int32_t>(mActivation.size())},
        {"constant_weight", &mConstantWeight, PluginFieldType::kINT32, 1}};
}

// ---------------------------------------------------------------------------------------------------------------
// Creator
// ---------------------------------------------------------------------------------------------------------------

LinearCreator::LinearCreator()
    : PluginCreator(kNAME, kVERSION,
          {{"activation", nullptr, PluginFieldType::kCHAR, 1},
              {"constant_weight", nullptr, PluginFieldType::kINT32, 1}})
{
}

nvinfer1::IPluginV3* LinearCreator::create(nvinfer1::PluginFieldCollection const* fields) const
{
    FieldReader const reader{fields, knownFields()};
    return new LinearPlugin(reader.has("activation") ? reader.getString("activation") : "none",
        reader.getFlag("constant_weight"));
}

} // namespace bert
