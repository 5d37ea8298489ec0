// Attention on int8 with Hopper's tensor cores (wgmma). What changed against the hopper kernel:
//
//   - Queries and keys are multiplied as int8, as the copies (TMA) bring them: half the bytes, twice the speed.
//   - Values cannot be: the tensor cores want the int8 of one column one after the other in memory, and values lie row
//     by row. The warpgroup that fetches widens them to fp16, in which they are exact, once for all warpgroups that
//     compute. That comes while these multiply keys and take exponentials.
//   - Copies bring every chunk, also one that is not full: whatever lies behind a sentence's end is a number in int8,
//     and its weight is 0.
//   - A block takes one tile. What it would wait for in the beginning and in the end, another block of the
//     multiprocessor has for work.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_copies.cuh"
#include "qkv_to_context/qkv_to_context_fragments.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kBOX_ROWS = 64;

template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
struct Int8Shape
{
    static constexpr int kTHREADS = (kGROUPS + 1) * kWARPGROUP; // the last one fetches and widens
    static constexpr int kROWS = kGROUPS * kQUERIES;
    static constexpr int kQUERY_BYTES = kROWS * kSIZE;
    static constexpr int kKEY_BYTES = kKEYS * kSIZE; // of a chunk; also values before they are widened
    using Values = SharedTile<kKEYS, kSIZE>;         // widened
    // A slot holds a chunk: widened values, keys, values. Where the parts of shared memory begin:
    static constexpr int kSLOT_BYTES = Values::kBYTES + 2 * kKEY_BYTES;
    static constexpr int kCHUNKS = kQUERY_BYTES;
    static constexpr int kBARRIERS = kCHUNKS + kSLOTS * kSLOT_BYTES;
    static constexpr int kBYTES = kBARRIERS + 16 + kSLOTS * 32;
};

// The addresses in shared memory, by number of a chunk; and the parity of its barriers.
template <typename Shape, int kSLOTS>
struct Int8Memory
{
    static_assert(kSLOTS == 2 || kSLOTS == 4, "divisions by it must be cheap");
    uint32_t begin;

    static __device__ uint32_t parity(uint32_t chunk)
    {
        return chunk / kSLOTS % 2;
    }
    __device__ uint32_t queries() const
    {
        return begin;
    }
    __device__ uint32_t widenedValues(uint32_t chunk) const
    {
        return begin + Shape::kCHUNKS + chunk % kSLOTS * Shape::kSLOT_BYTES;
    }
    __device__ uint32_t keys(uint32_t chunk) const
    {
        return widenedValues(chunk) + Shape::Values::kBYTES;
    }
    __device__ uint32_t values(uint32_t chunk) const
    {
        return keys(chunk) + Shape::kKEY_BYTES;
    }
    __device__ uint32_t queriesThere() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t queriesRead() const
    {
        return queriesThere() + 8;
    }
    __device__ uint32_t keysThere(uint32_t chunk) const
    {
        return queriesThere() + 16 + chunk % kSLOTS * 32;
    }
    __device__ uint32_t valuesThere(uint32_t chunk) const
    {
        return keysThere(chunk) + 8;
    }
    __device__ uint32_t valuesWidened(uint32_t chunk) const
    {
        return keysThere(chunk) + 16;
    }
    __device__ uint32_t chunkRead(uint32_t chunk) const
    {
        return keysThere(chunk) + 24;
    }
};

inline __device__ uint4 loadPiece(uint32_t source)
{
    uint4 piece;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
        : "r"(source)
        : "memory");
    return piece;
}

// What a warpgroup has used of its block's shared memory, from tile to tile: tiles of queries and chunks. Chunk n lies in
// slot n % kSLOTS; the parity of a barrier changes with every round.
struct Int8Progress
{
    uint32_t tiles{0};
    uint32_t chunks{0};
};

// What fetches one tile of queries and all keys and values of its sentence, and widens the values. A warpgroup.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
class Int8Fetcher
{
public:
    using Shape = Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>;
    using Memory = Int8Memory<Shape, kSLOTS>;

    __device__ Int8Fetcher(AttentionProblem const& p, CUtensorMap const& map, QueryTile const& tile,
        uint32_t head, Memory const& memory, Int8Progress& progress)
        : mMap(map)
        , mTile(tile)
        , mMemory(memory)
        , mProgress(progress)
        , mHidden(p.heads * kSIZE)
        , mColumn(static_cast<int32_t>(head) * kSIZE)
    {
    }
    __device__ void run()
    {
        if (isFirst()) // no other one: before it came here, the barrier could be two phases on
        {
            waitForBarrier(mMemory.queriesRead(), ~mProgress.tiles & 1U);
            copyQueries();
        }
        __syncwarp();
        ++mProgress.tiles;
        for (int32_t chunk = -kAHEAD; chunk * kKEYS < mTile.keys; ++chunk)
        {
            int32_t const next = chunk + kAHEAD;
            if (next * kKEYS < mTile.keys)
            {
                // What was never used needs no waiting: the parity before the first phase is complete.
                uint32_t const number = mProgress.chunks + (chunk < 0 ? next : kAHEAD);
                waitForBarrier(mMemory.chunkRead(number), mMemory.parity(number) ^ 1U);
                if (isFirst())
                {
                    copyChunk(next, number);
                }
                __syncwarp();
            }
            if (chunk >= 0)
            {
                uint32_t const number = mProgress.chunks;
                waitForBarrier(mMemory.valuesThere(number), mMemory.parity(number));
                widenValues(number);
                showToTensorCores();
                __syncwarp();
                if (threadIdx.x % kWARP == 0)
                {
                    arrive(mMemory.valuesWidened(number));
                }
                __syncwarp();
                ++mProgress.chunks;
            }
        }
    }

private:
    // Chunks that are on their way while one is widened. The others of the slots may still be multiplied.
    static constexpr int kAHEAD = kSLOTS - 2;
    static_assert(kAHEAD >= 1);

    static __device__ bool isFirst()
    {
        return threadIdx.x % kWARPGROUP == 0;
    }
    // Boxes of a head, from `row` on.
    __device__ void copyRows(uint32_t target, int32_t column, int64_t row, int count, uint32_t barrier)
    {
        for (int first = 0; first < count; first += kBOX_ROWS)
        {
            copyBox(target + first * kSIZE, mMap, column, static_cast<int32_t>(row) + first, barrier);
        }
    }
    __device__ void copyQueries()
    {
        int const rows = (mTile.queries + kQUERIES - 1) / kQUERIES * kQUERIES;
        arriveAndExpect(mMemory.queriesThere(), rows * kSIZE);
        copyRows(mMemory.queries(), mColumn, mTile.firstQuery, rows, mMemory.queriesThere());
    }
    __device__ void copyChunk(int32_t chunk, uint32_t number)
    {
        int64_t const row = mTile.firstKey + chunk * kKEYS;
        arriveAndExpect(mMemory.keysThere(number), Shape::kKEY_BYTES);
        copyRows(mMemory.keys(number), mColumn + mHidden, row, kKEYS, mMemory.keysThere(number));
        arriveAndExpect(mMemory.valuesThere(number), Shape::kKEY_BYTES);
        copyRows(mMemory.values(number), mColumn + 2 * mHidden, row, kKEYS, mMemory.valuesThere(number));
    }
    __device__ void widenValues(uint32_t number)
    {
        using Bytes = SharedTile<kKEYS, kSIZE / 2>; // int8 in pairs
        using Values = typename Shape::Values;
        constexpr int kPIECES = kSIZE / 16; // of a row
        constexpr int kROWS_AT_ONCE = kWARPGROUP / kPIECES;
        static_assert(kROWS_AT_ONCE % 8 == 0, "pieces of rows so far apart are permuted in the same way");
        constexpr int kTURNS = kKEYS / kROWS_AT_ONCE;
        uint32_t const thread = threadIdx.x % kWARPGROUP;
        uint32_t const row = thread / kPIECES;
        uint32_t const piece = thread % kPIECES;
        uint32_t const source = mMemory.values(number) + Bytes::offset(row, piece);
        uint32_t const first = mMemory.widenedValues(number) + Values::offset(row, 2 * piece);
        uint32_t const second = first ^ 16; // the neighbouring piece
#pragma unroll
        for (int turn = 0; turn < kTURNS; ++turn)
        {
            uint4 const bytes = loadPiece(source + turn * kROWS_AT_ONCE * Bytes::kROW_BYTES);
            uint2 const a = widen(bytes.x);
            uint2 const b = widen(bytes.y);
            uint2 const c = widen(bytes.z);
            uint2 const d = widen(bytes.w);
            storePiece(first + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {a.x, a.y, b.x, b.y});
            storePiece(second + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {c.x, c.y, d.x, d.y});
        }
    }

    CUtensorMap const& mMap;
    QueryTile const& mTile;
    Memory const& mMemory;
    Int8Progress& mProgress;
    int32_t mHidden;
    int32_t mColumn;
};

// Conversion of scores from int32 to float is an instruction of which a multiprocessor does few, as few as exponentials.
// They begin with the bits of the float 1.5 * 2^23 instead of 0, so that in the end their bits are those of the float
// 1.5 * 2^23 + score: a score is at most 128 * 128 * 128 = 2^21.
constexpr uint32_t kSCORE_BITS = 0x4B400000;

// scores (64, kKEYS) = queries (64, kSIZE) keys^T, as bits of floats to take 1.5 * 2^23 from
template <int kKEYS, int kSIZE>
__device__ void multiplyKeys(
    uint32_t (&scores)[kKEYS / 8][4], uint32_t const (&queries)[kSIZE / 32][4], uint32_t keys)
{
#pragma unroll
    for (int n = 0; n < kKEYS / 8; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            scores[n][i] = kSCORE_BITS;
        }
    }
    settle(scores);
    beginProducts();
#pragma unroll
    for (int k = 0; k < kSIZE / 32; ++k)
    {
        multiplyAsync(scores, queries[k], describeMatrix<kSIZE, 16>(keys + k * 32));
    }
    endProducts();
}
template <int kTILES>
__device__ void scoresToFloat(float (&floats)[kTILES][4], uint32_t const (&scores)[kTILES][4])
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            floats[n][i] = __uint_as_float(scores[n][i]) - 12582912.0F;
        }
    }
}

// A warpgroup without queries in a tile only lets the others' memory go.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
__device__ void skipTile(QueryTile const& tile,
    Int8Memory<Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>, kSLOTS> const& memory, Int8Progress& progress)
{
    bool const first = threadIdx.x % kWARP == 0;
    auto const skip = [&](uint32_t there, uint32_t parity, uint32_t read)
    {
        waitForBarrier(there, parity);
        __syncwarp();
        if (first)
        {
            arrive(read);
        }
        __syncwarp();
    };
    skip(memory.queriesThere(), progress.tiles % 2, memory.queriesRead());
    ++progress.tiles;
    for (int32_t key = 0; key < tile.keys; key += kKEYS)
    {
        uint32_t const chunk = progress.chunks++;
        skip(memory.valuesWidened(chunk), memory.parity(chunk), memory.chunkRead(chunk));
    }
}

// One of the warpgroups that compute, on its 64 queries of a tile.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, bool kOVERLAP>
__device__ void attendInt8(AttentionProblem const& p, QueryTile const& tile, uint32_t head,
    Int8Memory<Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>, kSLOTS> const& memory, Int8Progress& progress)
{
    using Shape = Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>;
    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);

    uint32_t queries[kSIZE / 32][4];
    uint32_t weights[kKEYS / 16][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesThere(), progress.tiles % 2);
    ++progress.tiles;
    loadQueries<Shape::kROWS, kSIZE / 2>(queries, memory.queries(), warp * 16); // int8 in pairs
    __syncwarp();
    if (first)
    {
        arrive(memory.queriesRead());
    }
    __syncwarp();

    auto const startValues = [&](uint32_t chunk)
    {
        settle(sums);
        settle(weights);
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, memory.widenedValues(chunk));
    };
    auto const finishValues = [&]
    {
        waitForProducts<0>();
        settle(sums);
        settle(weights);
    };
    auto const waitForValues
        = [&](uint32_t chunk) { waitForBarrier(memory.valuesWidened(chunk), memory.parity(chunk)); };
    auto const release = [&](uint32_t chunk)
    {
        if (first)
        {
            arrive(memory.chunkRead(chunk));
        }
        __syncwarp();
    };
    for (int32_t key = 0; key < tile.keys; key += kKEYS)
    {
        bits.gather(key / kKEYS);
        bits.fetch(key / kKEYS + 1);
        uint32_t scoreBits[kKEYS / 8][4];
        float scores[kKEYS / 8][4];
        uint32_t const chunk = progress.chunks++;
        waitForBarrier(memory.keysThere(chunk), memory.parity(chunk));
        if (kOVERLAP && key > 0)
        {
            waitForValues(chunk - 1);
        }
        settle(queries);
        multiplyKeys<kKEYS, kSIZE>(scoreBits, queries, memory.keys(chunk));
        if (kOVERLAP && key > 0)
        {
            startValues(chunk - 1);
            waitForProducts<1>();
        }
        else
        {
            waitForProducts<0>();
        }
        settle(scoreBits);
        scoresToFloat(scores, scoreBits);
        if (!bits.all())
        {
            hide(scores, bits);
        }
        bool const rescale = softmax.weigh(scores);
        if (kOVERLAP)
        {
            finishValues();
            if (key > 0)
            {
                release(chunk - 1);
            }
        }
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
        if (!kOVERLAP)
        {
            waitForValues(chunk);
            startValues(chunk);
            finishValues();
            release(chunk);
        }
    }
    if (kOVERLAP && tile.keys > 0)
    {
        uint32_t const last = progress.chunks - 1;
        waitForValues(last);
        startValues(last);
        finishValues();
        release(last);
    }
    float factors[2];
    softmax.finish(factors);
    storeContext<kSIZE>(p, tile.firstQuery + warp * 16, tile.queries - warp * 16, head, sums, factors);
}

// kBLOCKS of them at a time on a multiprocessor. They stay and take tile after tile, or (kSTAY false) each takes one.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP, bool kSTAY>
__global__ void __launch_bounds__((kGROUPS + 1) * kWARPGROUP, kBLOCKS) qkvToContextHopperInt8Kernel(
    AttentionProblem const p, uint32_t tiles, __grid_constant__ CUtensorMap const map)
{
    using Shape = Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>;
    using Share = Registers<kGROUPS, kBLOCKS, kBLOCKS == 1 ? 40 : 32>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    Int8Memory<Shape, kSLOTS> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        constexpr int kREADERS = 4 * kGROUPS; // warps
        initBarrier(memory.queriesThere(), 1);
        initBarrier(memory.queriesRead(), kREADERS);
        for (int slot = 0; slot < kSLOTS; ++slot)
        {
            initBarrier(memory.keysThere(slot), 1);
            initBarrier(memory.valuesThere(slot), 1);
            initBarrier(memory.valuesWidened(slot), 4); // warps
            initBarrier(memory.chunkRead(slot), kREADERS);
        }
        showBarriers();
    }
    if (threadIdx.x == kGROUPS * kWARPGROUP)
    {
        prefetchMap(map);
    }
    __syncthreads();
    letNextKernelIn();
    Int8Progress progress;
    int const group = static_cast<int>(threadIdx.x / kWARPGROUP);
    if (group == kGROUPS)
    {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kFETCHING));
        forTiles<Shape::kROWS, kSTAY>(
            p, tiles, [&](QueryTile const& tile, uint32_t head)
            { Int8Fetcher<kSIZE, kGROUPS, kKEYS, kSLOTS>{p, map, tile, head, memory, progress}.run(); },
            [](QueryTile const&, uint32_t) {});
    }
    else
    {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCOMPUTING));
        forTiles<Shape::kROWS, kSTAY>(
            p, tiles,
            [&](QueryTile const& tile, uint32_t head)
            {
                if (group * kQUERIES < tile.queries)
                {
                    attendInt8<kSIZE, kGROUPS, kKEYS, kSLOTS, kOVERLAP>(p, tile, head, memory, progress);
                }
                else
                {
                    skipTile<kSIZE, kGROUPS, kKEYS, kSLOTS>(tile, memory, progress);
                }
            },
            [&](QueryTile const& tile, uint32_t head)
            { poison<kSIZE>(p, tile, head, kGROUPS * kWARPGROUP); });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP, bool kSTAY>
cudaError_t launchShape(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>;
    // qkv as a matrix (tokens, 3H), from which boxes of rows of one head are copied.
    uint64_t const tokens = static_cast<uint64_t>(a.length) * (a.cuSeqlens != nullptr ? 1 : a.sentences);
    cuuint64_t const sizes[2] = {static_cast<cuuint64_t>(a.heads) * kSIZE * 3, tokens};
    cuuint32_t const box[2] = {kSIZE, kBOX_ROWS};
    CUtensorMap map{};
    cudaError_t const status = describeTensor<int8_t>(map, a.qkv, sizes, box);
    if (status != cudaSuccess)
    {
        return status;
    }
    auto const tiles = static_cast<uint32_t>(countBlocks<Shape::kROWS>(a));
    uint32_t const blocks = kSTAY ? std::min(tiles, static_cast<uint32_t>(multiprocessors * kBLOCKS)) : tiles;
    return launchEarly(qkvToContextHopperInt8Kernel<kSIZE, kGROUPS, kKEYS, kSLOTS, kBLOCKS, kOVERLAP, kSTAY>,
        LaunchSize{blocks, Shape::kTHREADS, Shape::kBYTES}, stream, makeProblem<Shape::kROWS>(a), tiles, map);
}

} // namespace

cudaError_t launchQkvToContextHopperInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    // Few blocks have registers for large chunks; many wait less if there are two to a multiprocessor.
    bool const few = countBlocks<2 * kQUERIES>(arguments) <= multiprocessors;
    auto const withSize = [&](auto size)
    {
        return few ? launchShape<size(), 2, 128, 4, 1, false, false>(arguments, multiprocessors, stream)
                   : launchShape<size(), 2, 64, 4, 2, false, false>(arguments, multiprocessors, stream);
    };
    switch (arguments.headSize)
    {
    case 32:
        return withSize(std::integral_constant<int, 32>{});
    case 64:
        return withSize(std::integral_constant<int, 64>{});
    default:
        return launchShape<128, 2, 64, 4, 1, false, false>(arguments, multiprocessors, stream);
    }
}

} // namespace bert
