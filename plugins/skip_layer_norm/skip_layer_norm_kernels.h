// The launcher of the residual sum with layer normalisation. It does not depend on TensorRT.
//
//     s = x + skip [+ bias]      y = (s - mean) / sqrt(variance + epsilon) * gamma + beta      over the last axis
//
// The sum is never rounded to a narrow type: the residual sums have the largest values of a trained BERT, and the
// largest fp16 number is 65504.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

struct SkipLayerNormArguments
{
    void const* x;     // (rows, hidden) of `type`, or int8 if xScale > 0
    void const* skip;  // (rows, hidden) of `type`, or int8 if skipScale > 0
    void const* gamma; // (hidden) of `weightType`
    void const* beta;  // (hidden) of `weightType`
    void const* bias;  // (hidden) of `weightType`, or null
    void* y;           // (rows, hidden) of `type`, or null
    // (rows, hidden) of `quantizedType`: y * outputFactors / outputScale, rounded and saturated; or null
    void* quantized;
    int64_t rows;           // 0 is allowed
    int32_t hidden;         // at least 1
    float epsilon;          // greater than 0
    float xScale;           // x is int8 * xScale; 0: x is of `type`
    float skipScale;        // likewise
    float outputScale;      // of `quantized`
    ElementType type;       // of those of x, skip and y that are floating
    ElementType weightType; // of gamma, beta and bias: `type`, or fp32
    // No kernel that itself triggers early writes gamma, beta, bias and outputFactors, so they may be read before the wait for the
    // previous kernel (common/programmatic_dependent_launch.cuh).
    bool constantWeights{false};
    ElementType quantizedType{ElementType::kINT8}; // or kE4M3
    float const* outputFactors{nullptr};           // (hidden), or null for ones
};

// Returns the error of its launch; the kernel runs later, in the stream.
cudaError_t launchSkipLayerNorm(SkipLayerNormArguments const& arguments, cudaStream_t stream);

} // namespace bert
