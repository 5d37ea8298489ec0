// The launchers of the linear layer. They do not depend on TensorRT: the plugin calls them, and so can any other
// program.
//
//     y = activation(x W^T + bias)      activation: none, or GELU(v) = v Phi(v), Phi the normal distribution
//
// Accumulation, bias and GELU are fp32; y is rounded once.
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

struct LinearArguments
{
    void const* x;      // (rows, in) of `type`
    void const* weight; // W, (out, in) of `type`, as torch.nn.Linear has it
    void const* bias;   // (out) of `type`, or null
    void* y;            // (rows, out) of `type`
    int64_t rows;       // 0 is allowed
    int32_t in;         // at least 1
    int32_t out;        // at least 1
    bool gelu;
    ElementType type; // fp16 or bf16
    // No kernel that itself triggers early writes weight and bias, so they may be read before the wait for the
    // previous kernel (common/programmatic_dependent_launch.cuh).
    bool constantWeight{false};
};

// Launches the kernel for this shape, alignment and GPU; it runs later, in the stream.
cudaError_t launchLinear(LinearArguments const& arguments, cudaStream_t stream);

// The two launchers that it chooses from, for at least one row: for any GPU, shape and alignment; and for Hopper, for
// arguments that suitsHopperKernel accepts.
cudaError_t launchLinearTensor(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream);

// Whether `in` is a multiple of 64, rows of y are multiples of 16 bytes, and pointers are aligned to 16 bytes.
bool suitsHopperKernel(LinearArguments const& arguments);

} // namespace bert
