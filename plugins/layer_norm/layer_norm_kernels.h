// The launchers of the three layer normalisation kernels. They do not depend on TensorRT: the plugin calls them, and
// so can any other program.
//
//     y = (x - mean) / sqrt(variance + epsilon) * gamma + beta      over the last axis
#pragma once

#include "common/element_type.h"

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

struct LayerNormArguments
{
    void const* x;          // (rows, hidden) of `type`
    void const* gamma;      // (hidden) of `weightType`
    void const* beta;       // (hidden) of `weightType`
    void* y;                // (rows, hidden) of `type`
    float* workspace;       // layerNormBasicWorkspace() bytes for the basic kernel, else unused
    int64_t rows;           // 0 is allowed
    int32_t hidden;         // at least 1
    float epsilon;          // greater than 0
    ElementType type;       // of x and y
    ElementType weightType; // of gamma and beta: `type`, or fp32
};

// Each returns the error of its launches; the kernels run later, in the stream.
cudaError_t launchLayerNormBasic(LayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLayerNormFused(LayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLayerNormFast(LayerNormArguments const& arguments, cudaStream_t stream);

// Bytes of workspace that the basic kernel needs.
size_t layerNormBasicWorkspace(int64_t rows);

} // namespace bert
