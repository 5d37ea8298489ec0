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

std::string describe(DataType type);    // "fp16"
std::string describe(Dims const& dims); // "[1, -1, 768]"; -1 is a dimension that is not known yet

// The shape with -1 for every dimension that is not a constant at build time.
Dims constantDims(DimsExprs const& dims);

bool isFloating(DataType type);         // fp32, fp16 or bf16
bool isQuantized(DataType type);        // int8 or fp8 (E4M3), whose values have a scale
ElementType elementType(DataType type); // of one of these types

// The type that the field output_type names; throws unless it is one of `allowed`.
DataType outputTypeNamed(std::string const& name, std::initializer_list<DataType> const& allowed);
DataType floatingTypeNamed(std::string const& name); // fp32, fp16 or bf16

// Product of all dimensions but the last.
int64_t countRows(Dims const& dims);

// Types and shapes of a plugin's tensors. Of DynamicPluginTensorDesc, which configurePlugin gets, the largest shapes.
struct TypesAndShapes
{
    TypesAndShapes(PluginTensorDesc const* tensors, int32_t count);
    TypesAndShapes(DynamicPluginTensorDesc const* tensors, int32_t count);

    std::vector<DataType> types;
    std::vector<Dims> shapes;
};

// Fields and tensors that all layer normalisations have. Each check throws a PluginError that names the wrong value.
void checkEpsilon(float epsilon);

// The scale of a tensor of 8 bits in the range that kernels take, or 0 for a tensor that has none.
void checkScale(char const* field, float scale);

// The length of the last axis, at least 1, or -1 where it is not known yet.
int64_t checkedHidden(char const* name, Dims const& dims);

// gamma, beta or bias, which are checked together.
struct Weight
{
    char const* name;
    DataType type;
    Dims dims;
};

// All of one type out of `allowed`.
void checkWeightTypes(std::vector<Weight> const& weights, std::initializer_list<DataType> const& allowed);

// All [hidden]; a length of -1 is not known yet and fits.
void checkWeightShapes(std::vector<Weight> const& weights, int64_t hidden);

// The input output_factors (common/quantized_output.h): fp32.
void checkFactorsType(DataType type);

// Whether two dimensions, or two shapes, are equal as far as they are known (-1: not known yet).
bool mayBeEqual(int64_t a, int64_t b);
bool mayBeEqual(Dims const& a, Dims const& b);

void checkCount(char const* what, int32_t found, int32_t expected);

// Throws if a kernel launch failed. If the library was built for other architectures, the message says how to rebuild
// it.
void checkCuda(cudaError_t status);

} // namespace bert
