// What the attention kernels share: which queries belong to a block, which keys count, and the store.
#pragma once

#include "common/capability.h"
#include "common/early_launch.cuh"
#include "common/element.cuh"
#include "common/reduce.cuh"
#include "qkv_to_context/qkv_to_context_kernels.h"

#include <cmath>
#include <limits>
#include <type_traits>

namespace bert
{

// The arguments as a kernel wants them. A block takes one tile of queries, all of one sentence, and one head.
struct AttentionProblem
{
    void const* qkv;
    int32_t const* mask;
    int32_t const* cuSeqlens;
    void* context;
    int32_t sentences;
    int32_t length;
    int32_t heads;
    uint32_t tiles;     // of a sentence; unused for packed sentences
    float scale;        // from Q K^T to the exponent of 2
    float outputFactor; // from a sum of values to what is stored
    ElementType outputType;
};

template <int kROWS>
AttentionProblem makeProblem(QkvToContextArguments const& a)
{
    return {a.qkv, a.mask, a.cuSeqlens, a.context, a.sentences, a.length, a.heads,
        (static_cast<uint32_t>(a.length) + kROWS - 1) / kROWS, scoreScale(a), a.qkvScale / a.outputScale,
        a.outputType};
}

// Blocks of the grid. The lengths of packed sentences are known on the device only: each begins at most one tile that
// it does not fill, and so do the tokens behind the last sentence.
template <int kROWS>
int64_t countBlocks(QkvToContextArguments const& a)
{
    int64_t const tiles = a.cuSeqlens != nullptr ? a.length / kROWS + a.sentences + int64_t{1}
                                                 : (a.length + int64_t{kROWS} - 1) / kROWS * a.sentences;
    return tiles * a.heads;
}

// ---------------------------------------------------------------------------------------------------------------
// Tiles of queries
// ---------------------------------------------------------------------------------------------------------------

struct QueryTile
{
    int64_t firstQuery; // token
    int64_t firstKey;   // token: the sentence's first
    int32_t queries;    // up to kROWS
    int32_t keys;       // of the sentence
    int32_t sentence;
    bool broken; // cuSeqlens describes no sentences
};

// Every warp looks at all of cuSeqlens, so that all blocks come to the same answer.
inline __device__ bool isBroken(int32_t const* cuSeqlens, int32_t sentences, int32_t tokens)
{
    bool broken = false;
    for (int32_t i = static_cast<int32_t>(threadIdx.x % kWARP); i < sentences; i += kWARP)
    {
        int32_t const start = cuSeqlens[i];
        int32_t const end = cuSeqlens[i + 1];
        broken = broken || start < 0 || end < start || end > tokens || (i == 0 && start != 0);
    }
    return __any_sync(kALL_LANES, broken);
}

// The tile with number `tile` of all sentences' tiles, one sentence after the other. What lies behind the last
// sentence is a sentence without keys. Each lane looks at one sentence.
template <int kROWS>
__device__ QueryTile findPackedTile(AttentionProblem const& p, int32_t tile)
{
    int const lane = static_cast<int>(threadIdx.x % kWARP);
    if (isBroken(p.cuSeqlens, p.sentences, p.length))
    {
        int64_t const first = int64_t{tile} * kROWS;
        return {first, 0, static_cast<int32_t>(max(int64_t{0}, min(int64_t{kROWS}, p.length - first))), 0, 0,
            true};
    }
    int32_t before = 0; // tiles of the sentences already looked at
    for (int32_t base = 0; base <= p.sentences; base += kWARP)
    {
        int32_t const sentence = base + lane;
        // Without a sentence there is no cuSeqlens[0] to trust either.
        int32_t const start = sentence > p.sentences || p.sentences == 0 ? 0 : p.cuSeqlens[sentence];
        int32_t const end = sentence < p.sentences ? p.cuSeqlens[sentence + 1] : p.length;
        int32_t const count = sentence > p.sentences ? 0 : (end - start + kROWS - 1) / kROWS;
        int32_t upTo = count;
#pragma unroll
        for (int distance = 1; distance < kWARP; distance *= 2)
        {
            int32_t const left = __shfl_up_sync(kALL_LANES, upTo, distance);
            upTo += lane >= distance ? left : 0;
        }
        unsigned int const found = __ballot_sync(kALL_LANES, tile < before + upTo);
        if (found != 0)
        {
            int const owner = __ffs(static_cast<int>(found)) - 1;
            int32_t const itsStart = __shfl_sync(kALL_LANES, start, owner);
            int32_t const itsEnd = __shfl_sync(kALL_LANES, end, owner);
            int32_t const itsTile = tile - before - __shfl_sync(kALL_LANES, upTo - count, owner);
            int64_t const first = int64_t{itsStart} + int64_t{itsTile} * kROWS;
            int32_t const queries = static_cast<int32_t>(min(int64_t{kROWS}, itsEnd - first));
            int32_t const keys = base + owner == p.sentences ? 0 : itsEnd - itsStart;
            return {first, itsStart, queries, keys, base + owner, false};
        }
        before += __shfl_sync(kALL_LANES, upTo, kWARP - 1);
    }
    return {}; // the grid has a tile more than there is work for
}

// The same where all sentences are of one length.
template <int kROWS>
__device__ QueryTile findEqualTile(AttentionProblem const& p, uint32_t tile)
{
    uint32_t const sentence = tile / p.tiles;
    int32_t const firstRow = static_cast<int32_t>(tile % p.tiles) * kROWS;
    int64_t const first = int64_t{sentence} * p.length;
    return {first + firstRow, first, min(kROWS, p.length - firstRow), p.length,
        static_cast<int32_t>(sentence), false};
}

// Blocks of one tile lie beside each other, one for each head.
template <int kROWS>
__device__ QueryTile findTile(AttentionProblem const& p, uint32_t tile)
{
    return p.cuSeqlens != nullptr ? findPackedTile<kROWS>(p, static_cast<int32_t>(tile))
                                  : findEqualTile<kROWS>(p, tile);
}

// Calls function(tile, head) for each tile that this block has to do, or poison where that is impossible.
template <int kROWS, typename Function, typename Poison>
__device__ void forTiles(AttentionProblem const& p, uint32_t count, Function&& function, Poison&& poisonTile)
{
    for (uint32_t number = blockIdx.x; number < count; number += gridDim.x)
    {
        if (p.cuSeqlens != nullptr)
        {
            waitForPreviousKernel();
        }
        uint32_t const head = number % p.heads;
        QueryTile const tile = findTile<kROWS>(p, number / p.heads);
        waitForPreviousKernel();
        if (tile.broken)
        {
            poisonTile(tile, head);
        }
        else if (tile.queries > 0)
        {
            function(tile, head);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Keys that count
// ---------------------------------------------------------------------------------------------------------------

// For the keys of one chunk, a bit each: it exists and is no padding. All lanes of a warp hold the same bits; the mask
// is fetched one chunk ahead.
template <int kKEYS>
class KeyBits
{
public:
    __device__ KeyBits(AttentionProblem const& p, QueryTile const& tile)
        : mMask(p.mask == nullptr ? nullptr : p.mask + int64_t{tile.sentence} * p.length)
        , mKeys(tile.keys)
    {
    }
    __device__ void fetch(int32_t chunk)
    {
        if (mMask != nullptr)
        {
#pragma unroll
            for (int w = 0; w < kWORDS; ++w)
            {
                int32_t const key = chunk * kKEYS + w * kWARP + static_cast<int>(threadIdx.x % kWARP);
                mCounts[w] = key < mKeys && mMask[key] != 0;
            }
        }
    }
    __device__ void gather(int32_t chunk)
    {
#pragma unroll
        for (int w = 0; w < kWORDS; ++w)
        {
            int32_t const left = mKeys - chunk * kKEYS - w * kWARP;
            mBits[w] = left >= kWARP ? ~0U : (1U << max(left, 0)) - 1U;
            if (mMask != nullptr)
            {
                mBits[w] = __ballot_sync(kALL_LANES, mCounts[w]);
            }
        }
    }
    __device__ bool all() const
    {
        unsigned int bits = ~0U;
#pragma unroll
        for (int w = 0; w < kWORDS; ++w)
        {
            bits &= mBits[w];
        }
        return bits == ~0U;
    }
    __device__ bool operator[](int key) const // within the chunk
    {
        unsigned int bits = mBits[0];
#pragma unroll
        for (int w = 1; w < kWORDS; ++w) // not mBits[key / kWARP]: registers cannot be indexed
        {
            bits = key / kWARP == w ? mBits[w] : bits;
        }
        return (bits >> (key % kWARP) & 1U) != 0;
    }
    // Of 8 neighbouring keys that the registers of a warp hold as the tensor cores want them, those of this lane.
    __device__ unsigned int pairOf(int tile) const
    {
        return mBits[tile / 4] >> (tile % 4 * 8 + threadIdx.x % 4 * 2);
    }

private:
    static constexpr int kWORDS = kKEYS / kWARP;
    int32_t const* mMask;
    int32_t mKeys;
    bool mCounts[kWORDS]{};
    unsigned int mBits[kWORDS]{};
};

// ---------------------------------------------------------------------------------------------------------------
// Output
// ---------------------------------------------------------------------------------------------------------------

constexpr float kNEGATIVE_INFINITY = -std::numeric_limits<float>::infinity();
constexpr float kNAN = std::numeric_limits<float>::quiet_NaN();

// Calls function(Out{}) with the C++ type of the output.
template <typename Function>
__device__ void dispatchOutput(ElementType type, Function&& function)
{
    switch (type)
    {
    case ElementType::kFLOAT:
        function(float{});
        break;
    case ElementType::kHALF:
        function(__half{});
        break;
    case ElementType::kBF16:
        function(__nv_bfloat16{});
        break;
    case ElementType::kINT8:
        function(int8_t{});
        break;
    }
}

// Element 0 of a token's head in the output.
template <typename Out, int kSIZE>
__device__ Out* contextRow(AttentionProblem const& p, int64_t token, uint32_t head)
{
    return static_cast<Out*>(p.context) + (token * p.heads + head) * kSIZE;
}

// A block's share of an output that cannot be computed. `threads` threads of it take part, the first ones.
template <int kSIZE>
__device__ void poison(AttentionProblem const& p, QueryTile const& tile, uint32_t head, int threads)
{
    dispatchOutput(p.outputType,
        [&](auto element)
        {
            using Out = decltype(element);
            Out value{};
            if constexpr (std::is_same_v<Out, int8_t>)
            {
                value = INT8_MIN; // the nearest that int8 has
            }
            else
            {
                value = fromFloat<Out>(kNAN);
            }
            for (int i = static_cast<int>(threadIdx.x); i < tile.queries * kSIZE; i += threads)
            {
                contextRow<Out, kSIZE>(p, tile.firstQuery + i / kSIZE, head)[i % kSIZE] = value;
            }
        });
}

} // namespace bert
