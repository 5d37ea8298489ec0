// Attention with Hopper's tensor cores (wgmma). What changed against the tensor kernel:
//
//   - A warpgroup of four warps computes 64 queries. wgmma reads keys and values from shared memory once for all four
//     warps, and not through registers.
//   - wgmma is asynchronous: while the softmax of one chunk is computed, the tensor cores multiply the weights of the
//     previous chunk with its values.
//   - Warp specialisation: a producer warp loads tiles with TMA, and consumer warpgroups compute. Consumers
//     have no load instructions and no common barrier: each warpgroup waits for its next chunk alone, and while one
//     of them computes its softmax, the tensor cores work for the others.
//   - The kernel is persistent: a block computes tile after tile.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_tma.cuh"
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

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSTAGES>
struct HopperShape
{
    static constexpr int kTHREADS = (kGROUPS + 1) * kWARPGROUP; // the last warpgroup is the producer
    static constexpr int kROWS = kGROUPS * kQUERIES;
    static constexpr int kCONSUMER_WARPS = kGROUPS * 4; // warps
    // One warp starts the copies. The rest of its warpgroup exists because registers are reassigned by warpgroup.
    static constexpr int kPRODUCERS = kWARP;
    using Queries = SharedTile<kQUERIES, kSIZE>;
    using Chunk = SharedTile<kKEYS, kSIZE>;
    using Rows = SharedTile<16, kSIZE>; // a warp's rows of the context
    // Offsets in shared memory.
    static constexpr int kCONTEXTS = kGROUPS * Queries::kBYTES;
    static constexpr int kCHUNKS = kCONTEXTS + kCONSUMER_WARPS * Rows::kBYTES;
    static constexpr int kBARRIERS = kCHUNKS + kSTAGES * 2 * Chunk::kBYTES;
    static constexpr int kBYTES = kBARRIERS + (2 + kSTAGES) * 16;
};

// Addresses in shared memory. Each full barrier signals that data has arrived, each empty barrier that it has been
// read.
template <typename Shape, int kSTAGES>
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
    __device__ uint32_t keys(int stage) const
    {
        return begin + Shape::kCHUNKS + stage * 2 * Shape::Chunk::kBYTES;
    }
    __device__ uint32_t values(int stage) const
    {
        return keys(stage) + Shape::Chunk::kBYTES;
    }
    __device__ uint32_t queriesFull() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t queriesEmpty() const
    {
        return queriesFull() + 8;
    }
    __device__ uint32_t chunkFull(int stage) const
    {
        return begin + Shape::kBARRIERS + 16 * (1 + stage);
    }
    __device__ uint32_t chunkEmpty(int stage) const
    {
        return chunkFull(stage) + 8;
    }
    __device__ uint32_t partialFull() const // a partial chunk has arrived
    {
        return chunkFull(kSTAGES);
    }
};

// The state of a block's pipelines, which continues from tile to tile.
template <int kSTAGES>
struct Progress
{
    PipelineState<1> queries;
    PipelineState<kSTAGES> chunks;
    PipelineState<1> partial; // the producer's only
};

// Copies kROWS rows of a head in boxes. One thread calls it.
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

// Loads one tile of queries and all keys and values of its sequence. The threads of the warp stay together from chunk
// to chunk: a thread that came two phases late would wait for a parity that has already passed.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSTAGES>
class Producer
{
public:
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSTAGES>;
    using Memory = HopperMemory<Shape, kSTAGES>;

    __device__ Producer(AttentionProblem const& p, CUtensorMap const& map, QueryTile const& tile,
        uint32_t head, Memory const& memory, Progress<kSTAGES>& progress)
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
        waitUntilEmpty(mMemory.queriesEmpty(), mProgress.queries);
        copyQueries();
        __syncwarp();
        for (int32_t key = 0; key < mTile.keys; key += kKEYS)
        {
            int const stage = mProgress.chunks.stage;
            waitUntilEmpty(mMemory.chunkEmpty(stage), mProgress.chunks);
            copyChunk(key, stage);
            __syncwarp();
        }
    }

private:
    using Chunk = typename Shape::Chunk;

    static __device__ bool isFirst()
    {
        return threadIdx.x % kWARPGROUP == 0;
    }
    // Waits for the opposite parity, which counts as complete before the first phase: a stage that was never used is
    // empty.
    template <int kRING>
    static __device__ void waitUntilEmpty(uint32_t barrier, PipelineState<kRING>& state)
    {
        waitForBarrier(barrier, state.parity ^ 1U);
        state.advance();
    }
    __device__ void copyQueries()
    {
        if (isFirst())
        {
            arriveAndExpect(mMemory.queriesFull(), kGROUPS * Shape::Queries::kBYTES);
#pragma unroll
            for (int group = 0; group < kGROUPS; ++group)
            {
                copyTile<In, kQUERIES, kSIZE>(mMemory.queries(group), mMap, mColumn,
                    mTile.firstQuery + group * kQUERIES, mMemory.queriesFull());
            }
        }
    }
    // Rows of a partial chunk beyond the end of the sequence are those of other tokens. The scores of such keys are
    // masked; such values are cleared before the consumers learn of the chunk.
    __device__ void copyChunk(int32_t key, int stage)
    {
        bool const partial = key + kKEYS > mTile.keys;
        uint32_t const full = mMemory.chunkFull(stage);
        uint32_t const there = partial ? mMemory.partialFull() : full;
        if (isFirst())
        {
            int64_t const row = mTile.firstKey + key;
            arriveAndExpect(there, 2 * Chunk::kBYTES);
            copyTile<In, kKEYS, kSIZE>(mMemory.keys(stage), mMap, mColumn + mHidden, row, there);
            copyTile<In, kKEYS, kSIZE>(mMemory.values(stage), mMap, mColumn + 2 * mHidden, row, there);
        }
        if (partial)
        {
            waitForBarrier(there, mProgress.partial.parity);
            mProgress.partial.advance();
            clearRows<kKEYS, kSIZE, Shape::kPRODUCERS>(mMemory.values(stage), mTile.keys - key);
            __syncwarp();
            if (isFirst())
            {
                arrive(full);
            }
        }
    }

    CUtensorMap const& mMap;
    QueryTile const& mTile;
    Memory const& mMemory;
    Progress<kSTAGES>& mProgress;
    int32_t mHidden;
    int32_t mColumn;
};

// A consumer warpgroup without queries of the tile: it reads nothing.
template <typename Memory, int kSTAGES>
__device__ void skipTile(int32_t chunks, Memory const& memory, Progress<kSTAGES>& progress)
{
    bool const first = threadIdx.x % kWARP == 0;
    waitForBarrier(memory.queriesFull(), progress.queries.parity);
    triggerDependentLaunch();
    progress.queries.advance();
    if (first)
    {
        arrive(memory.queriesEmpty());
    }
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        waitForBarrier(memory.chunkFull(progress.chunks.stage), progress.chunks.parity);
        if (first)
        {
            arrive(memory.chunkEmpty(progress.chunks.stage));
        }
        progress.chunks.advance();
    }
}

// A consumer warpgroup computes its 64 queries of a tile.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSTAGES, bool kOVERLAP>
__device__ void attend(AttentionProblem const& p, CUtensorMap const& contextMap, QueryTile const& tile,
    uint32_t head, HopperMemory<HopperShape<In, kSIZE, kGROUPS, kKEYS, kSTAGES>, kSTAGES> const& memory,
    Progress<kSTAGES>& progress)
{
    using T = Operand<In>;
    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    // A vote, so that the compiler knows that all lanes of a warp get the same.
    if (kGROUPS > 1 && __any_sync(kALL_LANES, warp / 4 * kQUERIES >= tile.queries))
    {
        skipTile((tile.keys + kKEYS - 1) / kKEYS, memory, progress);
        return;
    }
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);

    uint32_t queries[kSIZE / 16][4];
    uint32_t weights[kKEYS / 16][4];
    float scores[kKEYS / 8][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesFull(), progress.queries.parity);
    triggerDependentLaunch();
    progress.queries.advance();
    loadQueries<kQUERIES, kSIZE>(queries, memory.queries(warp / 4), warp % 4 * 16);
    // The producer may overwrite the queries once they are in registers: after the first matmul, which reads them
    // from registers. Arriving right after the ldmatrix loads is too early: an arrival does not wait for loads and
    // can overtake them, and a query's row then comes from another tile.
    auto const releaseQueries = [&]
    {
        __syncwarp();
        if (first)
        {
            arrive(memory.queriesEmpty());
        }
    };
    if (tile.keys == 0)
    {
        fenceRegisters(queries);
        releaseQueries();
    }

    PipelineState<kSTAGES>& pipeline = progress.chunks;
    int previous = 0; // stage
    for (int32_t key = 0; key < tile.keys; key += kKEYS)
    {
        bits.gather(key / kKEYS);
        bits.fetch(key / kKEYS + 1);
        waitForBarrier(memory.chunkFull(pipeline.stage), pipeline.parity);
        fenceRegisters(queries);
        fenceRegisters(scores);
        multiplyKeys<T, kKEYS, kSIZE>(scores, queries, memory.keys(pipeline.stage));
        if (key == 0)
        {
            releaseQueries();
        }
        if (kOVERLAP && key > 0)
        {
            fenceRegisters(sums);
            fenceRegisters(weights);
            multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(previous));
            wgmmaWait<1>();
        }
        else
        {
            wgmmaWait<0>();
        }
        fenceRegisters(scores);
        if (!bits.all())
        {
            maskScores(scores, bits);
        }
        bool const rescale = softmax.weigh(scores);
        if (kOVERLAP)
        {
            wgmmaWait<0>();
            fenceRegisters(sums);
            fenceRegisters(weights);
            if (first && key > 0)
            {
                arrive(memory.chunkEmpty(previous));
            }
        }
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<T>(weights, scores);
        if (!kOVERLAP)
        {
            fenceRegisters(weights);
            fenceRegisters(sums);
            multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(pipeline.stage));
            wgmmaWait<0>();
            fenceRegisters(sums);
            if (first)
            {
                arrive(memory.chunkEmpty(pipeline.stage));
            }
        }
        previous = pipeline.stage;
        pipeline.advance();
    }
    if (kOVERLAP && tile.keys > 0)
    {
        fenceRegisters(weights);
        fenceRegisters(sums);
        multiplyValues<T, kKEYS, kSIZE>(sums, weights, memory.values(previous));
        wgmmaWait<0>();
        fenceRegisters(sums);
        if (first)
        {
            arrive(memory.chunkEmpty(previous));
        }
    }
    float factors[2];
    softmax.finish(factors);
    int64_t const token = tile.firstQuery + warp * 16;
    int32_t const rows = tile.queries - warp * 16;
    if (isEightBits(p.outputType))
    {
        storeContextInEightBits<kSIZE>(p, token, rows, head, sums, factors);
        return;
    }
    if (first)
    {
        waitForStores(); // of the previous tile
    }
    __syncwarp();
    storeRows<T, kSIZE>(p, contextMap, memory.context(warp), token, rows, head, sums, factors);
}

// Occupancy: kBLOCKS blocks per multiprocessor.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSTAGES, int kBLOCKS, bool kOVERLAP>
__global__ void __launch_bounds__((kGROUPS + 1) * kWARPGROUP, kBLOCKS)
    qkvToContextHopperKernel(AttentionProblem const p, uint32_t tiles,
        __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSTAGES>;
    using Share = RegisterBudget<kGROUPS, kBLOCKS, 32>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    HopperMemory<Shape, kSTAGES> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        initBarrier(memory.queriesFull(), 1);
        initBarrier(memory.queriesEmpty(), Shape::kCONSUMER_WARPS);
        initBarrier(memory.partialFull(), 1);
        for (int stage = 0; stage < kSTAGES; ++stage)
        {
            initBarrier(memory.chunkFull(stage), 1);
            initBarrier(memory.chunkEmpty(stage), Shape::kCONSUMER_WARPS);
        }
        fenceBarrierInit();
    }
    if (threadIdx.x == kGROUPS * kWARPGROUP)
    {
        prefetchMap(qkvMap);
        if (!isEightBits(p.outputType))
        {
            prefetchMap(contextMap);
        }
    }
    __syncthreads();
    Progress<kSTAGES> progress;
    if (threadIdx.x / kWARPGROUP == kGROUPS)
    {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kPRODUCER));
        if (threadIdx.x % kWARPGROUP < Shape::kPRODUCERS)
        {
            forTiles<Shape::kROWS>(
                p, tiles,
                [&](QueryTile const& tile, uint32_t head)
                {
                    Producer<In, kSIZE, kGROUPS, kKEYS, kSTAGES>{p, qkvMap, tile, head, memory, progress}
                        .run();
                },
                [](QueryTile const&, uint32_t) {});
        }
    }
    else
    {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCONSUMER));
        forTiles<Shape::kROWS>(
            p, tiles,
            [&](QueryTile const& tile, uint32_t head)
            {
                attend<In, kSIZE, kGROUPS, kKEYS, kSTAGES, kOVERLAP>(
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

// The tensor map of a matrix (tokens, columns), with boxes of `rows` rows of one panel of columns.
template <typename In, int kSIZE>
cudaError_t describeRows(
    CUtensorMap& map, void const* data, QkvToContextArguments const& a, uint64_t columns, uint32_t rows)
{
    uint64_t const tokens = static_cast<uint64_t>(a.length) * (a.cuSeqlens != nullptr ? 1 : a.sequences);
    cuuint64_t const sizes[2] = {columns, tokens};
    cuuint32_t const box[2] = {SharedTile<kBOX_ROWS, kSIZE>::kPANEL_COLUMNS, rows};
    return describeTensor<In>(map, data, sizes, box);
}

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kSTAGES, int kBLOCKS, bool kOVERLAP>
cudaError_t launchShape(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kSTAGES>;
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
    // A persistent kernel: the next tile's keys are loaded while the context of the current tile is computed. Packed
    // sequences have at least one tile fewer than the bound unless tokens follow the last one. Such tiles have little
    // to do, so they get no block of their own, which without them would end at once: the next kernel's early blocks
    // would crowd in its place.
    auto const tiles = static_cast<uint32_t>(countBlocks<Shape::kROWS>(a));
    auto const likely
        = static_cast<uint32_t>((divideUp(a.length, Shape::kROWS) + std::max(a.sequences, 1) - 1) * a.heads);
    uint32_t const blocks
        = std::min(a.cuSeqlens == nullptr ? tiles : likely, static_cast<uint32_t>(multiprocessors * kBLOCKS));
    return launchDependent(qkvToContextHopperKernel<In, kSIZE, kGROUPS, kKEYS, kSTAGES, kBLOCKS, kOVERLAP>,
        LaunchSize{blocks, Shape::kTHREADS, Shape::kBYTES}, stream, makeProblem<Shape::kROWS>(a), tiles,
        qkvMap, contextMap);
}

// The length of a sequence. The host does not know the lengths of packed sequences, so it chooses by their average.
int64_t averageLength(QkvToContextArguments const& a)
{
    return a.cuSeqlens == nullptr ? a.length : divideUp(a.length, std::max(a.sequences, 1));
}

// Whether a block of three consumer warpgroups, which share keys and values in chunks of 128, pays off: there must be
// tiles for two rounds, and most rows of their queries and keys must be in use.
bool suitsThreeGroups(QkvToContextArguments const& a, int multiprocessors)
{
    int64_t const length = averageLength(a);
    auto const unused = [&](int64_t rows) { return divideUp(length, rows) * rows - length; };
    constexpr int kROWS = 3 * kQUERIES;
    return std::max(unused(kROWS), unused(128)) <= length / 16
           && divideUp(length, kROWS) * a.sequences * a.heads >= 2 * multiprocessors;
}

} // namespace

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
                return cudaErrorNotSupported; // int8 has kernels of its own
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
                // Packed sequences of this length have no short kernel, and would leave chunks of 128 keys unused.
                if (averageLength(arguments) <= 128 || countBlocks<kQUERIES>(arguments) > 2 * multiprocessors)
                {
                    return launchShape<In, size(), 1, 64, 3, 3, true>(arguments, multiprocessors, stream);
                }
                return launchShape<In, size(), 1, 128, 2, 2, false>(arguments, multiprocessors, stream);
            }
        });
}

} // namespace bert
