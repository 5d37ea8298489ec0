// The launcher of the embedding lookup with layer normalisation. It does not depend on TensorRT.
//
//     e = word[inputId] + type[tokenTypeId] + position[positionId]
//     y = (e - mean) / sqrt(variance + epsilon) * gamma + beta      over the last axis
#pragma once

#include "common/element_type.h"

#include <cstdint>
#include <cuda_runtime_api.h>

namespace bert
{

// One of the three tables, and the ids of the rows to read from it.
struct EmbeddingLookup
{
    int32_t const* ids; // (rows)
    void const* table;  // (size, hidden) of `type`
    int64_t size;       // at least 1
};

struct EmbLayerNormArguments
{
    EmbeddingLookup lookups[3]; // words, token types, positions
    void const* gamma;          // (hidden) of `weightType`
    void const* beta;           // (hidden) of `weightType`
    void* y;          // (rows, hidden) of `type`, or null; NaN in rows with an id that is not in its table
    int64_t rows;     // 0 is allowed
    int32_t hidden;   // at least 1
    float epsilon;    // greater than 0
    ElementType type; // of the tables and y
    ElementType weightType; // of gamma and beta: `type`, or fp32
    // (rows, hidden) of `quantizedType`: y * outputFactors / outputScale, rounded half to even and saturated; or null.
    // Where y is NaN: -128 in int8, NaN in E4M3.
    void* quantized{nullptr};
    float outputScale{1.0F};
    ElementType quantizedType{ElementType::kINT8}; // or kE4M3
    float const* outputFactors{nullptr};           // (hidden), or null for ones
};

// Returns the error of its launch; the kernel runs later, in the stream.
cudaError_t launchEmbLayerNorm(EmbLayerNormArguments const& arguments, cudaStream_t stream);

} // namespace bert
