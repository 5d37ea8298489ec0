#include "common/checks.h"

#include <algorithm>
#include <climits>
#include <cmath>

namespace bert
{

std::string describe(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT:
        return "fp32";
    case DataType::kHALF:
        return "fp16";
    case DataType::kBF16:
        return "bf16";
    case DataType::kINT8:
        return "int8";
    case DataType::kFP8:
        return "fp8";
    case DataType::kINT32:
        return "int32";
    case DataType::kINT64:
        return "int64";
    case DataType::kBOOL:
        return "bool";
    default:
        return "data type " + std::to_string(static_cast<int32_t>(type));
    }
}

std::string describe(Dims const& dims)
{
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
    }
    return text + "]";
}

Dims constantDims(DimsExprs const& dims)
{
    Dims known{};
    known.nbDims = dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        known.d[i] = dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1;
    }
    return known;
}

bool isFloating(DataType type)
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

bool isQuantized(DataType type)
{
    return type == DataType::kINT8 || type == DataType::kFP8;
}

DataType outputTypeNamed(std::string const& name, std::initializer_list<DataType> const& allowed)
{
    std::string expected;
    for (DataType const* type = allowed.begin(); type != allowed.end(); ++type)
    {
        if (describe(*type) == name)
        {
            return *type;
        }
        expected += (expected.empty() ? "" : type + 1 == allowed.end() ? " or " : ", ") + describe(*type);
    }
    fail("field output_type is \"", name, "\"; expected ", expected);
}

DataType floatingTypeNamed(std::string const& name)
{
    return outputTypeNamed(name, {DataType::kFLOAT, DataType::kHALF, DataType::kBF16});
}

ElementType elementType(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT:
        return ElementType::kFLOAT;
    case DataType::kHALF:
        return ElementType::kHALF;
    case DataType::kBF16:
        return ElementType::kBF16;
    case DataType::kINT8:
        return ElementType::kINT8;
    case DataType::kFP8:
        return ElementType::kE4M3;
    default:
        fail("no kernel takes ", describe(type));
    }
}

int64_t countRows(Dims const& dims)
{
    int64_t rows = 1;
    for (int32_t i = 0; i + 1 < dims.nbDims; ++i)
    {
        rows *= dims.d[i];
    }
    return rows;
}

TypesAndShapes::TypesAndShapes(PluginTensorDesc const* tensors, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
    {
        types.push_back(tensors[i].type);
        shapes.push_back(tensors[i].dims);
    }
}

TypesAndShapes::TypesAndShapes(DynamicPluginTensorDesc const* tensors, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
    {
        types.push_back(tensors[i].desc.type);
        shapes.push_back(tensors[i].max);
    }
}

void checkEpsilon(float epsilon)
{
    if (!(std::isfinite(epsilon) && epsilon > 0.0F))
    {
        fail("field epsilon is ", epsilon, "; expected a finite number greater than 0");
    }
}

void checkScale(char const* field, float scale)
{
    if (!(scale == 0.0F || (scale >= kSMALLEST_SCALE && scale <= kLARGEST_SCALE)))
    {
        fail("field ", field, " is ", scale, "; expected ", kSMALLEST_SCALE, " to ", kLARGEST_SCALE,
            ", or 0 for no scale");
    }
}

int64_t checkedHidden(char const* name, Dims const& dims)
{
    if (dims.nbDims < 1)
    {
        fail(name, " is a scalar; expected [..., H]");
    }
    int64_t const hidden = dims.d[dims.nbDims - 1];
    if (hidden == 0 || hidden > INT_MAX)
    {
        fail(
            name, " has the shape ", describe(dims), "; its last axis must have 1 to ", INT_MAX, " elements");
    }
    return hidden;
}

namespace
{

template <typename Function>
std::string listed(size_t count, char const* separator, Function&& text)
{
    std::string list;
    for (size_t i = 0; i < count; ++i)
    {
        list += (i == 0 ? "" : separator) + text(i);
    }
    return list;
}

} // namespace

void checkWeightTypes(std::vector<Weight> const& weights, std::initializer_list<DataType> const& allowed)
{
    DataType const first = weights.front().type;
    bool const same = std::all_of(
        weights.begin(), weights.end(), [first](Weight const& weight) { return weight.type == first; });
    if (!same || std::find(allowed.begin(), allowed.end(), first) == allowed.end())
    {
        fail(listed(weights.size(), ", ",
                 [&](size_t i) { return weights[i].name + (" is " + describe(weights[i].type)); }),
            "; expected all of them ",
            listed(allowed.size(), " or all ", [&](size_t i) { return describe(allowed.begin()[i]); }));
    }
}

void checkWeightShapes(std::vector<Weight> const& weights, int64_t hidden)
{
    for (Weight const& weight : weights)
    {
        int64_t const length = weight.dims.nbDims == 1 ? weight.dims.d[0] : 0;
        if (length != hidden && length >= 0 && (hidden >= 0 || length == 0))
        {
            fail(weight.name, " has the shape ", describe(weight.dims), "; expected [",
                hidden < 0 ? "H" : std::to_string(hidden), "]");
        }
    }
}

void checkFactorsType(DataType type)
{
    if (type != DataType::kFLOAT)
    {
        fail("output_factors is ", describe(type), "; expected fp32");
    }
}

bool mayBeEqual(int64_t a, int64_t b)
{
    return a == b || a < 0 || b < 0;
}

bool mayBeEqual(Dims const& a, Dims const& b)
{
    auto const fits = [](int64_t first, int64_t second) { return mayBeEqual(first, second); };
    return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d, fits);
}

void checkCount(char const* what, int32_t found, int32_t expected)
{
    if (found != expected)
    {
        fail(what, ": ", found, ", expected ", expected);
    }
}

void checkCuda(cudaError_t status)
{
    switch (status)
    {
    case cudaSuccess:
        return;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
        fail(cudaGetErrorString(status), ": this library was built for the GPU architectures ",
            BERT_ARCHITECTURES, "; build it for this GPU: python plugins/build.py --architectures native");
    default:
        fail("CUDA error ", static_cast<int32_t>(status), ": ", cudaGetErrorString(status));
    }
}

} // namespace bert
