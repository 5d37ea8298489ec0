#include "linear/linear_plugin.h"

#include <climits>
#include <utility>

namespace bert
{

namespace
{

constexpr char const* kNAME = "Linear";
constexpr char const* kVERSION = "1";
constexpr char const* kINPUT_NAMES[] = {"x", "weight", "bias"};
constexpr int32_t kMAX_INPUTS = 3; // with the bias
constexpr int32_t kX = 0;
constexpr int32_t kWEIGHT = 1;
constexpr int32_t kBIAS = 2;
constexpr int64_t kWIDEST = int64_t{1} << 30; // column numbers are int32 in the kernels
constexpr int64_t kMAX_TILES = INT_MAX;
constexpr int64_t kTILE = 64; // rows and columns of the smallest tile of a kernel

bool isLinearType(DataType type)
{
    return type == DataType::kHALF || type == DataType::kBF16;
}

} // namespace

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
    if (count != kMAX_INPUTS && count != kMAX_INPUTS - 1)
    {
        fail("number of inputs: ", count, ", expected 2, or 3 with a bias");
    }
}

void LinearPlugin::checkTypes(std::vector<DataType> const& inputs) const
{
    if (!isLinearType(inputs[kX]))
    {
        fail("x is ", describe(inputs[kX]),
            "; expected fp16 or bf16; for other types take TensorRT's own layers, MatrixMultiply above all");
    }
    for (size_t i = kWEIGHT; i < inputs.size(); ++i)
    {
        if (inputs[i] != inputs[kX])
        {
            fail(kINPUT_NAMES[i], " is ", describe(inputs[i]), "; expected the type of x, ",
                describe(inputs[kX]));
        }
    }
}

void LinearPlugin::checkShapes(std::vector<Dims> const& inputs) const
{
    Dims const& x = inputs[kX];
    Dims const& weight = inputs[kWEIGHT];
    if (x.nbDims < 1)
    {
        fail("x is a scalar; expected [..., K]");
    }
    if (weight.nbDims != 2 || !mayBeEqual(weight.d[1], x.d[x.nbDims - 1]))
    {
        fail("weight has the shape ", describe(weight), " for x of ", describe(x),
            "; expected [N, K] where x is [..., K]");
    }
    if (weight.d[0] == 0 || weight.d[1] == 0 || weight.d[0] > kWIDEST || weight.d[1] > kWIDEST)
    {
        fail("weight has the shape ", describe(weight), "; expected 1 to ", kWIDEST, " rows and columns");
    }
    int64_t const mostRows = kMAX_TILES / ((weight.d[0] + kTILE - 1) / kTILE + 1) * kTILE;
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
    if (inputs.size() == kMAX_INPUTS)
    {
        Dims const& bias = inputs[kBIAS];
        if (bias.nbDims != 1 || !mayBeEqual(bias.d[0], weight.d[0]))
        {
            fail("bias has the shape ", describe(bias), " for a weight of ", describe(weight),
                "; expected [N] where the weight is [N, K]");
        }
    }
}

std::vector<DataType> LinearPlugin::outputTypes(std::vector<DataType> const& inputs) const
{
    return {inputs[kX]};
}

DimsExprs LinearPlugin::outputShape(DimsExprs const* inputs, nvinfer1::IExprBuilder& /*exprBuilder*/) const
{
    DimsExprs shape = inputs[kX];
    shape.d[shape.nbDims - 1] = inputs[kWEIGHT].d[0];
    return shape;
}

bool LinearPlugin::supportsInput(std::vector<DataType> const& inputs) const
{
    return isLinearType(inputs.back()) && inputs.back() == inputs[kX];
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
    arguments.bias = call.nbInputs == kMAX_INPUTS ? call.inputs[kBIAS] : nullptr;
    arguments.y = call.outputs[0];
    arguments.rows = countRows(call.inputDesc[kX].dims);
    arguments.in = static_cast<int32_t>(weight.d[1]);
    arguments.out = static_cast<int32_t>(weight.d[0]);
    arguments.gelu = mActivation == "gelu";
    arguments.constantWeight = mConstantWeight == 1;
    arguments.type = elementType(call.inputDesc[kX].type);
    return launchLinear(arguments, call.stream);
}

std::vector<PluginField> LinearPlugin::fieldsToSerialize() const
{
    return {fieldOf("activation", mActivation), fieldOf("constant_weight", mConstantWeight)};
}

// ---------------------------------------------------------------------------------------------------------------
// Creator: called while a network is built and when a plan is loaded; an error is thrown as PluginError
// ---------------------------------------------------------------------------------------------------------------

PluginCreator linearCreator()
{
    return {kNAME, kVERSION,
        {{"activation", nullptr, PluginFieldType::kCHAR, 1},
            {"constant_weight", nullptr, PluginFieldType::kINT32, 1}},
        [](FieldReader const& fields) -> Plugin*
        {
            return new LinearPlugin(fields.has("activation") ? fields.getString("activation") : "none",
                fields.getFlag("constant_weight"));
        }};
}

} // namespace bert
