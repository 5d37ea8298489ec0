// What the attention kernels share: the tiles of queries, the attention mask, and the store.
#pragma once

#include "common/capability.h"
#include "common/element.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "common/reduce.cuh"
#include "qkv_to_context/qkv_to_context_kernels.h"

#include <cmath>
#include <limits>
#include <type_traits>

namespace bert
{

// The arguments of a kernel. A block computes one tile of queries, all of one sequence, for one head.
struct AttentionProblem
{
    void const* qkv;
    int32_t const* mask;
    int32_t const* cuSeqlens;
    void* context;
    int32_t sequences;
    int32_t length;
    int32_t heads;
    uint32_t tiles;     // of a sequence; unused if packed
    float scale;        // from Q K^T to the exponent of 2
    float outputFactor; // from a weighted sum of values to the stored number
    ElementType outputType;
};

template <int kROWS>
AttentionProblem makeProblem(QkvToContextArguments const& a)
{
    return {a.qkv, a.mask, a.cuSeqlens, a.context, a.sequences, a.length, a.heads,
        (static_cast<uint32_t>(a.length) + kROWS - 1) / kROWS, scoreScale(a), a.qkvScale / a.outputScale,
        a.outputType};
}

// Blocks of the grid. The lengths of packed sequences are known only on the device, so this is an upper bound: each
// sequence has at most one partial tile, and so have the tokens after the last sequence.
template <int kROWS>
int64_t countBlocks(QkvToContextArguments const& a)
{
    int64_t const tiles = a.cuSeqlens != nullptr ? a.length / kROWS + a.sequences + int64_t{1}
                                                 : (a.length + int64_t{kROWS} - 1) / kROWS * a.sequences;
    return tiles * a.heads;
}

// ---------------------------------------------------------------------------------------------------------------
// Tiles of queries
// ---------------------------------------------------------------------------------------------------------------

struct QueryTile
{
    int64_t firstQuery; // token
    int64_t firstKey;   // token: the first of the sequence
    int32_t queries;    // up to kROWS
    int32_t keys;       // of the sequence
    int32_t sequence;
    bool invalid; // cuSeqlens is invalid
};

// Finds tiles of packed sequences by their numbers, which are counted over all sequences. The tokens after the last
// sequence are treated as a sequence without keys. Each lane holds one sequence of a group of 32, and how many tiles
// end with it: a prefix sum over the lanes, which is computed once for a group.
//
// Every warp checks all of cuSeqlens, so that all blocks get the same result.
//
// Conditions that decide for a whole warp are votes: of these the compiler knows that all lanes get the same, but not
// of shuffles. Where it does not know that lanes stay together it adds instructions that gather them, also in the loop
// around it: attention of 32 sequences of 384 tokens took 15 % longer.
template <int kROWS>
class PackedTiles
{
public:
    explicit __device__ PackedTiles(AttentionProblem const& p)
        : mProblem(p)
    {
        if (p.cuSeqlens == nullptr)
        {
            return;
        }
        bool invalid = false;
#pragma unroll(2)
        for (mBase = p.sequences / kWARP * kWARP; mBase >= 0; mBase -= kWARP) // ends with the first group
        {
            load();
            invalid |= mStart < 0 || mEnd < mStart || mEnd > p.length || (mBase + lane() == 0 && mStart != 0);
        }
        mBase = 0;
        mInvalid = __any_sync(kALL_LANES, invalid);
        count(0);
    }
    // Sequences must be packed, and numbers must not decrease from call to call: the search continues where it was. A
    // tile without queries is beyond the last one.
    __device__ QueryTile find(int32_t tile)
    {
        AttentionProblem const& p = mProblem;
        if (mInvalid)
        {
            int64_t const first = int64_t{tile} * kROWS;
            return {first, 0, static_cast<int32_t>(max(int64_t{0}, min(int64_t{kROWS}, p.length - first))), 0,
                0, true};
        }
        while (true)
        {
            unsigned int const found = __ballot_sync(kALL_LANES, tile < mTiles);
            if (found != 0)
            {
                int const owner = __ffs(static_cast<int>(found)) - 1;
                int32_t const start = __shfl_sync(kALL_LANES, mStart, owner);
                int32_t const end = __shfl_sync(kALL_LANES, mEnd, owner);
                int32_t const left = __shfl_sync(kALL_LANES, mTiles, owner) - tile; // of the owner's tiles
                int32_t const firstRow = (tilesOf(end - start) - left) * kROWS;
                int32_t const keys = mBase + owner == p.sequences ? 0 : end - start;
                return {int64_t{start} + firstRow, start, min(kROWS, end - start - firstRow), keys,
                    mBase + owner, false};
            }
            if (mBase + kWARP > p.sequences)
            {
                return {}; // the grid has more tiles than there is work for
            }
            int32_t const before = __shfl_sync(kALL_LANES, mTiles, kWARP - 1);
            mBase += kWARP;
            load();
            count(before);
        }
    }

private:
    static __device__ int32_t lane()
    {
        return static_cast<int32_t>(threadIdx.x % kWARP);
    }
    static __device__ int32_t tilesOf(int32_t tokens)
    {
        return (tokens + kROWS - 1) / kROWS;
    }
    // Loads this lane's sequence of the group; an empty one after those that exist.
    __device__ void load()
    {
        AttentionProblem const& p = mProblem;
        int32_t const sequence = mBase + lane();
        mStart = sequence <= p.sequences ? p.cuSeqlens[sequence] : 0;
        mEnd = sequence < p.sequences ? p.cuSeqlens[sequence + 1] : (sequence == p.sequences ? p.length : 0);
    }
    __device__ void count(int32_t before)
    {
        mTiles = tilesOf(mEnd - mStart);
#pragma unroll
        for (int distance = 1; distance < kWARP; distance *= 2)
        {
            int32_t const previous = __shfl_up_sync(kALL_LANES, mTiles, distance);
            mTiles += lane() >= distance ? previous : 0;
        }
        mTiles += before;
    }

    AttentionProblem const& mProblem;
    bool mInvalid{false};
    int32_t mBase{0}; // the first sequence of the group
    int32_t mStart{0};
    int32_t mEnd{0};
    int32_t mTiles{0}; // up to the end of this lane's sequence
};

// The same for sequences of equal length.
template <int kROWS>
__device__ QueryTile findEqualTile(AttentionProblem const& p, uint32_t tile)
{
    uint32_t const sequence = tile / p.tiles;
    int32_t const firstRow = static_cast<int32_t>(tile % p.tiles) * kROWS;
    int64_t const first = int64_t{sequence} * p.length;
    return {first + firstRow, first, min(kROWS, p.length - firstRow), p.length,
        static_cast<int32_t>(sequence), false};
}

// The tile of a block that computes only one. Consecutive blocks compute the heads of one tile.
template <int kROWS>
__device__ QueryTile findPackedTile(AttentionProblem const& p, int32_t tile)
{
    return PackedTiles<kROWS>{p}.find(tile);
}
template <int kROWS>
__device__ QueryTile findTile(AttentionProblem const& p, uint32_t tile)
{
    return p.cuSeqlens != nullptr ? findPackedTile<kROWS>(p, static_cast<int32_t>(tile))
                                  : findEqualTile<kROWS>(p, tile);
}

// Calls function(tile, head) for each tile of this block, or poisonTile if cuSeqlens is invalid.
template <int kROWS, typename Function, typename Poison>
__device__ void forTiles(AttentionProblem const& p, uint32_t count, Function&& function, Poison&& poisonTile)
{
    bool const packed = p.cuSeqlens != nullptr;
    if (packed)
    {
        waitForPreviousKernel();
    }
    PackedTiles<kROWS> packedTiles{p};
    for (uint32_t number = blockIdx.x; number < count; number += gridDim.x)
    {
        uint32_t const head = number % p.heads;
        uint32_t const numberOfTile = number / p.heads;
        QueryTile const tile = packed ? packedTiles.find(static_cast<int32_t>(numberOfTile))
                                      : findEqualTile<kROWS>(p, numberOfTile);
        waitForPreviousKernel();
        if (tile.invalid)
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
// Attention mask
// ---------------------------------------------------------------------------------------------------------------

// One bit for each key of a chunk: the key exists and is not padding. All lanes of a warp hold the same bits. The
// mask is loaded one chunk ahead, and its values are looked at one chunk later, when they have arrived.
template <int kKEYS>
class KeyMask
{
public:
    __device__ KeyMask(AttentionProblem const& p, QueryTile const& tile)
        : mMask(p.mask == nullptr ? nullptr : p.mask + int64_t{tile.sequence} * p.length)
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
                mLoaded[w] = key < mKeys ? mMask[key] : 0;
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
                mBits[w] = __ballot_sync(kALL_LANES, mLoaded[w] != 0);
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
    // The bits of this lane's two keys in group `tile` of 8 keys, in the register layout of the tensor cores.
    __device__ unsigned int pairOf(int tile) const
    {
        return mBits[tile / 4] >> (tile % 4 * 8 + threadIdx.x % 4 * 2);
    }

private:
    static constexpr int kWORDS = kKEYS / kWARP;
    int32_t const* mMask;
    int32_t mKeys;
    int32_t mLoaded[kWORDS]{}; // this lane's keys
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
    case ElementType::kE4M3:
        function(E4m3{});
        break;
    }
}

inline __device__ bool isEightBits(ElementType type)
{
    return type == ElementType::kINT8 || type == ElementType::kE4M3;
}

// The first element of a token's head in the output.
template <typename Out, int kSIZE>
__device__ Out* contextRow(AttentionProblem const& p, int64_t token, uint32_t head)
{
    return static_cast<Out*>(p.context) + (token * p.heads + head) * kSIZE;
}

// Fills a tile of the output that cannot be computed with NaN. The first `threads` threads of the block take part.
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
                value = INT8_MIN; // int8 has no NaN
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
