// Properties of the current GPU.
#pragma once

#include <cuda_runtime_api.h>

namespace bert
{

// Its compute capability: 9.0 is Hopper.
struct Capability
{
    int major{};
    int minor{};
};

inline cudaError_t currentCapability(Capability& capability)
{
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&capability.major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&capability.minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    return status;
}

inline cudaError_t countMultiprocessors(int& count)
{
    int device = 0;
    cudaError_t const status = cudaGetDevice(&device);
    return status == cudaSuccess ? cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device)
                                 : status;
}

} // namespace bert
