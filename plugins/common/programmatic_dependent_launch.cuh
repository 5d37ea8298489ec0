// Programmatic dependent launch (PDL): from Hopper on, a kernel may be launched while the kernel before it in the
// stream still runs. Its blocks are scheduled early and then wait, instead of being scheduled after the last block of
// the other kernel has finished; for short kernels this hides most of the launch latency.
//
// Wait. A kernel started with launchDependent must call waitForPreviousKernel before it writes, and before it reads
// anything but constants. If every kernel of a chain waits before it ends, the chain is transitive: after its wait, a
// kernel sees the results of all kernels before it, not only of the last one.
//
// Trigger. A kernel calls triggerDependentLaunch to allow the launch of the next kernel before its own end. A kernel
// that never triggers allows it at its end. Triggering too early costs time: blocks of the next kernel are scheduled
// while few multiprocessors have room, and several of them share one multiprocessor instead of having one each. So
// each kernel chooses when to trigger (docs/kernels/ has the measurements).
//
// Constants are the weights of Linear (constant_weight) and of SkipLayerNorm (constant_weights). Reading them before
// the wait is safe unless a kernel that itself triggers early writes that buffer, any number of launches back: it may
// still be running.
#pragma once

#include "common/function_property_cache.h"

#include <array>
#include <cstdint>
#include <cuda_runtime.h>

namespace bert
{

// Returns when the kernels before this one have finished and their writes are visible.
inline __device__ void waitForPreviousKernel()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// Allows the launch of the next kernel in the stream from now on, if that kernel is launched with launchDependent.
// The work that its blocks do before their wait then overlaps with the rest of this kernel.
inline __device__ void triggerDependentLaunch()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Results of waitsForPreviousKernel.
inline FunctionPropertyCache gWaitsForPreviousKernel;

// Whether the machine code of `kernel` that the current device runs contains the wait above. Code compiled from the
// PTX of an older architecture does not, and would read data that is not written yet.
template <typename Kernel>
bool waitsForPreviousKernel(Kernel* kernel)
{
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess
           && gWaitsForPreviousKernel.get(kernel, device,
               [&]
               {
                   cudaFuncAttributes attributes{};
                   bool const found = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
                   return found && attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
               });
}

// elements / size, rounded up.
__host__ __device__ constexpr int64_t divideUp(int64_t elements, int64_t size)
{
    return (elements + size - 1) / size;
}

// Blocks, threads per block, bytes of dynamic shared memory, and blocks per cluster.
struct LaunchSize
{
    unsigned int blocks;
    int threads;
    size_t sharedMemory{0};
    unsigned int cluster{1};
};

// L1 cache and shared memory of a multiprocessor are one memory. To change the split between them, the multiprocessor
// must be idle, so a kernel with another split cannot overlap with the kernel before. A kernel that needs little
// shared memory, between kernels that need much, therefore asks for their split.
template <typename Kernel>
cudaError_t preferSharedMemory(Kernel* kernel)
{
    return cudaFuncSetAttribute(
        kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

// Launches a kernel that calls waitForPreviousKernel: with programmatic dependent launch where the GPU supports it,
// otherwise as an ordinary launch.
template <typename... Parameters, typename... Arguments>
cudaError_t launchDependent(
    void (*kernel)(Parameters...), LaunchSize const& size, cudaStream_t stream, Arguments... arguments)
{
    constexpr size_t kALLOWED_BY_DEFAULT = 48 * 1024;
    if (size.sharedMemory > kALLOWED_BY_DEFAULT)
    {
        cudaError_t const allowed = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(size.sharedMemory));
        if (allowed != cudaSuccess)
        {
            return allowed;
        }
    }
    std::array<cudaLaunchAttribute, 2> attributes{};
    unsigned int count = 0;
    if (waitsForPreviousKernel(kernel))
    {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count].val.programmaticStreamSerializationAllowed = 1;
        ++count;
    }
    if (size.cluster > 1)
    {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count].val.clusterDim = {size.cluster, 1, 1};
        ++count;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size.blocks);
    config.blockDim = dim3(static_cast<unsigned int>(size.threads));
    config.dynamicSmemBytes = size.sharedMemory;
    config.stream = stream;
    config.attrs = attributes.data();
    config.numAttrs = count;
    cudaError_t const status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    return status == cudaSuccess ? cudaGetLastError() : status;
}
template <typename... Parameters, typename... Arguments>
cudaError_t launchDependent(void (*kernel)(Parameters...), unsigned int blocks, int threads,
    cudaStream_t stream, Arguments... arguments)
{
    return launchDependent(kernel, LaunchSize{blocks, threads}, stream, arguments...);
}

} // namespace bert
