// Attention on int8 with Hopper's tensor cores for many sequences, where tiles of 192 queries fill the GPU. What
// changed against hopper_int8:
//
//   - Three consumer warpgroups of a block compute 64 queries each and share keys and values, in chunks of 128.
//   - A producer warpgroup loads, and widens values once for all three.
//   - The kernel is persistent: the next tile's queries and keys are loaded while the context of the current tile is
//     computed.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_int8.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kGROUPS = 3;                   // consumer warpgroups
constexpr int kKEYS = 128;                   // of a chunk
constexpr int kSTAGES = 4;                   // of chunks
constexpr int kCONSUMER_WARPS = 4 * kGROUPS; // warps
constexpr int kROWS = kGROUPS * kQUERIES;
constexpr int kTHREADS = (kGROUPS + 1) * kWARPGROUP; // the last warpgroup is the producer
using Share = RegisterBudget<kGROUPS, 1, 40>;

template <int kSIZE>
struct SharedInt8Shape
{
    static constexpr int kCHUNK = kKEYS * kSIZE; // bytes
    static constexpr int kTILE = kROWS * kSIZE;
    // Offsets in shared memory: two tiles of queries, then stages of keys, of narrow (int8) and of widened (fp16)
    // values.
    static constexpr int kKEYS_BEGIN = 2 * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kSTAGES * kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kSTAGES * kCHUNK;
    static constexpr int kCONTEXTS = kVALUES + kSTAGES * 2 * kCHUNK;
    static constexpr int kBARRIERS = kCONTEXTS + kTILE;
    static constexpr int kBYTES = kBARRIERS + 32 + kSTAGES * 32;
};

// Addresses in shared memory, by the numbers of tiles and chunks among those of the block, and the parities of their
// barriers.
template <int kSIZE>
struct SharedInt8Memory
{
    using Shape = SharedInt8Shape<kSIZE>;
    uint32_t begin;

    static __device__ uint32_t tileParity(uint32_t tile)
    {
        return tile / 2 % 2;
    }
    static __device__ uint32_t parity(uint32_t chunk)
    {
        return chunk / kSTAGES % 2;
    }
    __device__ uint32_t queries(uint32_t tile) const
    {
        return begin + tile % 2 * Shape::kTILE;
    }
    __device__ uint32_t keys(uint32_t chunk) const
    {
        return begin + Shape::kKEYS_BEGIN + chunk % kSTAGES * Shape::kCHUNK;
    }
    __device__ uint32_t narrowValues(uint32_t chunk) const
    {
        return begin + Shape::kNARROW_VALUES + chunk % kSTAGES * Shape::kCHUNK;
    }
    __device__ uint32_t values(uint32_t chunk) const
    {
        return begin + Shape::kVALUES + chunk % kSTAGES * 2 * Shape::kCHUNK;
    }
    __device__ uint32_t context(int32_t row) const
    {
        return begin + Shape::kCONTEXTS + row * kSIZE;
    }
    __device__ uint32_t queriesFull(uint32_t tile) const
    {
        return begin + Shape::kBARRIERS + tile % 2 * 16;
    }
    __device__ uint32_t queriesEmpty(uint32_t tile) const
    {
        return queriesFull(tile) + 8;
    }
    __device__ uint32_t keysFull(uint32_t chunk) const
    {
        return begin + Shape::kBARRIERS + 32 + chunk % kSTAGES * 32;
    }
    __device__ uint32_t valuesFull(uint32_t chunk) const // narrow ones
    {
        return keysFull(chunk) + 8;
    }
    __device__ uint32_t valuesWidened(uint32_t chunk) const
    {
        return keysFull(chunk) + 16;
    }
    __device__ uint32_t chunkEmpty(uint32_t chunk) const
    {
        return keysFull(chunk) + 24;
    }
    __device__ void initBarriers() const
    {
        for (uint32_t tile = 0; tile < 2; ++tile)
        {
            initBarrier(queriesFull(tile), 1);
            initBarrier(queriesEmpty(tile), kCONSUMER_WARPS);
        }
        for (uint32_t stage = 0; stage < kSTAGES; ++stage)
        {
            initBarrier(keysFull(stage), 1);
            initBarrier(valuesFull(stage), 1);
            initBarrier(valuesWidened(stage), 4); // warps
            initBarrier(chunkEmpty(stage), kCONSUMER_WARPS);
        }
        fenceBarrierInit();
    }
};

// Arrives once for the warp, after all its lanes have come here.
inline __device__ void arriveOfWarp(uint32_t barrier)
{
    __syncwarp();
    if (threadIdx.x % kWARP == 0)
    {
        arrive(barrier);
    }
    __syncwarp();
}

// The producer warpgroup: loads the queries, keys and values of all tiles of a block, and widens the values.
template <int kSIZE>
class SharedInt8Producer
{
public:
    __device__ SharedInt8Producer(AttentionProblem const& p, CUtensorMap const& map, uint32_t chunksOfTile,
        SharedInt8Memory<kSIZE> const& memory)
        : mProblem(p)
        , mMap(map)
        , mChunksOfTile(chunksOfTile)
        , mInFlight(min(kMAX_IN_FLIGHT, chunksOfTile))
        , mMemory(memory)
    {
    }
    __device__ void run(uint32_t tiles)
    {
        uint32_t const tilesOfBlock = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
        uint32_t const chunks = tilesOfBlock * mChunksOfTile;
        for (uint32_t chunk = 0; chunk < chunks + mInFlight; ++chunk)
        {
            if (chunk < chunks)
            {
                // The opposite parity counts as complete before the first phase: a stage that was never used is
                // empty.
                waitForBarrier(mMemory.chunkEmpty(chunk), mMemory.parity(chunk) ^ 1U);
                if (threadIdx.x % kWARPGROUP == 0)
                {
                    fetch(chunk);
                }
                __syncwarp();
                nextChunk();
            }
            if (chunk >= mInFlight)
            {
                widenChunk(chunk - mInFlight);
            }
        }
    }

private:
    // The limit of chunks in flight while one is widened; the other stages may still be read by consumers. Also at
    // most the chunks of a tile: loading a tile's queries waits until the queries of the last tile but one have been
    // read, and for that all chunks of that tile must have been widened. More chunks in flight would be a deadlock.
    static constexpr uint32_t kMAX_IN_FLIGHT = kSTAGES - 2;

    __device__ void fetch(uint32_t chunk)
    {
        uint32_t const index = blockIdx.x + mTile * gridDim.x;
        Coordinates const coordinates
            = coordinatesOf<false>(findEqualTile<kROWS>(mProblem, index / mProblem.heads));
        int32_t const column = static_cast<int32_t>(index % mProblem.heads) * kSIZE;
        int32_t const hidden = mProblem.heads * kSIZE;
        if (mChunkOfTile == 0)
        {
            waitForBarrier(mMemory.queriesEmpty(mTile), mMemory.tileParity(mTile) ^ 1U);
            fetchRows<kROWS, kBOX_ROWS, kSIZE>(mMemory.queries(mTile), mMap, column, coordinates.firstQuery,
                coordinates.matrix, mMemory.queriesFull(mTile));
        }
        int32_t const row = static_cast<int32_t>(mChunkOfTile) * kKEYS;
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
            mMemory.keys(chunk), mMap, column + hidden, row, coordinates.matrix, mMemory.keysFull(chunk));
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(mMemory.narrowValues(chunk), mMap, column + 2 * hidden, row,
            coordinates.matrix, mMemory.valuesFull(chunk));
    }
    __device__ void nextChunk()
    {
        ++mChunkOfTile;
        if (mChunkOfTile == mChunksOfTile)
        {
            mChunkOfTile = 0;
            ++mTile;
        }
    }
    __device__ void widenChunk(uint32_t chunk)
    {
        waitForBarrier(mMemory.valuesFull(chunk), mMemory.parity(chunk));
        Widener<kKEYS, kSIZE>{mMemory.values(chunk), mMemory.narrowValues(chunk)}.run();
        fenceAsyncProxy();
        arriveOfWarp(mMemory.valuesWidened(chunk));
    }

    AttentionProblem const& mProblem;
    CUtensorMap const& mMap;
    uint32_t mChunksOfTile;
    uint32_t mInFlight;
    SharedInt8Memory<kSIZE> const& mMemory;
    uint32_t mTile{0};        // whose chunks are loaded next, among those of the block
    uint32_t mChunkOfTile{0}; // to be loaded next
};

// A consumer warpgroup computes its 64 queries of tile `number` of the block. `chunk` is the number of its first
// chunk, and on return that of the next tile's first.
template <int kSIZE>
__device__ void attendShared(float (&sums)[kSIZE / 8][4], float (&factors)[2], uint32_t& chunk,
    uint32_t number, AttentionProblem const& p, QueryTile const& tile, uint32_t chunksOfTile,
    SharedInt8Memory<kSIZE> const& memory)
{
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);
    uint32_t const queries = memory.queries(number) + threadIdx.x / kWARPGROUP * kQUERIES * kSIZE;
    uint32_t weights[kKEYS / 16][4];
    BiasedSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesFull(number), memory.tileParity(number));
    triggerDependentLaunch();
    for (uint32_t ofTile = 0; ofTile < chunksOfTile; ++ofTile, ++chunk)
    {
        bits.gather(static_cast<int32_t>(ofTile));
        bits.fetch(static_cast<int32_t>(ofTile) + 1);
        uint32_t products[kKEYS / 8][4];
        float scores[kKEYS / 8][4];
        waitForBarrier(memory.keysFull(chunk), memory.parity(chunk));
        multiplyKeysBiased<kKEYS, kSIZE>(products, queries, memory.keys(chunk));
        wgmmaWait<0>();
        fenceRegisters(products);
        readBiased(scores, products, bits);
        if (softmax.weigh(scores))
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
        waitForBarrier(memory.valuesWidened(chunk), memory.parity(chunk));
        fenceRegisters(sums);
        fenceRegisters(weights);
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, memory.values(chunk));
        wgmmaWait<0>();
        fenceRegisters(sums);
        fenceRegisters(weights);
        arriveOfWarp(memory.chunkEmpty(chunk));
    }
    arriveOfWarp(memory.queriesEmpty(number));
    softmax.finish(factors);
}

template <int kSIZE>
__global__ void __launch_bounds__(kTHREADS, 1)
    qkvToContextSharedInt8Kernel(AttentionProblem const p, uint32_t tiles,
        __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    SharedInt8Memory<kSIZE> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        memory.initBarriers();
    }
    if (threadIdx.x == kGROUPS * kWARPGROUP)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
    }
    __syncthreads();
    uint32_t const chunksOfTile = (static_cast<uint32_t>(p.length) + kKEYS - 1) / kKEYS;
    if (threadIdx.x / kWARPGROUP == kGROUPS)
    {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kPRODUCER));
        waitForPreviousKernel();
        SharedInt8Producer<kSIZE>{p, qkvMap, chunksOfTile, memory}.run(tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCONSUMER));
    int32_t const ofWarp = static_cast<int32_t>(threadIdx.x / kWARP) * 16;
    uint32_t number = 0;
    uint32_t chunk = 0;
    waitForPreviousKernel();
    for (uint32_t index = blockIdx.x; index < tiles; index += gridDim.x, ++number)
    {
        QueryTile const tile = findEqualTile<kROWS>(p, index / p.heads);
        float sums[kSIZE / 8][4]{};
        float factors[2];
        attendShared<kSIZE>(sums, factors, chunk, number, p, tile, chunksOfTile, memory);
        if (threadIdx.x % kWARP == 0)
        {
            waitForStores(); // of the previous tile
        }
        __syncwarp();
        storeWarpRows<kSIZE, false>(
            p, contextMap, tile, index % p.heads, ofWarp, memory.context(ofWarp), sums, factors);
    }
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE>
cudaError_t launchSize(QkvToContextArguments const& a, cudaStream_t stream)
{
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeInt8<kSIZE>(qkvMap, contextMap, a);
    if (status != cudaSuccess)
    {
        return status;
    }
    int multiprocessors = 0;
    status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    auto const tiles = static_cast<uint32_t>(countBlocks<kROWS>(a));
    uint32_t const blocks = std::min(tiles, static_cast<uint32_t>(multiprocessors));
    return launchDependent(qkvToContextSharedInt8Kernel<kSIZE>,
        LaunchSize{blocks, kTHREADS, SharedInt8Shape<kSIZE>::kBYTES}, stream, makeProblem<kROWS>(a), tiles,
        qkvMap, contextMap);
}

} // namespace

cudaError_t launchQkvToContextSharedInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    if (!suitsSharedInt8Kernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return arguments.headSize == 32 ? launchSize<32>(arguments, stream) : launchSize<64>(arguments, stream);
}

} // namespace bert
