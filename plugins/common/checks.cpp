#include "common/checks.h"

namespace bert
{

using nvinfer1::DataType;
using nvinfer1::Dims;

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

Dims knownDims(nvinfer1::DimsExprs const& dims)
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
