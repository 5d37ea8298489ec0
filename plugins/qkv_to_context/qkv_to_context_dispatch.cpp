// Chooses an attention kernel by types, shape and GPU. docs/kernels/attention.md has the measurements behind the
// choice.
#include "common/capability.h"
#include "qkv_to_context/qkv_to_context_kernels.h"

namespace bert
{

namespace
{

bool isAligned16(void const* pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

#if defined(BERT_HOPPER)

// The shared kernel has one block of 192 queries per multiprocessor. It pays off if every block has at most one tile,
// or if at least 15/16 of the rows of all rounds are in use: few are empty at the ends of sequences and in the last
// round.
bool prefersSharedInt8(QkvToContextArguments const& a, int multiprocessors)
{
    constexpr int kROWS = 192;
    int64_t const pairs = int64_t{a.sequences} * a.heads;
    int64_t const tiles = pairs * ((a.length + kROWS - 1) / kROWS);
    int64_t const rounds = (tiles + multiprocessors - 1) / multiprocessors;
    return rounds == 1 || pairs * a.length * 16 >= rounds * multiprocessors * kROWS * 15;
}

// Chooses an int8 kernel for Hopper.
cudaError_t launchInt8(QkvToContextArguments const& a, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (!suitsHopperInt8Kernel(a))
    {
        return launchQkvToContextTensor(a, stream);
    }
    if (suitsShortInt8Kernel(a))
    {
        return launchQkvToContextShortInt8(a, stream);
    }
    // The split kernel, as long as all its blocks are resident at the same time: two per multiprocessor if keys are
    // few.
    int64_t const tiles = int64_t{a.sequences} * a.heads * ((a.length + 63) / 64);
    int const blocks = a.length <= 256 ? 2 : 1;
    if (suitsSplitInt8Kernel(a) && tiles <= blocks * multiprocessors)
    {
        return launchQkvToContextSplitInt8(a, stream);
    }
    if (suitsSharedInt8Kernel(a) && prefersSharedInt8(a, multiprocessors))
    {
        return launchQkvToContextSharedInt8(a, stream);
    }
    return launchQkvToContextHopperInt8(a, stream);
}

#endif

} // namespace

cudaError_t launchQkvToContext(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    if (arguments.length == 0 || (arguments.cuSeqlens == nullptr && arguments.sequences == 0))
    {
        return cudaSuccess; // a grid of no blocks is an error to CUDA
    }
    if (!isAligned16(arguments.qkv) || !isAligned16(arguments.context))
    {
        return cudaErrorMisalignedAddress;
    }
    if (arguments.type == ElementType::kFLOAT)
    {
        return launchQkvToContextBasic(arguments, stream);
    }
    Capability capability;
    cudaError_t const status = currentCapability(capability);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (capability.major < 8 && arguments.type == ElementType::kBF16)
    {
        return launchQkvToContextBasic(arguments, stream);
    }
#if defined(BERT_HOPPER)
    if (capability.major == 9 && capability.minor == 0)
    {
        if (arguments.type == ElementType::kINT8)
        {
            return launchInt8(arguments, stream);
        }
        return suitsShortKernel(arguments) ? launchQkvToContextShort(arguments, stream)
                                           : launchQkvToContextHopper(arguments, stream);
    }
#endif
    return launchQkvToContextTensor(arguments, stream);
}

} // namespace bert
