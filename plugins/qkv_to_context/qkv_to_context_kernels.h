// The launchers of the attention kernels. They know nothing of TensorRT: the plugin calls them, and so can any other
// program.
//
//     context = softmax(Q K^T / sqrt(D)) V      for each head of each sentence
#pragma once

#include "common/element_type.h"

#include <cmath>
#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

// Letters: B sentences, S tokens of each, T tokens of all, N heads, D elements of a head.
struct QkvToContextArguments
{
    void const* qkv;          // (T, 3, N, D) of `type`, T = B * S unless the sentences are packed
    int32_t const* mask;      // (B, S), 0 where a key is padding; null: there is no padding
    int32_t const* cuSeqlens; // (B + 1), where each sentence begins and the last one ends; null: not packed
    void* context;            // (T, N, D) of `outputType`
    int32_t sentences;        // B
    int32_t length;           // S; for packed sentences T
    int32_t heads;            // N
    int32_t headSize;         // D: 32, 64 or 128
    float qkvScale;           // what an int8 of qkv counts; 1 for other types
    float outputScale;        // what an int8 of context counts; 1 for other types
    ElementType type;         // fp32, fp16, bf16, int8
    ElementType outputType;   // `type` or int8; for qkv of int8 any
};

// Launches the kernel that suits types, shape and GPU; it runs later, in the stream. Pointers to tensors must be
// aligned to 16 bytes. Sentences of which there is no valid description (cuSeqlens does not begin with 0, decreases or
// goes beyond T) give NaN everywhere, or -128 where context is int8.
cudaError_t launchQkvToContext(QkvToContextArguments const& arguments, cudaStream_t stream);

// The kernels that it chooses from: with ordinary fp32 arithmetic (fp32 and bf16), with the tensor cores of any GPU
// (fp16, int8; bf16 from 8.0 on), and with those of Hopper. There are two for fp16 and bf16, and for int8 one for
// everything, one for short sentences, one for few, and one for many long ones.
cudaError_t launchQkvToContextBasic(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextTensor(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextHopper(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextShort(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextHopperInt8(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextShortInt8(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextSplitInt8(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextSharedInt8(QkvToContextArguments const& arguments, cudaStream_t stream);

// What those that do not take everything take. The host does not know how long packed sentences are.
inline bool suitsShortKernel(QkvToContextArguments const& arguments)
{
    bool const twoBytes = arguments.type == ElementType::kHALF || arguments.type == ElementType::kBF16;
    return twoBytes && arguments.outputType == arguments.type && arguments.cuSeqlens == nullptr
           && arguments.length <= 128 && arguments.headSize <= 64;
}

// What the product of a query and a key counts as an exponent of 2.
inline float scoreScale(QkvToContextArguments const& arguments)
{
    double const log2e = 1.4426950408889634;
    double const scale = static_cast<double>(arguments.qkvScale) * arguments.qkvScale;
    return static_cast<float>(scale * log2e / std::sqrt(arguments.headSize));
}

// Hopper's kernels for int8 take sums out of the bits of floats around 2^23 and round contexts by adding such a float.
// That is enough for all but absurd scales: a step of a score counts at most 4 in the exponent (for heads of 64, an
// int8 of qkv at most 4.7), and an int8 of qkv at most so many of context.
constexpr float kMOST_SCORE_SCALE = 4.0F;
constexpr float kMOST_OUTPUT_FACTOR = 16384.0F;
inline bool suitsHopperInt8Kernel(QkvToContextArguments const& arguments)
{
    return arguments.type == ElementType::kINT8 && scoreScale(arguments) <= kMOST_SCORE_SCALE
           && (arguments.outputType != ElementType::kINT8
               || arguments.qkvScale / arguments.outputScale <= kMOST_OUTPUT_FACTOR);
}
inline bool suitsSharedInt8Kernel(QkvToContextArguments const& arguments)
{
    return suitsHopperInt8Kernel(arguments) && arguments.cuSeqlens == nullptr && arguments.headSize <= 64;
}
inline bool suitsSplitInt8Kernel(QkvToContextArguments const& arguments)
{
    return suitsSharedInt8Kernel(arguments) && arguments.length <= 512;
}
inline bool suitsShortInt8Kernel(QkvToContextArguments const& arguments)
{
    return suitsSharedInt8Kernel(arguments) && arguments.length <= 128;
}

} // namespace bert
