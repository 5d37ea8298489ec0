// Attention on int8 with Hopper's tensor cores for so many sentences that blocks may take 192 queries each. What
// changed against the other kernel for long sentences of int8:
//
//   - Three warpgroups of a block take 64 queries each and share keys and values, chunks of 128.
//   - One more warpgroup does nothing but fetch, and widen values, once for all three.
//   - Blocks stay and take tile after tile: the next one's queries and keys come while the last one's context is
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

constexpr int kGROUPS = 3;            // that compute
constexpr int kKEYS = 128;            // of a chunk
constexpr int kSLOTS = 4;             // for chunks
constexpr int kREADERS = 4 * kGROUPS; // warps
constexpr int kROWS = kGROUPS * kQUERIES;
constexpr int kTHREADS = (kGROUPS + 1) * kWARPGROUP; // the last one fetches and widens
using Share = Registers<kGROUPS, 1, 40>;

template <int kSIZE>
struct SharedInt8Shape
{
    static constexpr int kCHUNK = kKEYS * kSIZE; // bytes
    static constexpr int kTILE = kROWS * kSIZE;
    // Where the parts of shared memory begin: two tiles of queries, then slots of keys, narrow and widened values.
    static constexpr int kKEYS_BEGIN = 2 * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kSLOTS * kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kSLOTS * kCHUNK;
    static constexpr int kCONTEXTS = kVALUES + kSLOTS * 2 * kCHUNK;
    static constexpr int kBARRIERS = kCONTEXTS + kTILE;
    static constexpr int kBYTES = kBARRIERS + 32 + kSLOTS * 32;
};

// The addresses in shared memory, by numbers of tiles and chunks among those of the block, and the parities of their
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
        return chunk / kSLOTS % 2;
    }
    __device__ uint32_t queries(uint32_t tile) const
    {
        return begin + tile % 2 * Shape::kTILE;
    }
    __device__ uint32_t keys(uint32_t chunk) const
    {
        return begin + Shape::kKEYS_BEGIN + chunk % kSLOTS * Shape::kCHUNK;
    }
    __device__ uint32_t narrowValues(uint32_t chunk) const
    {
        return begin + Shape::kNARROW_VALUES + chunk % kSLOTS * Shape::kCHUNK;
    }
    __device__ uint32_t values(uint32_t chunk) const
    {
        return begin + Shape::kVALUES + chunk % kSLOTS * 2 * Shape::kCHUNK;
    }
    __device__ uint32_t context(int32_t row) const
    {
        return begin + Shape::kCONTEXTS + row * kSIZE;
    }
    __device__ uint32_t queriesThere(uint32_t tile) const
    {
        return begin + Shape::kBARRIERS + tile % 2 * 16;
    }
    __device__ uint32_t queriesRead(uint32_t tile) const
    {
        return queriesThere(tile) + 8;
    }
    __device__ uint32_t keysThere(uint32_t chunk) const
    {
        return begin + Shape::kBARRIERS + 32 + chunk % kSLOTS * 32;
    }
    __device__ uint32_t valuesThere(uint32_t chunk) const // narrow ones
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
    __device__ void initBarriers() const
    {
        for (uint32_t tile = 0; tile < 2; ++tile)
        {
            initBarrier(queriesThere(tile), 1);
            initBarrier(queriesRead(tile), kREADERS);
        }
        for (uint32_t slot = 0; slot < kSLOTS; ++slot)
        {
            initBarrier(keysThere(slot), 1);
            initBarrier(valuesThere(slot), 1);
            initBarrier(valuesWidened(slot), 4); // warps
            initBarrier(chunkRead(slot), kREADERS);
        }
        showBarriers();
    }
};

// All lanes have done what the barrier is told of.
inline __device__ void arriveOfWarp(uint32_t barrier)
{
    __syncwarp();
    if (threadIdx.x % kWARP == 0)
    {
        arrive(barrier);
    }
    __syncwarp();
}

// What fetches the queries, keys and values of all tiles of a block, and widens the values. A warpgroup.
template <int kSIZE>
class SharedInt8Fetcher
{
public:
    __device__ SharedInt8Fetcher(AttentionProblem const& p, CUtensorMap const& map, uint32_t chunksOfTile,
        SharedInt8Memory<kSIZE> const& memory)
        : mProblem(p)
        , mMap(map)
        , mChunksOfTile(chunksOfTile)
        , mAhead(min(kMOST_AHEAD, chunksOfTile))
        , mMemory(memory)
    {
    }
    __device__ void run(uint32_t tiles)
    {
        uint32_t const tilesOfBlock = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
        uint32_t const chunks = tilesOfBlock * mChunksOfTile;
        for (uint32_t chunk = 0; chunk < chunks + mAhead; ++chunk)
        {
            if (chunk < chunks)
            {
                // What was never used needs no waiting: the parity before the first phase is complete.
                waitForBarrier(mMemory.chunkRead(chunk), mMemory.parity(chunk) ^ 1U);
                if (threadIdx.x % kWARPGROUP == 0)
                {
                    fetch(chunk);
                }
                __syncwarp();
                nextChunk();
            }
            if (chunk >= mAhead)
            {
                widenChunk(chunk - mAhead);
            }
        }
    }

private:
    // Chunks that are on their way while one is widened, at most. The others of the slots may still be multiplied. No
    // more than a tile has: queries come when those of the last tile but one are read, whose chunks must be widened by
    // then.
    static constexpr uint32_t kMOST_AHEAD = kSLOTS - 2;

    __device__ void fetch(uint32_t chunk)
    {
        uint32_t const index = blockIdx.x + mTile * gridDim.x;
        Place const place = placeOf<false>(findEqualTile<kROWS>(mProblem, index / mProblem.heads));
        int32_t const column = static_cast<int32_t>(index % mProblem.heads) * kSIZE;
        int32_t const hidden = mProblem.heads * kSIZE;
        if (mChunkOfTile == 0)
        {
            waitForBarrier(mMemory.queriesRead(mTile), mMemory.tileParity(mTile) ^ 1U);
            fetchRows<kROWS, kBOX_ROWS, kSIZE>(mMemory.queries(mTile), mMap, column, place.firstQuery,
                place.matrix, mMemory.queriesThere(mTile));
        }
        int32_t const row = static_cast<int32_t>(mChunkOfTile) * kKEYS;
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
            mMemory.keys(chunk), mMap, column + hidden, row, place.matrix, mMemory.keysThere(chunk));
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(mMemory.narrowValues(chunk), mMap, column + 2 * hidden, row,
            place.matrix, mMemory.valuesThere(chunk));
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
        waitForBarrier(mMemory.valuesThere(chunk), mMemory.parity(chunk));
        Widener<kKEYS, kSIZE>{mMemory.values(chunk), mMemory.narrowValues(chunk)}.run();
        showToTensorCores();
        arriveOfWarp(mMemory.valuesWidened(chunk));
    }

    AttentionProblem const& mProblem;
    CUtensorMap const& mMap;
    uint32_t mChunksOfTile;
    uint32_t mAhead;
    SharedInt8Memory<kSIZE> const& mMemory;
    uint32_t mTile{0};        // whose chunks are fetched, among those of the block
    uint32_t mChunkOfTile{0}; // to be fetched
};

// One of the warpgroups that compute, on its 64 queries of tile number `number` of the block; `chunk` is the number of
// its first chunk, then of the next tile's.
template <int kSIZE>
__device__ void attendShared(float (&sums)[kSIZE / 8][4], float (&factors)[2], uint32_t& chunk,
    uint32_t number, AttentionProblem const& p, QueryTile const& tile, uint32_t chunksOfTile,
    SharedInt8Memory<kSIZE> const& memory)
{
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);
    uint32_t const queries = memory.queries(number) + threadIdx.x / kWARPGROUP * kQUERIES * kSIZE;
    uint32_t weights[kKEYS / 16][4];
    BiasedSoftmax softmax{p.scale};
    waitForBarrier(memory.queriesThere(number), memory.tileParity(number));
    letNextKernelIn();
    for (uint32_t ofTile = 0; ofTile < chunksOfTile; ++ofTile, ++chunk)
    {
        bits.gather(static_cast<int32_t>(ofTile));
        bits.fetch(static_cast<int32_t>(ofTile) + 1);
        uint32_t products[kKEYS / 8][4];
        float scores[kKEYS / 8][4];
        waitForBarrier(memory.keysThere(chunk), memory.parity(chunk));
        multiplyKeysBiased<kKEYS, kSIZE>(products, queries, memory.keys(chunk));
        waitForProducts<0>();
        settle(products);
        readBiased(scores, products, bits);
        if (softmax.weigh(scores))
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
        waitForBarrier(memory.valuesWidened(chunk), memory.parity(chunk));
        settle(sums);
        settle(weights);
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, memory.values(chunk));
        waitForProducts<0>();
        settle(sums);
        settle(weights);
        arriveOfWarp(memory.chunkRead(chunk));
    }
    arriveOfWarp(memory.queriesRead(number));
    softmax.finish(factors);
}

template <int kSIZE>
__global__ void __launch_bounds__(kTHREADS, 1)
    qkvToContextSharedInt8Kernel(AttentionProblem const p, uint32_t tiles,
        __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
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
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Share::kFETCHING));
        waitForPreviousKernel();
        SharedInt8Fetcher<kSIZE>{p, qkvMap, chunksOfTile, memory}.run(tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Share::kCOMPUTING));
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
            waitForStores(); // of the last tile
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
    return launchEarly(qkvToContextSharedInt8Kernel<kSIZE>,
        LaunchSize{blocks, kTHREADS, SharedInt8Shape<kSIZE>::kBYTES}, stream, makeProblem<kROWS>(a), tiles,
        qkvMap, contextMap);
}

} // namespace

// Microseconds on an H200, 32 sentences of 384, 12 heads of 64, development run: 38.77; one or two of 8 exponentials as
// polynomials 39.42 and 40.85; two warpgroups and chunks of 64, two blocks to a multiprocessor 45.40; chunks of 64,
// products of values beside the next softmax 44.25; fp16 (hopper) 38.96.
cudaError_t launchQkvToContextSharedInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    if (!suitsSharedInt8Kernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return arguments.headSize == 32 ? launchSize<32>(arguments, stream) : launchSize<64>(arguments, stream);
}

} // namespace bert
