// The attention kernels as C functions, for benchmarks/ladders.py, which loads them from a shared library (target
// qkv_to_context_functions) and compares them with PyTorch in one process.
#include "common/capability.h"
#include "qkv_to_context/qkv_to_context_ladder.h"

#include <string>

#define BERT_EXPORT extern "C" __attribute__((visibility("default")))

using namespace bert;

// As QkvToContextArguments, for sequences of equal length without a mask.
struct AttentionCall
{
    void const* qkv;
    void* context;
    float* scores; // countPlainScores, for the plain kernels; else unused
    int32_t sequences;
    int32_t length;
    int32_t heads;
    int32_t headSize;
    int32_t type; // ElementType, of qkv and of the context
};

// Launches the kernel of that name. Returns a cudaError_t: cudaErrorInvalidValue if there is no such kernel, here or on
// this GPU, or if it does not take the call.
BERT_EXPORT int32_t attentionLaunch(AttentionCall const* call, char const* kernel, void* stream)
{
    auto const type = static_cast<ElementType>(call->type);
    QkvToContextArguments const a{call->qkv, nullptr, nullptr, call->context, call->sequences, call->length,
        call->heads, call->headSize, 1.0F, 1.0F, type, type};
    auto* const cudaStream = static_cast<cudaStream_t>(stream);
    std::string const name{kernel};
    if (name == "plain")
    {
        return launchQkvToContextPlain(a, call->scores, cudaStream);
    }
    if (name == "basic")
    {
        return type == ElementType::kHALF ? cudaErrorInvalidValue : launchQkvToContextBasic(a, cudaStream);
    }
    if (name == "tensor")
    {
        return type == ElementType::kFLOAT ? cudaErrorInvalidValue : launchQkvToContextTensor(a, cudaStream);
    }
#if defined(BERT_HOPPER)
    Capability gpu;
    cudaError_t const status = currentCapability(gpu);
    if (status != cudaSuccess)
    {
        return status;
    }
    bool const onHopper = gpu.major == 9 && gpu.minor == 0 && type != ElementType::kFLOAT;
    if (name == "hopper" && onHopper)
    {
        return launchQkvToContextHopper(a, cudaStream);
    }
    if (name == "short" && onHopper && suitsShortKernel(a))
    {
        return launchQkvToContextShort(a, cudaStream);
    }
#endif
    return cudaErrorInvalidValue;
}
