// The first rung of the ladder to the attention kernels: to read, and to measure beside them (docs/kernels/attention.md).
// It is linked into the check program and the functions for benchmarks only.
#pragma once

#include "qkv_to_context/qkv_to_context_kernels.h"

#include <cstddef>

namespace bert
{

// T, the tokens of all sequences.
inline int64_t countTokens(QkvToContextArguments const& arguments)
{
    return arguments.cuSeqlens != nullptr ? arguments.length
                                          : int64_t{arguments.sequences} * arguments.length;
}

// How many scores of fp32 the plain kernels need: (N, T, S), and (N, T, T) if packed, since the host does not know the
// lengths.
inline size_t countPlainScores(QkvToContextArguments const& arguments)
{
    return static_cast<size_t>(arguments.heads) * countTokens(arguments) * arguments.length;
}

// fp32, fp16 and bf16, with any output type.
cudaError_t launchQkvToContextPlain(
    QkvToContextArguments const& arguments, float* scores, cudaStream_t stream);

} // namespace bert
