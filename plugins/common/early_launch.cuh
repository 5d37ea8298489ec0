// Programmatic dependent launch: from Hopper on, a kernel may be launched while the kernel before it in the stream
// still runs. Its blocks get their place on the GPU and then wait, instead of being placed after the last one of the
// other kernel is done; where kernels are short, that is most of what a launch costs.
//
// A kernel started with launchEarly must call waitForPreviousKernel before it writes, and before it reads anything
// but constants. A chain in which every kernel waits before it ends is transitive: after its wait, a kernel sees what
// all kernels before it have written, not only the last one.
//
// Constants are the weights of Linear (constant_weight) and of SkipLayerNorm (constant_weights). Reading them before
// the wait is safe unless a kernel that itself triggers early (letNextKernelIn; in the code of others
// cudaTriggerProgrammaticLaunchCompletion) writes that buffer, any number of launches back: it may still be running.
// A kernel that does not trigger lets the next one in at its end only. Measured on an H100: 0 stale reads of 299
// after an ordinary kernel, a copy, or an event from another stream, also with launches in between; 298 of 299 after
// a kernel that triggers early.
//
// A kernel triggers with letNextKernelIn: the next one can then be launched without waiting for this one's end.
// Triggering too early costs time: blocks of the next kernel get their places while few are free, and wait there on
// top of each other, instead of one on each multiprocessor. Measured on an H200: attention of 8 sentences of 128
// takes 4.3 us where it triggers first, 3.3 where it triggers when the keys are there. Linear triggers first or, with
// its largest tiles, when the products are computed. SkipLayerNorm in one wave triggers after its loads (128 rows:
// 2.13 to 1.67 us, 2048 rows: 3.94 to 3.66; BERT-base's encoder, one sentence: 305 to 287); LayerNorm loses by it
// with 2048 rows and does without.
#pragma once

#include "common/function_answers.h"

#include <array>
#include <cstdint>
#include <cuda_runtime.h>

namespace bert
{

// Returns once the kernels before this one are done and what they wrote can be read.
inline __device__ void waitForPreviousKernel()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// Allows the next kernel of the stream to be launched from now on, if it is launched early. What its blocks do before
// they wait is over then when this kernel ends.
inline __device__ void letNextKernelIn()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// What waitsForPreviousKernel has found out.
inline FunctionAnswers gWaitsForPreviousKernel;

// Whether the code of `kernel` that the current device runs has the wait above in it. Code for an older architecture,
// which a Hopper GPU runs from its PTX, has not, and would read what is not written yet.
template <typename Kernel>
bool waitsForPreviousKernel(Kernel* kernel)
{
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess
           && gWaitsForPreviousKernel.get(kernel, device,
               [&]
               {
                   cudaFuncAttributes attributes{};
                   bool const known = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
                   return known && attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
               });
}

// How many pieces of `size` cover `elements`.
__host__ __device__ constexpr int64_t divideUp(int64_t elements, int64_t size)
{
    return (elements + size - 1) / size;
}

// Blocks, threads, bytes of shared memory beyond what the kernel declares, and blocks to a cluster.
struct LaunchSize
{
    unsigned int blocks;
    int threads;
    size_t sharedMemory{0};
    unsigned int cluster{1};
};

// A multiprocessor's L1 cache and shared memory are one memory, split anew when a kernel wants another split, for which
// the kernel before must be done. A kernel without much shared memory that stands between kernels with much of it can
// ask for their split. (BERT-base's encoder, 8 sentences, residual layer norms: 561 to 551 us on an H200.)
template <typename Kernel>
cudaError_t preferSharedMemory(Kernel* kernel)
{
    return cudaFuncSetAttribute(
        kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

// Launches a kernel that waits for the one before it, early where the GPU can do that.
template <typename... Parameters, typename... Arguments>
cudaError_t launchEarly(
    void (*kernel)(Parameters...), LaunchSize const& size, cudaStream_t stream, Arguments... arguments)
{
    constexpr size_t kALWAYS_ALLOWED = 48 * 1024;
    if (size.sharedMemory > kALWAYS_ALLOWED)
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
cudaError_t launchEarly(void (*kernel)(Parameters...), unsigned int blocks, int threads, cudaStream_t stream,
    Arguments... arguments)
{
    return launchEarly(kernel, LaunchSize{blocks, threads}, stream, arguments...);
}

} // namespace bert
