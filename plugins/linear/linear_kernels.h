// The launchers of the linear layer. They do not depend on TensorRT: the plugin calls them, and so can any other
// program.
//
//     y = activation(x W^T + bias)                     fp16 and bf16
//     y = activation(x W^T * scales + bias)            int8 and E4M3; scales[n] = xScale * weightScales[n]
//
//     activation: none, or GELU(v) = v Phi(v), Phi the normal distribution
//
// Accumulation is fp32 (int8: int32); scales, bias and GELU are fp32; y is rounded once. y in 8 bits is multiplied
// with outputFactors and divided by outputScale, rounded half to even and saturated.
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
    void const* bias;   // (out), or null; of `type`, with 8-bit types fp32
    void* y;            // (rows, out) of `type`, with 8-bit types of `outputType`
    int64_t rows;       // 0 is allowed
    int32_t in;         // at least 1
    int32_t out;        // at least 1
    bool gelu;
    ElementType type; // fp16, bf16, int8; E4M3 from 8.9 (Ada) on
    // No kernel that itself triggers early writes weight and bias, so they may be read before the wait for the
    // previous kernel (common/programmatic_dependent_launch.cuh).
    bool constantWeight{false};
    // With 8-bit types only.
    float const* weightScales{nullptr};         // (out), on the device, as constant as weight and bias
    float xScale{1.0F};                         // positive
    ElementType outputType{ElementType::kHALF}; // fp16, bf16 or `type`
    float outputScale{1.0F};                    // positive; of y in 8 bits
    float const* outputFactors{
        nullptr}; // (out), which y in 8 bits is multiplied with first; or null for ones
};

// Launches the kernel for this shape, alignment and GPU; it runs later, in the stream.
cudaError_t launchLinear(LinearArguments const& arguments, cudaStream_t stream);

// The two launchers that it chooses from, for at least one row: for any GPU that has the type, any shape and alignment;
// and for Hopper, for arguments that suitsHopperKernel accepts.
cudaError_t launchLinearTensor(LinearArguments const& arguments, cudaStream_t stream);
cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream);

// Without tensor cores, for fp16 and bf16: launchLinearTensor takes it for bf16 on Turing.
cudaError_t launchLinearPlain(LinearArguments const& arguments, cudaStream_t stream);

// The architecture that the tensor kernel's code was compiled for which the current device runs, as 10 times the compute
// capability: that of the device or an earlier one, depending on what the library was built for. The launchers refuse
// E4M3 below kE4M3_ARCHITECTURE with cudaErrorNotSupported. An error, and 0, if the device can run none of the code.
constexpr int kINT8_ARCHITECTURE = 75;
constexpr int kE4M3_ARCHITECTURE = 89;
cudaError_t findLinearTensorArchitecture(int& architecture);

// Whether rows of x, W and y are multiples of 16 bytes, and pointers are aligned to 16 bytes.
bool suitsHopperKernel(LinearArguments const& arguments);

// One of the shapes of tile that launchLinearHopper chooses from, and how many blocks share k of a tile (split-K).
struct LinearChoice
{
    int32_t shape;
    int32_t splits;
};

// For programs that measure: how many shapes there are, what they are called, how large they are (rows and columns of a
// tile, elements of k in a stage, rows and columns of blocks of a cluster, most blocks of a split), which one is chosen, and a launch of
// one. Not every number of splits can be for every k: then the launch says cudaErrorInvalidValue.
int32_t countLinearHopperShapes(ElementType type);
char const* nameLinearHopperShape(ElementType type, int32_t shape);
void describeLinearHopperShape(ElementType type, int32_t shape, int32_t* sizes); // 6 of them
cudaError_t chooseLinearHopper(LinearArguments const& arguments, LinearChoice& choice);
cudaError_t launchLinearHopper(
    LinearArguments const& arguments, LinearChoice const& choice, cudaStream_t stream);

} // namespace bert
