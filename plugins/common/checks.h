// Text for error messages, and the checks that several plugins share.
#pragma once

#include "common/element_type.h"
#include "common/logging.h"
#include "common/tensorrt_api.h"

#include <cuda_runtime_api.h>
#include <string>

namespace bert
{

std::string describe(nvinfer1::DataType type);    // "fp16"
std::string describe(nvinfer1::Dims const& dims); // "[1, -1, 768]"; -1 is a dimension that is not known yet

// The shape with -1 for every dimension that is not a constant while the engine is built.
nvinfer1::Dims knownDims(nvinfer1::DimsExprs const& dims);

bool isFloating(nvinfer1::DataType type);         // fp32, fp16 or bf16
ElementType elementType(nvinfer1::DataType type); // of a floating type or int8

// Product of all dimensions but the last.
int64_t countRows(nvinfer1::Dims const& dims);

void checkCount(char const* what, int32_t found, int32_t expected);

// Throws if a kernel launch failed; the message says what to do where the reason is the choice of architectures.
void checkCuda(cudaError_t status);

} // namespace bert
