// Attention, first rung of the ladder: the formula as it is written, in three kernels, with the S x S scores of all heads
// in memory. A block has one query and one head. Every key and value is read again for every query, and every score is
// written three times and read four times. Next: qkv_to_context_basic.cu, where scores stay in registers.
#include "qkv_to_context/qkv_to_context_common.cuh"
#include "qkv_to_context/qkv_to_context_ladder.h"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kBLOCK = 128; // threads for the scores of a query

// Where the scores of a query are.
struct Scores
{
    float* data;    // (N, T, stride)
    int64_t tokens; // T
    int64_t stride; // keys of the longest sequence there can be

    __device__ float* of(int64_t token, uint32_t head) const
    {
        return data + (head * tokens + token) * stride;
    }
};

// The head that a block has, and its query, as a tile of one; without queries there is nothing to do.
struct Query
{
    uint32_t head;
    QueryTile tile;

    explicit __device__ Query(AttentionProblem const& p)
        : head(blockIdx.x % p.heads)
        , tile(findTile<1>(p, blockIdx.x / p.heads))
    {
    }
};

// scores = Q K^T / sqrt(D) * log2(e), -infinity for padding. A thread computes a score at a time.
template <typename In, int kSIZE>
__global__ void qkvToContextScoresKernel(AttentionProblem const p, Scores const scores)
{
    Query const query{p};
    QueryTile const& tile = query.tile;
    if (tile.invalid || tile.queries <= 0)
    {
        return;
    }
    int64_t const hidden = int64_t{p.heads} * kSIZE;
    In const* const ofHead = static_cast<In const*>(p.qkv) + query.head * kSIZE; // (T, 3, N, D)
    In const* const q = ofHead + tile.firstQuery * 3 * hidden;
    int32_t const* const mask = p.mask == nullptr ? nullptr : p.mask + int64_t{tile.sequence} * p.length;
    for (auto key = static_cast<int32_t>(threadIdx.x); key < tile.keys; key += kBLOCK)
    {
        In const* const k = ofHead + (tile.firstKey + key) * 3 * hidden + hidden;
        float sum = 0.0F;
        for (int d = 0; d < kSIZE; ++d)
        {
            sum = fmaf(toFloat(q[d]), toFloat(k[d]), sum);
        }
        bool const counts = mask == nullptr || mask[key] != 0;
        scores.of(tile.firstQuery, query.head)[key] = counts ? sum * p.scale : kNEGATIVE_INFINITY;
    }
}

// The softmax of a query's scores, in place; 2^score, since scores have the factor log2(e). One warp.
__global__ void qkvToContextSoftmaxKernel(AttentionProblem const p, Scores const scores)
{
    Query const query{p};
    if (query.tile.invalid || query.tile.queries <= 0)
    {
        return;
    }
    float* const ofQuery = scores.of(query.tile.firstQuery, query.head);
    auto const lane = static_cast<int32_t>(threadIdx.x);
    float largest = kNEGATIVE_INFINITY;
    for (int32_t key = lane; key < query.tile.keys; key += kWARP)
    {
        largest = fmaxf(largest, ofQuery[key]);
    }
    for (int distance = kWARP / 2; distance > 0; distance /= 2)
    {
        largest = fmaxf(largest, shuffleXor(largest, distance));
    }
    float sum = 0.0F;
    for (int32_t key = lane; key < query.tile.keys; key += kWARP)
    {
        float const score = ofQuery[key]; // if all keys are padding, -infinity minus -infinity would be NaN
        float const weight = score == kNEGATIVE_INFINITY ? 0.0F : exp2f(score - largest);
        ofQuery[key] = weight;
        sum += weight;
    }
    sum = warpSum<kWARP>(sum);
    for (int32_t key = lane; key < query.tile.keys; key += kWARP)
    {
        ofQuery[key] = sum == 0.0F ? 0.0F : ofQuery[key] / sum;
    }
}

// context = weights V. A thread computes one element; a block has D threads.
template <typename In, int kSIZE>
__global__ void qkvToContextWeighKernel(AttentionProblem const p, Scores const scores)
{
    Query const query{p};
    QueryTile const& tile = query.tile;
    if (tile.invalid)
    {
        poison<kSIZE>(p, tile, query.head, kSIZE);
        return;
    }
    if (tile.queries <= 0)
    {
        return;
    }
    int64_t const hidden = int64_t{p.heads} * kSIZE;
    In const* const v = static_cast<In const*>(p.qkv) + tile.firstKey * 3 * hidden + 2 * hidden
                        + query.head * kSIZE + threadIdx.x;
    float const* const weights = scores.of(tile.firstQuery, query.head);
    float sum = 0.0F;
    for (int32_t key = 0; key < tile.keys; ++key)
    {
        sum = fmaf(weights[key], toFloat(v[key * 3 * hidden]), sum);
    }
    dispatchOutput(p.outputType,
        [&](auto element)
        {
            using Out = decltype(element);
            contextRow<Out, kSIZE>(p, tile.firstQuery, query.head)[threadIdx.x]
                = fromFloat<Out>(sum * p.outputFactor);
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename In, int kSIZE>
cudaError_t launchSize(QkvToContextArguments const& a, float* memory, cudaStream_t stream)
{
    AttentionProblem const problem = makeProblem<1>(a);
    Scores const scores{memory, countTokens(a), a.length};
    auto const blocks = static_cast<unsigned int>(countBlocks<1>(a));
    qkvToContextScoresKernel<In, kSIZE><<<blocks, kBLOCK, 0, stream>>>(problem, scores);
    cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess)
    {
        return status;
    }
    qkvToContextSoftmaxKernel<<<blocks, kWARP, 0, stream>>>(problem, scores);
    status = cudaGetLastError();
    if (status != cudaSuccess)
    {
        return status;
    }
    qkvToContextWeighKernel<In, kSIZE><<<blocks, kSIZE, 0, stream>>>(problem, scores);
    return cudaGetLastError();
}

} // namespace

cudaError_t launchQkvToContextPlain(
    QkvToContextArguments const& arguments, float* scores, cudaStream_t stream)
{
    return dispatchElement(arguments.type,
        [&](auto element)
        {
            using In = decltype(element);
            switch (arguments.headSize)
            {
            case 32:
                return launchSize<In, 32>(arguments, scores, stream);
            case 64:
                return launchSize<In, 64>(arguments, scores, stream);
            default:
                return launchSize<In, 128>(arguments, scores, stream);
            }
        });
}

} // namespace bert
