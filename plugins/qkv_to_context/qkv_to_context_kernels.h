// The launchers of the attention kernels. They do not depend on TensorRT: the plugin calls them, and so can any other
// program.
//
//     context = softmax(Q K^T / sqrt(D)) V      for each head of each sequence
#pragma once

#include "common/element_type.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

// Letters: B sequences, S tokens of each, T tokens of all, N heads, D elements of a head.
struct QkvToContextArguments
{
    void const* qkv;          // (T, 3, N, D) of `type`, T = B * S unless packed
    int32_t const* mask;      // attention mask (B, S), 0 where a key is padding; null: no padding
    int32_t const* cuSeqlens; // (B + 1), starts of all sequences, then the end of the last; null: not packed
    void* context;            // (T, N, D) of `outputType`
    int32_t sequences;        // B
    int32_t length;           // S; T if packed
    int32_t heads;            // N
    int32_t headSize;         // D: 32, 64 or 128
    float qkvScale;           // real value = int8 of qkv * qkvScale; 1 for other types
    float outputScale;        // the same for context
    ElementType type;         // fp32, fp16, bf16, int8
    ElementType outputType;   // `type`, int8 or E4M3; for qkv of int8 any but E4M3
    // Packed: the tokens of the longest sequence, as far as the host knows; 0 if it does not. It chooses the kernel
    // only: longer sequences are computed as well, but slowly.
    int32_t maxSequenceLength{0};
};

// Launches the kernel for these types, shape and GPU; it runs later, in the stream. Pointers to tensors must be
// aligned to 16 bytes. If cuSeqlens is invalid (it does not begin with 0, decreases or exceeds T), the whole context
// becomes NaN, or -128 if it is int8.
cudaError_t launchQkvToContext(QkvToContextArguments const& arguments, cudaStream_t stream);

// The kernels that it chooses from: basic with ordinary fp32 arithmetic (fp32 and bf16), tensor with the tensor cores
// of any GPU (fp16, int8; bf16 from 8.0 on), and those for Hopper: hopper and hopper, int8 for any problem, and short
// for short sequences in fp16 and bf16.
cudaError_t launchQkvToContextBasic(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextTensor(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextHopper(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextShort(QkvToContextArguments const& arguments, cudaStream_t stream);
cudaError_t launchQkvToContextHopperInt8(QkvToContextArguments const& arguments, cudaStream_t stream);

// The longest sequence that the host expects: of packed sequences one that has all tokens, unless it knows more.
inline int32_t longestSequence(QkvToContextArguments const& arguments)
{
    bool const isKnown = arguments.cuSeqlens != nullptr && arguments.maxSequenceLength > 0;
    return isKnown ? std::min(arguments.length, arguments.maxSequenceLength) : arguments.length;
}

// The limits of the specialised kernels.
inline bool suitsShortKernel(QkvToContextArguments const& arguments)
{
    bool const twoBytes = arguments.type == ElementType::kHALF || arguments.type == ElementType::kBF16;
    return twoBytes && arguments.sequences > 0 && longestSequence(arguments) <= 128
           && arguments.headSize <= 64;
}

// The factor from a product of query and key to the exponent of 2 in the softmax.
inline float scoreScale(QkvToContextArguments const& arguments)
{
    double const log2e = 1.4426950408889634;
    double const scale = static_cast<double>(arguments.qkvScale) * arguments.qkvScale;
    return static_cast<float>(scale * log2e / std::sqrt(arguments.headSize));
}

// Hopper's int8 kernel reads scores from the bits of floats around 2^23, and rounds contexts by adding such a float.
// That is exact for all but absurd scales: one unit of a score must be at most 4 in the exponent (a qkvScale of at
// most 4.7 for heads of 64), and qkvScale at most 16384 times outputScale.
constexpr float kMAX_SCORE_SCALE = 4.0F;
constexpr float kMAX_OUTPUT_FACTOR = 16384.0F;
inline bool suitsHopperInt8Kernel(QkvToContextArguments const& arguments)
{
    return arguments.type == ElementType::kINT8 && scoreScale(arguments) <= kMAX_SCORE_SCALE
           && (arguments.outputType != ElementType::kINT8
               || arguments.qkvScale / arguments.outputScale <= kMAX_OUTPUT_FACTOR);
}

} // namespace bert
