// The launchers of the linear layer. They know nothing of TensorRT: the plugin calls them, and so can any other
// program.
//
//     y = activation(x W^T + bias)      activation: none, or GELU(v) = v Phi(v), Phi the normal distribution
//
// Products are summed, the bias is added and GELU is taken in fp32; y is rounded once.
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
    // No kernel that itself triggers early writes weight and bias, so they may be read while the kernel before this one
    // still runs (common/early_launch.cuh).
    bool constantWeight{false};
};

// Launches the kernel that suits shape, alignment and GPU; it runs later, in the stream.
cudaError_t launchLinear(LinearArguments const& arguments, cudaStream_t stream);

// The two that it chooses from, for at least one row: for any GPU, shape and alignment; and for Hopper, with what
// hopperTakes says yes to.
cudaError_t launchLinearTensor(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream);

// `in` a multiple of 64 elements, rows of y a multiple of 16 bytes long, and pointers aligned to 16 bytes.
bool hopperTakes(LinearArguments const& arguments);

} // namespace bert
