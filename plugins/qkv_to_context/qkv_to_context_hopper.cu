// Attention with Hopper's tensor cores (wgmma). What changed against the tensor kernel:
//
//   - Four warps, a warpgroup, take 64 queries together. Their products read keys and values from shared memory by
//     themselves and once for all four warps, without passing through registers.
//   - Products run beside other work: while the softmax of one chunk is computed, the tensor cores multiply the weights
//     of the chunk before with its values.
//   - One more warp does nothing but fetch, mostly with copies of whole tiles (TMA). The others have no instructions
//     for it and no barrier in common: each warpgroup waits for its next chunk alone, and while one of them computes
//     its softmax the tensor cores are there for the others.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_copies.cuh"
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

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
struct HopperShape
{
    static constexpr int kTHREADS = (kGROUPS + 1) * kWARPGROUP; // the last one fetches
    static constexpr int kROWS = kGROUPS * kQUERIES;
    static constexpr int kREADERS = kGROUPS * 4; // warps
    // One warp starts copies; the others of its warpgroup are there to hand over registers.
    static constexpr int kFETCHERS = kWARP;
    using Queries = SharedTile<kQUERIES, kSIZE>;
    using Chunk = SharedTile<kKEYS, kSIZE>;
    using Rows = SharedTile<16, kSIZE>; // of a warp's context
    // Where the parts of shared memory begin.
    static constexpr int kCONTEXTS = kGROUPS * Queries::kBYTES;
    static constexpr int kCHUNKS = kCONTEXTS + kREADERS * Rows::kBYTES;
    static constexpr int kBARRIERS = kCHUNKS + kSLOTS * 2 * Chunk::kBYTES;
    static constexpr int kBYTES = kBARRIERS + (1 + kSLOTS) * 16;
};

// The addresses in shared memory.
template <typename Shape, int kSLOTS>
struct HopperMemory
{
    uint32_t begin;

    __device__ uint32_t queries(int group) const
    {
        return begin + group * Shape::Queries::kBYTES;
    }
    __device__ uint32_t context(int warp) const
    {
        return begin + Shape::kCONTEXTS + warp * Shape::Rows::kBYTES;
    }
    __device__ uint32_t keys(int slot) const
    {
        return begin + Shape::kCHUNKS + slot * 2 * Shape::Chunk::kBYTES;
    }
    __device__ uint32_t values(int slot) const
    {
        return keys(slot) + Shape::Chunk::kBYTES;
    }
    __device__ uint32_t queriesThere() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t queriesRead() const
    {
        return queriesThere() + 8;
    }
    __device__ uint32_t chunkThere(int slot) const
    {
        return begin + Shape::kBARRIERS + 16 * (1 + slot);
    }
    __device__ uint32_t chunkRead(int slot) const
    {
        return chunkThere(slot) + 8;
    }
};

// What of a block's shared memory is in use, from tile to tile.
template <int kSLOTS>
struct Progress
{
    Turn<1> queries;
    Turn<kSLOTS> chunks;
};

// Copies kROWS rows of a head in boxes; one thread does.
template <typename In, int kROWS, int kSIZE>
__device__ void copyTile(uint32_t tile, CUtensorMap const& map, int32_t column, int64_t row, uint32_t barrier)
{
    using Tile = SharedTile<kROWS, kSIZE>;
    constexpr int kCOLUMNS = Tile::kPANEL_COLUMNS;
    constexpr int kROW_BYTES = kCOLUMNS * sizeof(In);
#pragma unroll
    for (int first = 0; first < kROWS; first += kBOX_ROWS)
    {
#pragma unroll
        for (int panel = 0; panel < kSIZE / kCOLUMNS; ++panel)
        {
            copyBox(tile + panel * Tile::kPANEL_BYTES + first * kROW_BYTES, map, column + panel * kCOLUMNS,
                static_cast<int32_t>(row) + first, barrier);
        }
    }
}

// What fetches one tile of queries and all keys and values of its sentence. Its threads stay together, from chunk to
// chunk: one that came two phases late would wait for a parity that is long over.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSLOTS>
class Fetcher
{
public:
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSLOTS>;
    using Memory = HopperMemory<Shape, kSLOTS>;

    __device__ Fetcher(AttentionProblem const& p, CUtensorMap const& map, QueryTile const& tile,
        uint32_t head, Memory const& memory, Progress<kSLOTS>& progress)
        : mMap(map)
        , mTile(tile)
        , mMemory(memory)
        , mProgress(progress)
        , mHidden(p.heads * kSIZE)
        , mColumn(static_cast<int32_t>(head) * kSIZE)
        , mOfHead(static_cast<In const*>(p.qkv) + mColumn)
    {
    }
    __device__ void run()
    {
        waitForReaders(mMemory.queriesRead(), mProgress.queries);
        copyQueries();
        __syncwarp();
        for (int32_t key = 0; key < mTile.keys; key += kKEYS)
        {
            int const slot = mProgress.chunks.slot;
            waitForReaders(mMemory.chunkRead(slot), mProgress.chunks);
            copyChunk(key, slot);
            __syncwarp();
        }
    }

private:
    using Chunk = typename Shape::Chunk;

    static __device__ bool isFirst()
    {
        return threadIdx.x % kWARPGROUP == 0;
    }
    // After it, ordinary stores and copies of all fetching threads are to be seen by the tensor cores, `barrier` says
    // so, and all threads have come here.
    static __device__ void showAndArrive(uint32_t barrier)
    {
        showToTensorCores();
        asm volatile("bar.sync 1, %0;" ::"n"(Shape::kFETCHERS) : "memory");
        if (isFirst())
        {
            arrive(barrier);
        }
    }
    // The parity that is complete before the first phase: what was never used needs no waiting.
    template <int kTURNS>
    static __device__ void waitForReaders(uint32_t barrier, Turn<kTURNS>& turn)
    {
        waitForBarrier(barrier, turn.parity ^ 1U);
        turn.next();
    }
    __device__ void copyQueries()
    {
        if (isFirst())
        {
            arriveAndExpect(mMemory.queriesThere(), kGROUPS * Shape::Queries::kBYTES);
#pragma unroll
            for (int group = 0; group < kGROUPS; ++group)
            {
                copyTile<In, kQUERIES, kSIZE>(mMemory.queries(group), mMap, mColumn,
                    mTile.firstQuery + group * kQUERIES, mMemory.queriesThere());
            }
        }
    }
    // Rows of keys behind the sentence's end may hold anything, since their scores are replaced. Rows of values there
    // must be zeros, since they are multiplied, with weights of 0: TMA, which knows nothing of sentences, cannot fetch
    // a chunk that is not full.
    __device__ void copyChunk(int32_t key, int slot)
    {
        uint32_t const there = mMemory.chunkThere(slot);
        int64_t const row = mTile.firstKey + key;
        if (key + kKEYS <= mTile.keys)
        {
            if (isFirst())
            {
                arriveAndExpect(there, 2 * Chunk::kBYTES);
                copyTile<In, kKEYS, kSIZE>(mMemory.keys(slot), mMap, mColumn + mHidden, row, there);
                copyTile<In, kKEYS, kSIZE>(mMemory.values(slot), mMap, mColumn + 2 * mHidden, row, there);
            }
            return;
        }
        int64_t const stride = int64_t{3} * mHidden;
        In const* const keys = mOfHead + row * stride + mHidden;
        int32_t const count = mTile.keys - key;
        TileLoader<In, kKEYS, kSIZE, Shape::kFETCHERS> loader;
        loader.start(keys, stride, count, mMemory.keys(slot));
        loader.start(keys + mHidden, stride, count, mMemory.values(slot));
        endGroup();
        waitForGroups<0>();
        showAndArrive(there);
    }

    CUtensorMap const& mMap;
    QueryTile const& mTile;
    Memory const& mMemory;
    Progress<kSLOTS>& mProgress;
    int32_t mHidden;
    int32_t mColumn;
    In const* mOfHead;
};

// The warp's 16 rows of the context, of which `rows` exist, by way of the warp's own shared memory. From there a
// copy (TMA) writes them while the next tile is computed; fewer than 16, since it knows nothing of sentences, the lanes
// write in pieces of 16 bytes. int8 does not take this way.
template <typename T, int kSIZE>
__device__ void storeRows(AttentionProblem const& p, CUtensorMap const& map, uint32_t memory,
    int64_t firstToken, int32_t rows, uint32_t head, float const (&sums)[kSIZE / 8][4],
    float const (&factors)[2])
{
    using Rows = SharedTile<16, kSIZE>;
    constexpr int kPIECES = kSIZE / 8; // of a row
    if (p.outputType == ElementType::kINT8)
    {
        storeContext<kSIZE>(p, firstToken, rows, head, sums, factors);
        return;
    }
    int const lane = static_cast<int>(threadIdx.x % kWARP);
    if (lane == 0)
    {
        waitForStores(); // of the last tile
    }
    __syncwarp();
    stageContext<T, kSIZE>(memory, sums, factors);
    showToTensorCores(); // and to copies
    __syncwarp();
    if (rows < 16)
    {
        for (int i = lane; i < rows * kPIECES; i += kWARP)
        {
            T* const row = contextRow<T, kSIZE>(p, firstToken + i / kPIECES, head);
            reinterpret_cast<uint4*>(row)[i % kPIECES]
                = loadPiece(memory + Rows::offset(i / kPIECES, i % kPIECES));
        }
    }
    else if (lane == 0)
    {
#pragma unroll
        for (int panel = 0; panel < kSIZE / Rows::kPANEL_COLUMNS; ++panel)
        {
            storeBox(map, static_cast<int32_t>(head) * kSIZE + panel * Rows::kPANEL_COLUMNS,
                static_cast<int32_t>(firstToken), memory + panel * Rows::kPANEL_BYTES);
        }
    }
}

// One of the warpgroups that compute, on its 64 queries of a tile.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, bool kOVERLAP>
__device__ void attend(AttentionProblem const& p, CUtensorMap const& contextMap, QueryTile const& tile,
    uint32_t head, HopperMemory<HopperShape<In, kSIZE, kGROUPS, kKEYS, kSLOTS>, kSLOTS> const& memory,
    Progress<kSLOTS>& progress)
{
    using T = Operand<In>;
    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);

    uint32_t queries[kSIZE / 16][4];
    uint32_t weights[kKEYS / 16][4];
    float scores[kKEYS / 8][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesThere(), progress.queries.parity);
    letNextKernelIn();
    progress.queries.next();
    loadQueries<kQUERIES, kSIZE>(queries, memory.queries(warp / 4), warp % 4 * 16);
    // The next tile's queries may come when this tile's are in registers: after the first product, which takes them
    // from there. To arrive right after the loads is too early, since an arrival does not wait for them and overtakes
    // them: of 400 runs with 128 sentences of 64 tokens on an H200, 119 had a query's row of another tile.
    auto const releaseQueries = [&]
    {
        __syncwarp();
        if (first)
        {
            arrive(memory.queriesRead());
        }
    };
    if (tile.keys == 0)
    {
        settle(queries);
        releaseQueries();
    }

    Turn<kSLOTS>& turn = progress.chunks;
    int previous = 0;
    for (int32_t key = 0; key < tile.keys; key += kKEYS)
    {
        bits.gather(key / kKEYS);
        bits.fetch(key / kKEYS + 1);
        waitForBarrier(memory.chunkThere(turn.slot), turn.parity);
        settle(queries);
        settle(scores);
        multiplyKeys<T, kKEYS, kSIZE>(scores, queries, memory.keys(turn.slot));
        if (key == 0)
        {
            releaseQueries();
        }
        if (kOVERLAP && key > 0)
        {
            settle(sums);
            settle(weights);
            multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(previous));
            waitForProducts<1>();
        }
        else
        {
            waitForProducts<0>();
        }
        settle(scores);
        if (!bits.all())
        {
            hide(scores, bits);
        }
        bool const rescale = softmax.weigh(scores);
        if (kOVERLAP)
        {
            waitForProducts<0>();
            settle(sums);
            settle(weights);
            if (first && key > 0)
            {
                arrive(memory.chunkRead(previous));
            }
        }
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<T>(weights, scores);
        if (!kOVERLAP)
        {
            settle(weights);
            settle(sums);
            multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(turn.slot));
            waitForProducts<0>();
            settle(sums);
            if (first)
            {
                arrive(memory.chunkRead(turn.slot));
            }
        }
        previous = turn.slot;
        turn.next();
    }
    if (kOVERLAP && tile.keys > 0)
    {
        settle(weights);
        settle(sums);
        multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(previous));
        waitForProducts<0>();
        settle(sums);
        if (first)
        {
            arrive(memory.chunkRead(previous));
        }
    }
    float factors[2];
    softmax.finish(factors);
    storeRows<T, kSIZE>(p, contextMap, memory.context(warp), tile.firstQuery + warp * 16,
        tile.queries - warp * 16, head, sums, factors);
}

// kBLOCKS of them at a time on a multiprocessor.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP>
__global__ void __launch_bounds__((kGROUPS + 1) * kWARPGROUP, kBLOCKS)
    qkvToContextHopperKernel(AttentionProblem const p, uint32_t tiles,
        __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSLOTS>;
    using Share = Registers<kGROUPS, kBLOCKS, 32>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    HopperMemory<Shape, kSLOTS> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        initBarrier(memory.queriesThere(), 1);
        initBarrier(memory.queriesRead(), Shape::kREADERS);
        for (int slot = 0; slot < kSLOTS; ++slot)
        {
            initBarrier(memory.chunkThere(slot), 1);
            initBarrier(memory.chunkRead(slot), Shape::kREADERS);
        }
        showBarriers();
    }
    if (threadIdx.x == kGROUPS * kWARPGROUP)
    {
        prefetchMap(qkvMap);
        if (p.outputType != ElementType::kINT8)
        {
            prefetchMap(contextMap);
        }
    }
    __syncthreads();
    Progress<kSLOTS> progress;
    if (threadIdx.x / kWARPGROUP == kGROUPS)
    {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kFETCHING));
        if (threadIdx.x % kWARPGROUP < Shape::kFETCHERS)
        {
            forTiles<Shape::kROWS>(
                p, tiles,
                [&](QueryTile const& tile, uint32_t head)
                {
                    Fetcher<In, kSIZE, kGROUPS, kKEYS, kSLOTS>{p, qkvMap, tile, head, memory, progress}.run();
                },
                [](QueryTile const&, uint32_t) {});
        }
    }
    else
    {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCOMPUTING));
        forTiles<Shape::kROWS>(
            p, tiles,
            [&](QueryTile const& tile, uint32_t head)
            {
                attend<In, kSIZE, kGROUPS, kKEYS, kSLOTS, kOVERLAP>(
                    p, contextMap, tile, head, memory, progress);
            },
            [&](QueryTile const& tile, uint32_t head)
            { poison<kSIZE>(p, tile, head, kGROUPS * kWARPGROUP); });
        waitForStores();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// Columns of all tokens as a matrix, from or to which boxes of `rows` rows of one panel of columns are copied.
template <typename In, int kSIZE>
cudaError_t describeRows(
    CUtensorMap& map, void const* data, QkvToContextArguments const& a, uint64_t columns, uint32_t rows)
{
    uint64_t const tokens = static_cast<uint64_t>(a.length) * (a.cuSeqlens != nullptr ? 1 : a.sentences);
    cuuint64_t const sizes[2] = {columns, tokens};
    cuuint32_t const box[2] = {SharedTile<kBOX_ROWS, kSIZE>::kPANEL_COLUMNS, rows};
    return describeTensor<In>(map, data, sizes, box);
}

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSLOTS, int kBLOCKS, bool kOVERLAP>
cudaError_t launchShape(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSLOTS>;
    uint64_t const width = static_cast<uint64_t>(a.heads) * kSIZE;
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeRows<In, kSIZE>(qkvMap, a.qkv, a, 3 * width, kBOX_ROWS); // (T, 3H)
    if (status == cudaSuccess && a.outputType == a.type)
    {
        status = describeRows<In, kSIZE>(contextMap, a.context, a, width, 16); // (T, H)
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    // Blocks stay and take tile after tile: the next one's keys come while the last one's context is computed.
    auto const tiles = static_cast<uint32_t>(countBlocks<Shape::kROWS>(a));
    uint32_t const blocks = std::min(tiles, static_cast<uint32_t>(multiprocessors * kBLOCKS));
    return launchEarly(qkvToContextHopperKernel<In, kSIZE, kGROUPS, kKEYS, kSLOTS, kBLOCKS, kOVERLAP>,
        LaunchSize{blocks, Shape::kTHREADS, Shape::kBYTES}, stream, makeProblem<Shape::kROWS>(a), tiles,
        qkvMap, contextMap);
}

// Three warpgroups share keys and values: worth it if there are tiles for two rounds and their rows are in use.
bool suitsThreeGroups(QkvToContextArguments const& a, int multiprocessors)
{
    constexpr int kROWS = 3 * kQUERIES;
    int32_t const tiles = (a.length + kROWS - 1) / kROWS;
    bool const full = tiles * kROWS - a.length <= a.length / 16;
    return a.cuSeqlens == nullptr && full && countBlocks<kROWS>(a) >= 2 * multiprocessors;
}

} // namespace

// Measured on an H200 with 12 heads of 64.
cudaError_t launchQkvToContextHopper(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    return dispatchTensor(arguments,
        [&](auto element, auto size)
        {
            using In = decltype(element);
            if constexpr (sizeof(In) == 1)
            {
                return cudaErrorNotSupported; // int8 has a kernel of its own
            }
            else if constexpr (size() == 128)
            {
                return launchShape<In, 128, 1, 64, 2, 2, false>(arguments, multiprocessors, stream);
            }
            else
            {
                if (suitsThreeGroups(arguments, multiprocessors))
                {
                    return launchShape<In, size(), 3, 128, 3, 1, false>(arguments, multiprocessors, stream);
                }
                if (countBlocks<kQUERIES>(arguments) > 2 * multiprocessors)
                {
                    return launchShape<In, size(), 1, 64, 3, 3, true>(arguments, multiprocessors, stream);
                }
                return launchShape<In, size(), 1, 128, 2, 2, false>(arguments, multiprocessors, stream);
            }
        });
}

} // namespace bert
