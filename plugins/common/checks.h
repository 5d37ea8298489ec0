// Text for error messages, and the checks that several plugins share.
#pragma once

#include "common/element_type.h"
#include "common/logging.h"
#include "common/tensorrt_api.h"

#include <cuda_runtime_api.h>
#include <initializer_list>
#include <string>
#include <vector>

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

// Types and shapes of a plugin's tensors; of a plugin that is configured, the largest shapes.
struct TypesAndShapes
{
    TypesAndShapes(nvinfer1::PluginTensorDesc const* tensors, int32_t count);
    TypesAndShapes(nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t count);

    std::vector<nvinfer1::DataType> types;
    std::vector<nvinfer1::Dims> shapes;
};

// Fields and tensors that all layer normalisations have. Each check throws a PluginError that names what is wrong.
void checkEpsilon(float epsilon);

// The length of the last axis, at least 1, or -1 where it is not known yet.
int64_t checkedHidden(char const* name, nvinfer1::Dims const& dims);

// gamma, beta and the like, which belong together.
struct Weight
{
    char const* name;
    nvinfer1::DataType type;
    nvinfer1::Dims dims;
};

// All of one type out of `allowed`.
void checkWeightTypes(
    std::vector<Weight> const& weights, std::initializer_list<nvinfer1::DataType> const& allowed);

// All [hidden]; a length of -1 is not known yet and fits.
void checkWeightShapes(std::vector<Weight> const& weights, int64_t hidden);

// Whether two shapes are the same as far as they are known.
bool mayBeEqual(nvinfer1::Dims const& a, nvinfer1::Dims const& b);

void checkCount(char const* what, int32_t found, int32_t expected);

// Throws if a kernel launch failed; the message says what to do where the reason is the choice of architectures.
void checkCuda(cudaError_t status);

} // namespace bert
