#include "linear/linear_inputs.h"

#include "linear/linear_gpu.h"

#include <climits>

namespace bert
{

namespace
{

constexpr int64_t kWIDEST = int64_t{1} << 30; // column numbers are int32 in the kernels
constexpr int64_t kMAX_TILES = INT_MAX;
constexpr int64_t kTILE = 64; // rows and columns of the smallest tile of a kernel

} // namespace

bool isLinearType(DataType type)
{
    return type == DataType::kHALF || type == DataType::kBF16;
}

void checkLinearTypes(DataType x, DataType weight, float xScale)
{
    bool const hasScale = xScale > 0.0F;
    if (hasScale && !isQuantized(x))
    {
        fail("x is ", describe(x), ", but the field x_scale is ", xScale,
            "; expected int8 or fp8, or no scale");
    }
    if (!hasScale && isQuantized(x))
    {
        fail("x is ", describe(x), "; give its scale in the field x_scale");
    }
    if (!hasScale && !isLinearType(x))
    {
        fail("x is ", describe(x),
            "; expected fp16 or bf16, or int8 or fp8 with x_scale; for other types take TensorRT's own "
            "layers, MatrixMultiply above all");
    }
    if (weight != x)
    {
        fail("weight is ", describe(weight), "; expected the type of x, ", describe(x));
    }
}

void checkFp32BesideEightBits(char const* name, DataType type, DataType x)
{
    if (type != DataType::kFLOAT)
    {
        fail(name, " is ", describe(type), "; expected fp32, as x is ", describe(x));
    }
}

void checkLinearShapes(Dims const& x, Dims const& weight)
{
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
}

void checkChannels(char const* name, Dims const& channels, Dims const& weight)
{
    if (channels.nbDims != 1 || !mayBeEqual(channels.d[0], weight.d[0]))
    {
        fail(name, " has the shape ", describe(channels), " for a weight of ", describe(weight),
            "; expected [N] where the weight is [N, K]");
    }
}

void checkLinearKernel(DataType x)
{
    Capability gpu;
    if (!isQuantized(x) || currentCapability(gpu) != cudaSuccess)
    {
        return;
    }
    int architecture = 0;
    if (findLinearTensorArchitecture(architecture) != cudaSuccess)
    {
        cudaGetLastError(); // no code for this GPU is said below; a later call shall not report it
    }
    std::string const missing
        = missingKernelInEightBits(elementType(x), gpu, architecture, BERT_ARCHITECTURES);
    if (!missing.empty())
    {
        fail("x is ", describe(x), ": ", missing);
    }
}

} // namespace bert
