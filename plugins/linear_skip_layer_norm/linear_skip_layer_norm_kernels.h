// The launchers of a linear layer with what follows it in BERT: residual sum and layer normalisation. They do not depend
// on TensorRT.
//
//     s = x W^T [* scales] + bias + skip      y = (s - mean) / sqrt(variance + epsilon) * gamma + beta
//
// over the last axis; scales[n] = xScale * weightScales[n] with 8-bit x and W. Accumulation is fp32 (int8: int32), and all
// that follows is fp32.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

struct LinearSkipLayerNormArguments
{
    void const* x;      // (rows, in) of `type`
    void const* weight; // W, (out, in) of `type`, as torch.nn.Linear has it
    void const* bias;   // (out) of `normType`, or null
    void const* skip;   // (rows, out) of `outputType`
    void const* gamma;  // (out) of `normType`
    void const* beta;   // (out) of `normType`
    void* y;            // (rows, out) of `outputType`
    // (rows, out) of `quantizedType`: y * outputFactors / outputScale, rounded half to even and saturated; or null
    void* quantized;
    void* workspace;        // (rows, out) of `outputType`, for x W^T where that is a kernel of its own
    int64_t rows;           // 0 is allowed
    int32_t in;             // at least 1
    int32_t out;            // at least 1
    float epsilon;          // greater than 0
    ElementType type;       // fp16, bf16, int8; E4M3 from 8.9 (Ada) on
    ElementType outputType; // fp16 or bf16; `type` where that has 16 bits
    ElementType normType;   // of gamma, beta and bias: `outputType`, or fp32
    // No kernel that itself triggers early writes weight, weightScales, bias, gamma, beta and outputFactors, so they may be
    // read before the wait for the previous kernel (common/programmatic_dependent_launch.cuh).
    bool constantWeights{false};
    float const* weightScales{nullptr};            // (out), with 8-bit types only
    float xScale{1.0F};                            // positive; with 8-bit types only
    ElementType quantizedType{ElementType::kINT8}; // or kE4M3
    float outputScale{1.0F};                       // of `quantized`
    float const* outputFactors{nullptr};           // (out), or null for ones
};

// One kernel where that is faster on this GPU, else two; they run later, in the stream. Two round x W^T to `outputType`
// before the residual sum.
cudaError_t launchLinearSkipLayerNorm(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);

// The two ways that it chooses from, for at least one row: Linear's kernel and SkipLayerNorm's, for any shape and GPU; and
// Hopper's one kernel, for arguments that suitsLinearSkipLayerNormHopper accepts.
cudaError_t launchLinearThenSkipLayerNorm(LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearSkipLayerNormHopper(
    LinearSkipLayerNormArguments const& arguments, cudaStream_t stream);

// Whether `out` is one of the widths of the one kernel, rows of x have a multiple of 128 bytes, and pointers are aligned to
// 16 bytes; and whether it was measured to be faster at such sizes.
bool suitsLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& arguments);
bool prefersLinearSkipLayerNormHopper(LinearSkipLayerNormArguments const& arguments);

} // namespace bert
