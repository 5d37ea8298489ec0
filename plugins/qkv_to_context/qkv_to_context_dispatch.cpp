// Which of the attention kernels suits types, shape and GPU.
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

// A block of the shared kernel takes 192 queries, and there is one to a multiprocessor: worth it where all of them have
// one tile at most, or where hardly a row of theirs remains empty, neither at a sentence's end nor in the last round.
bool prefersSharedInt8(QkvToContextArguments const& a, int multiprocessors)
{
    constexpr int kROWS = 192;
    int64_t const pairs = int64_t{a.sentences} * a.heads;
    int64_t const tiles = pairs * ((a.length + kROWS - 1) / kROWS);
    int64_t const rounds = (tiles + multiprocessors - 1) / multiprocessors;
    return rounds == 1 || pairs * a.length * 16 >= rounds * multiprocessors * kROWS * 15;
}

// The one place where it is decided how int8 are shared out. Microseconds on an H200, 12 heads of 64, development runs:
//
//     B, S               1, 128   8, 128   32, 128   1, 384   32, 384   8, 512
//     short              2.16     2.97     5.66
//     split                                          4.73
//     hopper             4.22     4.45     6.69      8.66     40.88     17.63
//     shared                                         7.80     38.44     25.21
//     fp16               2.28     3.33     6.09      4.72     39.44     18.01
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
    // The split kernel, as long as all its blocks are there at a time: two to a multiprocessor if keys are few.
    int64_t const tiles = int64_t{a.sentences} * a.heads * ((a.length + 63) / 64);
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
    if (arguments.length == 0 || (arguments.cuSeqlens == nullptr && arguments.sentences == 0))
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
