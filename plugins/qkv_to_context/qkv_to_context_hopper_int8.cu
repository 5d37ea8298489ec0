// Attention on int8 with Hopper's tensor cores (wgmma), for any number and length of sentences, packed ones too. What
// changed for int8 against the hopper kernel:
//
//   - Queries and keys are multiplied as int8, as the copies (TMA) bring them: half the bytes, twice the speed.
//   - Scores need no conversion, their maximum half as many instructions (qkv_to_context_int8.cuh).
//   - A block is one warpgroup with two tiles of queries: while the softmax of one is computed, the tensor cores
//     multiply for the other. It fetches for itself, as soon as its four warps have read a chunk.
//   - Values cannot be multiplied as int8. They are widened to fp16 between the exponentials of the second tile, one
//     chunk ahead, once for both tiles: the exponentials keep their unit busy for longer than the instructions that
//     widen take.
//   - Copies bring every chunk, also one that is not full: whatever lies behind a sentence's end is a number in int8,
//     and its weight is 0.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_int8.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kKEYS = 64; // of a chunk
constexpr int kROWS = 2 * kQUERIES;

// A chunk of keys and of narrow values is in one of kSLOTS slots, its widened values in one of two.
template <int kSIZE, int kSLOTS>
struct HopperInt8Shape
{
    static constexpr int kCHUNK = kKEYS * kSIZE; // bytes
    static constexpr int kTILE = kQUERIES * kSIZE;
    // Where the parts of shared memory begin.
    static constexpr int kKEYS_BEGIN = 2 * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kSLOTS * kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kSLOTS * kCHUNK;
    static constexpr int kBARRIERS = kVALUES + 2 * 2 * kCHUNK;
    static constexpr int kBYTES = kBARRIERS + 8 + kSLOTS * 16;
};

// The addresses in shared memory, by number of a tile or of a chunk; and the parity of a chunk's barriers.
template <int kSIZE, int kSLOTS>
struct HopperInt8Memory
{
    using Shape = HopperInt8Shape<kSIZE, kSLOTS>;
    uint32_t begin;

    static __device__ uint32_t parity(uint32_t chunk)
    {
        return chunk / kSLOTS % 2;
    }
    __device__ uint32_t queries(int tile) const
    {
        return begin + tile * Shape::kTILE;
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
        return begin + Shape::kVALUES + chunk % 2 * 2 * Shape::kCHUNK;
    }
    __device__ uint32_t queriesThere() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t keysThere(uint32_t chunk) const
    {
        return begin + Shape::kBARRIERS + 8 + chunk % kSLOTS * 16;
    }
    __device__ uint32_t valuesThere(uint32_t chunk) const // narrow ones
    {
        return keysThere(chunk) + 8;
    }
};

// Starts the copies of a block's chunks; one thread does.
template <int kSIZE, int kSLOTS>
struct Int8Fetcher
{
    CUtensorMap const& map;
    HopperInt8Memory<kSIZE, kSLOTS> const& memory;
    Place place;
    int32_t column; // of the head's queries
    int32_t hidden;
    int32_t chunks;

    __device__ void begin() const
    {
        fetchRows<kROWS, kBOX_ROWS, kSIZE>(
            memory.queries(0), map, column, place.firstQuery, place.matrix, memory.queriesThere());
        for (int32_t chunk = 0; chunk < kSLOTS; ++chunk)
        {
            fetchKeys(chunk);
            fetchValues(chunk);
        }
    }
    // Nothing if there is no such chunk.
    __device__ void fetchKeys(int32_t chunk) const
    {
        fetch(chunk, memory.keys(chunk), hidden, memory.keysThere(chunk));
    }
    __device__ void fetchValues(int32_t chunk) const
    {
        fetch(chunk, memory.narrowValues(chunk), 2 * hidden, memory.valuesThere(chunk));
    }

private:
    __device__ void fetch(int32_t chunk, uint32_t target, int32_t behindQueries, uint32_t there) const
    {
        if (chunk < chunks)
        {
            fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
                target, map, column + behindQueries, place.firstKey + chunk * kKEYS, place.matrix, there);
        }
    }
};

// What a warpgroup holds of a tile of 64 queries, from chunk to chunk.
template <int kSIZE>
struct TileState
{
    uint32_t weights[kKEYS / 16][4];
    float sums[kSIZE / 8][4]{};
    BiasedSoftmax softmax;

    explicit __device__ TileState(float scale)
        : softmax(scale)
    {
    }
    __device__ void settleAll()
    {
        settle(sums);
        settle(weights);
    }
    __device__ void startValues(uint32_t values)
    {
        settleAll();
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, values);
    }
    // Scores become weights, while the tensor cores may compute the sums of `busy`, which may be this tile.
    template <typename Between = Nothing>
    __device__ void weigh(uint32_t const (&products)[kKEYS / 8][4], KeyBits<kKEYS> const& bits,
        TileState& busy, Between&& between = {})
    {
        float scores[kKEYS / 8][4];
        readBiased(scores, products, bits);
        bool const rescale = softmax.weigh(scores, between);
        waitForProducts<0>();
        busy.settleAll();
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
    }
};

// Begins the first tile's products with the keys of a chunk, once these are there.
template <int kSIZE, int kSLOTS>
__device__ void beginChunk(uint32_t (&products)[kKEYS / 8][4], KeyBits<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSLOTS> const& memory, int32_t chunk)
{
    bits.gather(chunk);
    bits.fetch(chunk + 1);
    waitForBarrier(memory.keysThere(chunk), memory.parity(chunk));
    multiplyKeysBiased<kKEYS, kSIZE>(products, memory.queries(0), memory.keys(chunk));
}

// Two tiles of queries. Products go on while the softmax of the other tile is computed: the first one's scores and the
// second one's sums of the chunk before, then the second one's scores and the first one's sums.
template <int kSIZE, int kSLOTS>
__device__ void attendPair(TileState<kSIZE> (&tiles)[2], KeyBits<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSLOTS> const& memory, Int8Fetcher<kSIZE, kSLOTS> const& fetcher)
{
    uint32_t products[kKEYS / 8][4];
    int32_t const chunks = fetcher.chunks;
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        beginChunk(products, bits, memory, chunk);
        if (chunk > 0)
        {
            tiles[1].startValues(memory.values(chunk - 1));
            waitForProducts<1>();
        }
        else
        {
            waitForBarrier(memory.valuesThere(0), 0);
            Widener<kKEYS, kSIZE>{memory.values(0), memory.narrowValues(0)}.run();
            showToTensorCores();
            waitForProducts<0>();
        }
        settle(products);
        tiles[0].weigh(products, bits, tiles[1]);
        // This chunk's values are widened; nobody reads keys and widened values of the chunk before any more.
        __syncthreads();
        if (threadIdx.x == 0)
        {
            if (chunk > 0)
            {
                fetcher.fetchKeys(chunk - 1 + kSLOTS);
            }
            fetcher.fetchValues(chunk + kSLOTS);
        }
        __syncwarp();
        multiplyKeysBiased<kKEYS, kSIZE>(products, memory.queries(1), memory.keys(chunk));
        tiles[0].startValues(memory.values(chunk));
        waitForProducts<1>();
        settle(products);
        int32_t const next = chunk + 1;
        if (next < chunks)
        {
            waitForBarrier(memory.valuesThere(next), memory.parity(next));
        }
        // Behind the last chunk it widens what there is, for nobody.
        tiles[1].weigh(
            products, bits, tiles[0], Widener<kKEYS, kSIZE>{memory.values(next), memory.narrowValues(next)});
        showToTensorCores();
    }
    tiles[1].startValues(memory.values(chunks - 1));
}

// One tile: where a sentence leaves a block no more than 64 queries.
template <int kSIZE, int kSLOTS>
__device__ void attendOne(TileState<kSIZE>& tile, KeyBits<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSLOTS> const& memory, Int8Fetcher<kSIZE, kSLOTS> const& fetcher)
{
    uint32_t products[kKEYS / 8][4];
    int32_t const chunks = fetcher.chunks;
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        beginChunk(products, bits, memory, chunk);
        if (chunk > 0)
        {
            tile.startValues(memory.values(chunk - 1));
            waitForProducts<1>();
        }
        else
        {
            waitForProducts<0>();
        }
        settle(products);
        waitForBarrier(memory.valuesThere(chunk), memory.parity(chunk));
        tile.weigh(
            products, bits, tile, Widener<kKEYS, kSIZE>{memory.values(chunk), memory.narrowValues(chunk)});
        showToTensorCores();
        // This chunk's values are widened; nobody reads its keys and narrow values any more.
        __syncthreads();
        if (threadIdx.x == 0)
        {
            fetcher.fetchKeys(chunk + kSLOTS);
            fetcher.fetchValues(chunk + kSLOTS);
        }
        __syncwarp();
    }
    tile.startValues(memory.values(chunks - 1));
}

// kBLOCKS of them at a time on a multiprocessor; each takes one pair of tiles.
template <int kSIZE, int kSLOTS, int kBLOCKS, bool kPACKED>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextHopperInt8Kernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    HopperInt8Memory<kSIZE, kSLOTS> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
        initBarrier(memory.queriesThere(), 1);
        for (int slot = 0; slot < kSLOTS; ++slot)
        {
            initBarrier(memory.keysThere(slot), 1);
            initBarrier(memory.valuesThere(slot), 1);
        }
        showBarriers();
    }
    if (kPACKED)
    {
        waitForPreviousKernel();
    }
    uint32_t const head = blockIdx.x % p.heads;
    uint32_t const number = blockIdx.x / p.heads;
    QueryTile const tile
        = kPACKED ? findPackedTile<kROWS>(p, static_cast<int32_t>(number)) : findEqualTile<kROWS>(p, number);
    if (kPACKED && tile.broken)
    {
        poison<kSIZE>(p, tile, head, kWARPGROUP);
        return;
    }
    int32_t const ofWarp = static_cast<int32_t>(threadIdx.x / kWARP) * 16;
    TileState<kSIZE> tiles[2]{TileState<kSIZE>{p.scale}, TileState<kSIZE>{p.scale}};
    auto const storeTile = [&](int i)
    {
        int32_t const row = i * kQUERIES + ofWarp;
        float factors[2];
        tiles[i].softmax.finish(factors);
        storeWarpRows<kSIZE, kPACKED>(
            p, contextMap, tile, head, row, memory.queries(0) + row * kSIZE, tiles[i].sums, factors);
    };
    if (kPACKED && tile.keys == 0) // tokens of no sentence: zeros; or no work
    {
        storeTile(0);
        storeTile(1);
        waitForStores();
        return;
    }
    Int8Fetcher<kSIZE, kSLOTS> const fetcher{qkvMap, memory, placeOf<kPACKED>(tile),
        static_cast<int32_t>(head) * kSIZE, p.heads * kSIZE,
        static_cast<int32_t>((static_cast<uint32_t>(tile.keys) + kKEYS - 1) / kKEYS)};
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        fetcher.begin();
    }
    __syncwarp();
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // the others see initialised barriers; the copies are on their way
    waitForBarrier(memory.queriesThere(), 0);
    waitForBarrier(memory.keysThere(0), 0);
    if (!kPACKED) // packed, it is faster at the end: 8 sentences of 16 to 128 tokens take 5.84 us instead of 6.24
    {
        letNextKernelIn();
    }
    // Contexts take the queries' place, which all have multiplied by then.
    if (tile.queries > kQUERIES)
    {
        attendPair(tiles, bits, memory, fetcher);
        __syncthreads();
        storeTile(0);
        waitForProducts<0>();
        tiles[1].settleAll();
        storeTile(1);
    }
    else
    {
        attendOne(tiles[0], bits, memory, fetcher);
        waitForProducts<0>();
        tiles[0].settleAll();
        __syncthreads();
        storeTile(0);
    }
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kSLOTS, int kBLOCKS, bool kPACKED>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t const status = describeInt8<kSIZE>(qkvMap, contextMap, a);
    if (status != cudaSuccess)
    {
        return status;
    }
    LaunchSize const size{
        static_cast<unsigned int>(countBlocks<kROWS>(a)), kWARPGROUP, HopperInt8Shape<kSIZE, kSLOTS>::kBYTES};
    return launchEarly(qkvToContextHopperInt8Kernel<kSIZE, kSLOTS, kBLOCKS, kPACKED>, size, stream,
        makeProblem<kROWS>(a), qkvMap, contextMap);
}

} // namespace

// Microseconds on an H200, 12 heads of 64, development runs:
//
//     B, S                                                     32, 384   8, 512
//     3 slots, values widened between exponentials             40.88     17.74
//     4 slots, between                                         40.87     18.01
//     6 slots, between                                         40.74     18.14
//     4 slots, before them                                     41.39     18.20
//     4 slots, between, two of 8 exponentials a polynomial     42.29     18.32
//     fp16 (hopper)                                            39.31     17.89
cudaError_t launchQkvToContextHopperInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    if (!suitsHopperInt8Kernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    bool const packed = arguments.cuSeqlens != nullptr;
    switch (arguments.headSize)
    {
    case 32:
        return packed ? launchShape<32, 4, 3, true>(arguments, stream)
                      : launchShape<32, 4, 3, false>(arguments, stream);
    case 64:
        return packed ? launchShape<64, 4, 3, true>(arguments, stream)
                      : launchShape<64, 3, 3, false>(arguments, stream);
    default:
        return packed ? launchShape<128, 4, 2, true>(arguments, stream)
                      : launchShape<128, 4, 2, false>(arguments, stream);
    }
}

} // namespace bert
