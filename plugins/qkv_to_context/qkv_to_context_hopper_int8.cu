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
#include "common/hopper_copies.cuh"
#include "qkv_to_context/qkv_to_context_fragments.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

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
    static constexpr int kBYTES = kBARRIERS + 8 + kSLOTS * 32;
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
    __device__ uint32_t keysThere(uint32_t chunk) const
    {
        return queriesThere() + 8 + chunk % kSLOTS * 32;
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

// What fetches one tile of queries and all keys and values of its sentence, and widens the values. A warpgroup.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
class Int8Fetcher
{
public:
    using Shape = Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>;
    using Memory = Int8Memory<Shape, kSLOTS>;

    __device__ Int8Fetcher(AttentionProblem const& p, CUtensorMap const& map, QueryTile const& tile,
        uint32_t head, Memory const& memory)
        : mMap(map)
        , mTile(tile)
        , mMemory(memory)
        , mHidden(p.heads * kSIZE)
        , mColumn(static_cast<int32_t>(head) * kSIZE)
    {
    }
    __device__ void run()
    {
        if (isFirst())
        {
            copyQueries();
        }
        __syncwarp();
        for (int32_t chunk = -kAHEAD; chunk * kKEYS < mTile.keys; ++chunk)
        {
            int32_t const next = chunk + kAHEAD;
            if (next * kKEYS < mTile.keys)
            {
                // What was never used needs no waiting: the parity before the first phase is complete.
                waitForBarrier(mMemory.chunkRead(next), mMemory.parity(next) ^ 1U);
                if (isFirst())
                {
                    copyChunk(next);
                }
                __syncwarp();
            }
            if (chunk >= 0)
            {
                waitForBarrier(mMemory.valuesThere(chunk), mMemory.parity(chunk));
                widenValues(chunk);
                showToTensorCores();
                __syncwarp();
                if (threadIdx.x % kWARP == 0)
                {
                    arrive(mMemory.valuesWidened(chunk));
                }
                __syncwarp();
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
    __device__ void copyChunk(int32_t chunk)
    {
        int64_t const row = mTile.firstKey + chunk * kKEYS;
        arriveAndExpect(mMemory.keysThere(chunk), Shape::kKEY_BYTES);
        copyRows(mMemory.keys(chunk), mColumn + mHidden, row, kKEYS, mMemory.keysThere(chunk));
        arriveAndExpect(mMemory.valuesThere(chunk), Shape::kKEY_BYTES);
        copyRows(mMemory.values(chunk), mColumn + 2 * mHidden, row, kKEYS, mMemory.valuesThere(chunk));
    }
    __device__ void widenValues(uint32_t chunk)
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
        uint32_t const source = mMemory.values(chunk) + Bytes::offset(row, piece);
        uint32_t const first = mMemory.widenedValues(chunk) + Values::offset(row, 2 * piece);
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
    int32_t mHidden;
    int32_t mColumn;
};

// A warpgroup without queries in its tile only lets the others' memory go.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
__device__ void skipTile(
    QueryTile const& tile, Int8Memory<Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>, kSLOTS> const& memory)
{
    for (int32_t chunk = 0; chunk * kKEYS < tile.keys; ++chunk)
    {
        waitForBarrier(memory.valuesWidened(chunk), memory.parity(chunk));
        __syncwarp();
        if (threadIdx.x % kWARP == 0)
        {
            arrive(memory.chunkRead(chunk));
        }
        __syncwarp();
    }
}

// One of the warpgroups that compute, on its 64 queries of a tile.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, bool kOVERLAP>
__device__ void attendInt8(AttentionProblem const& p, QueryTile const& tile, uint32_t head,
    Int8Memory<Int8Shape<kSIZE, kGROUPS, kKEYS, kSLOTS>, kSLOTS> const& memory)
{
    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);

    // Queries stay in shared memory: registers with operands that are used in every turn of a loop are not safe from
    // the compiler (13.0), which gave them to others.
    uint32_t const queries = memory.queries() + warp / 4 * kQUERIES * kSIZE;
    uint32_t weights[kKEYS / 16][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesThere(), 0);
    letNextKernelIn();

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
    int32_t const chunks = (tile.keys + kKEYS - 1) / kKEYS;
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        bits.gather(chunk);
        bits.fetch(chunk + 1);
        uint32_t scoreBits[kKEYS / 8][4];
        float scores[kKEYS / 8][4];
        waitForBarrier(memory.keysThere(chunk), memory.parity(chunk));
        if (kOVERLAP && chunk > 0)
        {
            waitForValues(chunk - 1);
        }
        settle(scoreBits);
        multiplyKeysInt8<kKEYS, kSIZE>(scoreBits, queries, memory.keys(chunk));
        if (kOVERLAP && chunk > 0)
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
            if (chunk > 0)
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
    if (kOVERLAP && chunks > 0)
    {
        waitForValues(chunks - 1);
        startValues(chunks - 1);
        finishValues();
    }
    float factors[2];
    softmax.finish(factors);
    storeContext<kSIZE>(p, tile.firstQuery + warp * 16, tile.queries - warp * 16, head, sums, factors);
}

// kBLOCKS of them at a time on a multiprocessor; each takes one tile.
template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP>
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
    int const group = static_cast<int>(threadIdx.x / kWARPGROUP);
    if (group == kGROUPS)
    {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kFETCHING));
        forTiles<Shape::kROWS, false>(
            p, tiles, [&](QueryTile const& tile, uint32_t head)
            { Int8Fetcher<kSIZE, kGROUPS, kKEYS, kSLOTS>{p, map, tile, head, memory}.run(); },
            [](QueryTile const&, uint32_t) {});
    }
    else
    {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCOMPUTING));
        forTiles<Shape::kROWS, false>(
            p, tiles,
            [&](QueryTile const& tile, uint32_t head)
            {
                if (group * kQUERIES < tile.queries)
                {
                    attendInt8<kSIZE, kGROUPS, kKEYS, kSLOTS, kOVERLAP>(p, tile, head, memory);
                }
                else
                {
                    skipTile<kSIZE, kGROUPS, kKEYS, kSLOTS>(tile, memory);
                }
            },
            [&](QueryTile const& tile, uint32_t head)
            { poison<kSIZE>(p, tile, head, kGROUPS * kWARPGROUP); });
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
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
    return launchEarly(qkvToContextHopperInt8Kernel<kSIZE, kGROUPS, kKEYS, kSLOTS, kBLOCKS, kOVERLAP>,
        LaunchSize{tiles, Shape::kTHREADS, Shape::kBYTES}, stream, makeProblem<Shape::kROWS>(a), tiles, map);
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
        return few ? launchShape<size(), 2, 128, 4, 1, false>(arguments, stream)
                   : launchShape<size(), 2, 64, 4, 2, false>(arguments, stream);
    };
    switch (arguments.headSize)
    {
    case 32:
        return withSize(std::integral_constant<int, 32>{});
    case 64:
        return withSize(std::integral_constant<int, 64>{});
    default:
        return launchShape<128, 2, 64, 4, 1, false>(arguments, stream);
    }
}

} // namespace bert
