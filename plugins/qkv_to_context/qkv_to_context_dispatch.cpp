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
// Packed sequences of more than 64 tokens are faster in the hopper kernel if the short one has more blocks than are
// resident at the same time.
bool prefersShortKernel(QkvToContextArguments const& arguments, int multiprocessors)
{
    return suitsShortKernel(arguments)
           && (arguments.cuSeqlens == nullptr || longestSequence(arguments) <= 64
               || int64_t{arguments.sequences} * arguments.heads <= 2 * multiprocessors);
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
            return suitsHopperInt8Kernel(arguments) ? launchQkvToContextHopperInt8(arguments, stream)
                                                    : launchQkvToContextTensor(arguments, stream);
        }
        int multiprocessors = 0;
        cudaError_t const counted = countMultiprocessors(multiprocessors);
        if (counted != cudaSuccess)
        {
            return counted;
        }
        return prefersShortKernel(arguments, multiprocessors) ? launchQkvToContextShort(arguments, stream)
                                                              : launchQkvToContextHopper(arguments, stream);
    }
#endif
    return launchQkvToContextTensor(arguments, stream);
}

} // namespace bert
