// Attention on int8 with Hopper's tensor cores (wgmma), for any number and length of sequences, packed ones included.
// What changed for int8 against the hopper kernel:
//
//   - Queries and keys are multiplied as int8, directly from the TMA copies: half the bytes, twice the speed.
//   - Scores need no conversion, and their maximum takes half as many instructions (qkv_to_context_int8.cuh).
//   - A block is one warpgroup with two tiles of queries: while the softmax of one tile is computed, the tensor cores
//     work for the other. There is no producer warp: one thread loads a chunk as soon as the four warps have read an
//     old one.
//   - Values cannot be multiplied as int8. They are widened to fp16 between the exponentials of the second tile, one
//     chunk ahead, once for both tiles. The exponential unit limits the kernel, so the instructions that widen are
//     nearly free.
//   - TMA loads every chunk, partial ones included: any byte beyond the end of a sequence is a finite int8 number,
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

// Chunks of keys and of narrow (int8) values have kSTAGES stages, widened (fp16) values two.
template <int kSIZE, int kSTAGES>
struct HopperInt8Shape
{
    static constexpr int kCHUNK = kKEYS * kSIZE; // bytes
    static constexpr int kTILE = kQUERIES * kSIZE;
    // Offsets in shared memory.
    static constexpr int kKEYS_BEGIN = 2 * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kSTAGES * kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kSTAGES * kCHUNK;
    static constexpr int kBARRIERS = kVALUES + 2 * 2 * kCHUNK;
    static constexpr int kBYTES = kBARRIERS + 8 + kSTAGES * 16;
};

// Addresses in shared memory, by the number of a tile or of a chunk, and the parity of a chunk's barriers.
template <int kSIZE, int kSTAGES>
struct HopperInt8Memory
{
    using Shape = HopperInt8Shape<kSIZE, kSTAGES>;
    uint32_t begin;

    static __device__ uint32_t parity(uint32_t chunk)
    {
        return chunk / kSTAGES % 2;
    }
    __device__ uint32_t queries(int tile) const
    {
        return begin + tile * Shape::kTILE;
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
        return begin + Shape::kVALUES + chunk % 2 * 2 * Shape::kCHUNK;
    }
    __device__ uint32_t queriesFull() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t keysFull(uint32_t chunk) const
    {
        return begin + Shape::kBARRIERS + 8 + chunk % kSTAGES * 16;
    }
    __device__ uint32_t valuesFull(uint32_t chunk) const // narrow ones
    {
        return keysFull(chunk) + 8;
    }
};

// Starts the copies of a block's chunks. One thread calls it.
template <int kSIZE, int kSTAGES>
struct Int8Loader
{
    CUtensorMap const& map;
    HopperInt8Memory<kSIZE, kSTAGES> const& memory;
    Coordinates coordinates;
    int32_t column; // of the head's queries
    int32_t hidden;
    int32_t chunks;

    __device__ void begin() const
    {
        fetchRows<kROWS, kBOX_ROWS, kSIZE>(
            memory.queries(0), map, column, coordinates.firstQuery, coordinates.matrix, memory.queriesFull());
        for (int32_t chunk = 0; chunk < kSTAGES; ++chunk)
        {
            fetchKeys(chunk);
            fetchValues(chunk);
        }
    }
    // Does nothing if the chunk does not exist.
    __device__ void fetchKeys(int32_t chunk) const
    {
        fetch(chunk, memory.keys(chunk), hidden, memory.keysFull(chunk));
    }
    __device__ void fetchValues(int32_t chunk) const
    {
        fetch(chunk, memory.narrowValues(chunk), 2 * hidden, memory.valuesFull(chunk));
    }

private:
    __device__ void fetch(int32_t chunk, uint32_t target, int32_t behindQueries, uint32_t there) const
    {
        if (chunk < chunks)
        {
            fetchRows<kKEYS, kBOX_ROWS, kSIZE>(target, map, column + behindQueries,
                coordinates.firstKey + chunk * kKEYS, coordinates.matrix, there);
        }
    }
};

// A warpgroup's registers for a tile of 64 queries, which persist from chunk to chunk.
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
    __device__ void fenceAll()
    {
        fenceRegisters(sums);
        fenceRegisters(weights);
    }
    __device__ void startValues(uint32_t values)
    {
        fenceAll();
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, values);
    }
    // Replaces scores by weights, while the tensor cores may compute the sums of `busy`, which may be this tile.
    template <typename Between = NoOp>
    __device__ void weigh(uint32_t const (&products)[kKEYS / 8][4], KeyMask<kKEYS> const& bits,
        TileState& busy, Between&& between = {})
    {
        float scores[kKEYS / 8][4];
        readBiased(scores, products, bits);
        bool const rescale = softmax.weigh(scores, between);
        wgmmaWait<0>();
        busy.fenceAll();
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
    }
};

// Starts the first tile's matmul with the keys of a chunk, once these have arrived.
template <int kSIZE, int kSTAGES>
__device__ void beginChunk(uint32_t (&products)[kKEYS / 8][4], KeyMask<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSTAGES> const& memory, int32_t chunk)
{
    bits.gather(chunk);
    bits.fetch(chunk + 1);
    waitForBarrier(memory.keysFull(chunk), memory.parity(chunk));
    multiplyKeysBiased<kKEYS, kSIZE>(products, memory.queries(0), memory.keys(chunk));
}

// Computes two tiles of queries. wgmma runs while the softmax of the other tile is computed: first the scores of tile
// 0 and the sums of tile 1 for the previous chunk, then the scores of tile 1 and the sums of tile 0.
template <int kSIZE, int kSTAGES>
__device__ void attendPair(TileState<kSIZE> (&tiles)[2], KeyMask<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSTAGES> const& memory, Int8Loader<kSIZE, kSTAGES> const& loader)
{
    uint32_t products[kKEYS / 8][4];
    int32_t const chunks = loader.chunks;
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        beginChunk(products, bits, memory, chunk);
        if (chunk > 0)
        {
            tiles[1].startValues(memory.values(chunk - 1));
            wgmmaWait<1>();
        }
        else
        {
            waitForBarrier(memory.valuesFull(0), 0);
            Widener<kKEYS, kSIZE>{memory.values(0), memory.narrowValues(0)}.run();
            fenceAsyncProxy();
            wgmmaWait<0>();
        }
        fenceRegisters(products);
        tiles[0].weigh(products, bits, tiles[1]);
        // This chunk's values are widened; no warp reads keys and widened values of the previous chunk any more.
        __syncthreads();
        if (threadIdx.x == 0)
        {
            if (chunk > 0)
            {
                loader.fetchKeys(chunk - 1 + kSTAGES);
            }
            loader.fetchValues(chunk + kSTAGES);
        }
        __syncwarp();
        multiplyKeysBiased<kKEYS, kSIZE>(products, memory.queries(1), memory.keys(chunk));
        tiles[0].startValues(memory.values(chunk));
        wgmmaWait<1>();
        fenceRegisters(products);
        int32_t const next = chunk + 1;
        if (next < chunks)
        {
            waitForBarrier(memory.valuesFull(next), memory.parity(next));
        }
        // After the last chunk this widens old data, which no warp reads.
        tiles[1].weigh(
            products, bits, tiles[0], Widener<kKEYS, kSIZE>{memory.values(next), memory.narrowValues(next)});
        fenceAsyncProxy();
    }
    tiles[1].startValues(memory.values(chunks - 1));
}

// Computes one tile, for a block with at most 64 queries.
template <int kSIZE, int kSTAGES>
__device__ void attendOne(TileState<kSIZE>& tile, KeyMask<kKEYS>& bits,
    HopperInt8Memory<kSIZE, kSTAGES> const& memory, Int8Loader<kSIZE, kSTAGES> const& loader)
{
    uint32_t products[kKEYS / 8][4];
    int32_t const chunks = loader.chunks;
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        beginChunk(products, bits, memory, chunk);
        if (chunk > 0)
        {
            tile.startValues(memory.values(chunk - 1));
            wgmmaWait<1>();
        }
        else
        {
            wgmmaWait<0>();
        }
        fenceRegisters(products);
        waitForBarrier(memory.valuesFull(chunk), memory.parity(chunk));
        tile.weigh(
            products, bits, tile, Widener<kKEYS, kSIZE>{memory.values(chunk), memory.narrowValues(chunk)});
        fenceAsyncProxy();
        // This chunk's values are widened; no warp reads its keys and narrow values any more.
        __syncthreads();
        if (threadIdx.x == 0)
        {
            loader.fetchKeys(chunk + kSTAGES);
            loader.fetchValues(chunk + kSTAGES);
        }
        __syncwarp();
    }
    tile.startValues(memory.values(chunks - 1));
}

// Occupancy: kBLOCKS blocks per multiprocessor, each with one pair of tiles.
template <int kSIZE, int kSTAGES, int kBLOCKS, bool kPACKED>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextHopperInt8Kernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    HopperInt8Memory<kSIZE, kSTAGES> const memory{sharedAddress(bytes)};
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
        initBarrier(memory.queriesFull(), 1);
        for (int stage = 0; stage < kSTAGES; ++stage)
        {
            initBarrier(memory.keysFull(stage), 1);
            initBarrier(memory.valuesFull(stage), 1);
        }
        fenceBarrierInit();
    }
    if (kPACKED)
    {
        waitForPreviousKernel();
    }
    uint32_t const head = blockIdx.x % p.heads;
    uint32_t const number = blockIdx.x / p.heads;
    QueryTile const tile
        = kPACKED ? findPackedTile<kROWS>(p, static_cast<int32_t>(number)) : findEqualTile<kROWS>(p, number);
    if (kPACKED && tile.invalid)
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
    if (kPACKED && tile.keys == 0) // tokens after the last sequence become zeros; or there is no work
    {
        storeTile(0);
        storeTile(1);
        waitForStores();
        return;
    }
    Int8Loader<kSIZE, kSTAGES> const loader{qkvMap, memory, coordinatesOf<kPACKED>(tile),
        static_cast<int32_t>(head) * kSIZE, p.heads * kSIZE,
        static_cast<int32_t>((static_cast<uint32_t>(tile.keys) + kKEYS - 1) / kKEYS)};
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        loader.begin();
    }
    __syncwarp();
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // all threads see initialised barriers; the copies are in flight
    waitForBarrier(memory.queriesFull(), 0);
    waitForBarrier(memory.keysFull(0), 0);
    if (!kPACKED) // if packed, the implicit trigger at the end is faster
    {
        triggerDependentLaunch();
    }
    // Contexts reuse the memory of the queries, which all warps have read by then.
    if (tile.queries > kQUERIES)
    {
        attendPair(tiles, bits, memory, loader);
        __syncthreads();
        storeTile(0);
        wgmmaWait<0>();
        tiles[1].fenceAll();
        storeTile(1);
    }
    else
    {
        attendOne(tiles[0], bits, memory, loader);
        wgmmaWait<0>();
        tiles[0].fenceAll();
        __syncthreads();
        storeTile(0);
    }
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kSTAGES, int kBLOCKS, bool kPACKED>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t const status = describeInt8<kSIZE>(qkvMap, contextMap, a);
    if (status != cudaSuccess)
    {
        return status;
    }
    LaunchSize const size{static_cast<unsigned int>(countBlocks<kROWS>(a)), kWARPGROUP,
        HopperInt8Shape<kSIZE, kSTAGES>::kBYTES};
    return launchDependent(qkvToContextHopperInt8Kernel<kSIZE, kSTAGES, kBLOCKS, kPACKED>, size, stream,
        makeProblem<kROWS>(a), qkvMap, contextMap);
}

} // namespace

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
