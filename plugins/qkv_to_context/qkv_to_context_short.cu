// Attention with Hopper's tensor cores for sequences of at most 128 tokens. What changed against the hopper kernel:
//
//   - A block takes up to 128 queries of one head of one sequence, and loads them and all keys and values at once.
//     While it waits, the other blocks of the multiprocessor compute, so it needs no pipeline and no producer warp.
//   - All keys are one chunk: the softmax knows the maximum before the first exponential.
//   - In the tensor map each sequence is a matrix of its own: TMA reads rows beyond the end of a sequence as zeros
//     and does not write them.
//   - The tensor cores read queries from shared memory, too.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_tma.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// A block is one warpgroup, which computes kTILES tiles of 64 queries.
template <int kSIZE, int kKEYS, int kTILES>
struct ShortShape
{
    static constexpr int kROWS = kTILES * kQUERIES;
    static constexpr int kBOX_ROWS = kROWS < kKEYS ? kROWS : kKEYS;
    using Queries = SharedTile<kROWS, kSIZE>;
    using Keys = SharedTile<kKEYS, kSIZE>; // and values
    using Rows = SharedTile<16, kSIZE>;    // of a warp
    // Offsets in shared memory. Contexts have memory of their own instead of that of the queries, so that no warp
    // waits until all warps have read theirs.
    static constexpr int kKEYS_BEGIN = Queries::kBYTES;
    static constexpr int kVALUES_BEGIN = kKEYS_BEGIN + Keys::kBYTES;
    static constexpr int kCONTEXTS_BEGIN = kVALUES_BEGIN + Keys::kBYTES;
    static constexpr int kBARRIERS = kCONTEXTS_BEGIN + Queries::kBYTES;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// Computes the warpgroup's tiles one after the other and calls store(sums, factors, i) for each. While the softmax of
// one tile is computed, the tensor cores compute the scores of the next tile and the context of the previous one.
template <typename T, int kKEYS, int kSIZE, int kTILES, typename Store>
__device__ void attendTiles(uint32_t queries, uint32_t keys, uint32_t values, uint32_t valuesFull,
    KeyMask<kKEYS> const& bits, float scale, Store&& store)
{
    float scores[kTILES][kKEYS / 8][4];
    uint32_t weights[kTILES][kKEYS / 16][4];
    float sums[kTILES][kSIZE / 8][4];
    float factors[kTILES][2];
    auto const startTile = [&](int i)
    {
        fenceRegisters(scores[i]);
        multiplyKeys<T, kKEYS, kSIZE>(scores[i], queries + i * SharedTile<kQUERIES, kSIZE>::kBYTES, keys);
    };
    auto const finishTile = [&](int i)
    {
        wgmmaWait<0>();
        fenceRegisters(sums[i]);
        fenceRegisters(weights[i]);
    };
    startTile(0);
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        if (i + 1 < kTILES)
        {
            startTile(i + 1);
        }
        wgmmaWait<(kTILES > 1 ? 1 : 0)>(); // in flight: scores of the next tile, sums of the previous one
        fenceRegisters(scores[i]);
        if (!bits.all())
        {
            maskScores(scores[i], bits);
        }
        float largest[2];
        findLargest(largest, scores[i]);
        PlainSoftmax softmax{largest, scale};
        softmax.weigh(scores[i]);
        if (i > 0)
        {
            finishTile(i - 1);
        }
        packWeights<T>(weights[i], scores[i]);
        if (i == 0)
        {
            waitForBarrier(valuesFull, 0);
        }
        fenceRegisters(weights[i]);
        fenceRegisters(sums[i]);
        multiplyValues<T, kKEYS, kSIZE, false>(sums[i], weights[i], values);
        softmax.finish(factors[i]);
        if (i > 0)
        {
            store(sums[i - 1], factors[i - 1], i - 1);
        }
    }
    finishTile(kTILES - 1);
    store(sums[kTILES - 1], factors[kTILES - 1], kTILES - 1);
}

// Occupancy: kBLOCKS blocks per multiprocessor. kEIGHT_BITS: the context is int8 or E4M3, stored from registers.
template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS, bool kEIGHT_BITS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortKernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const values = queries + Shape::kVALUES_BEGIN;
    uint32_t const contexts = queries + Shape::kCONTEXTS_BEGIN;
    uint32_t const keysFull = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesFull = keysFull + 8;
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    int32_t const firstRow = Shape::kROWS < kKEYS ? static_cast<int32_t>(tile.firstQuery - tile.firstKey) : 0;
    int32_t const column = static_cast<int32_t>(head) * kSIZE;
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        if constexpr (!kEIGHT_BITS)
        {
            prefetchMap(contextMap);
        }
        initBarrier(keysFull, 1);
        initBarrier(valuesFull, 1);
        fenceBarrierInit();
    }
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        constexpr int kBOX_ROWS = Shape::kBOX_ROWS;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysFull, Shape::kVALUES_BEGIN);
        copyBoxes<Shape::kROWS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            queries, qkvMap, column, firstRow, tile.sequence, keysFull);
        copyBoxes<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            keys, qkvMap, column + hidden, 0, tile.sequence, keysFull);
        fetchRows<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            values, qkvMap, column + 2 * hidden, 0, tile.sequence, valuesFull);
    }
    __syncwarp();
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // all threads see initialised barriers; the copies are in flight
    bits.gather(0);

    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    auto const storeTile = [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
    {
        int32_t const row = i * kQUERIES + warp * 16; // within the block
        if constexpr (kEIGHT_BITS)
        {
            storeContextInEightBits<kSIZE>(p, tile.firstQuery + row, tile.queries - row, head, sums, factors);
            return;
        }
        uint32_t const rows = contexts + row * Shape::Rows::kROW_BYTES;
        stageContext<T, kSIZE>(rows, sums, factors);
        fenceAsyncProxy();
        __syncwarp();
        if (first)
        {
            storeBox(contextMap, column, firstRow + row, tile.sequence, rows);
        }
    };
    waitForBarrier(keysFull, 0);
    triggerDependentLaunch();
    attendTiles<T, kKEYS, kSIZE, kTILES>(queries, keys, values, valuesFull, bits, p.scale, storeTile);
    if constexpr (!kEIGHT_BITS)
    {
        waitForStores();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// The shared memory to request, at least `least`, so that the occupancy is no higher than with an even distribution
// of blocks over multiprocessors. While the previous kernel still runs, few multiprocessors have room, and blocks
// that are launched early would otherwise crowd on those.
size_t sharedMemoryToSpread(int64_t blocks, int multiprocessors, size_t least)
{
    constexpr size_t kOF_MULTIPROCESSOR = 228 * 1024;
    auto const atATime = static_cast<size_t>(divideUp(blocks, multiprocessors));
    // atATime + 1 blocks do not fit, since each block needs 1 KB in addition to what it requests.
    return std::max(least, kOF_MULTIPROCESSOR / (atATime + 1));
}

template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
cudaError_t launchShape(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const sequences = static_cast<cuuint64_t>(a.sequences);
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeTensor<T>(
        qkvMap, a.qkv, {3 * width, length, sequences}, {kSIZE, Shape::kBOX_ROWS, 1}); // (B, S, 3H)
    bool const eightBits = a.outputType != a.type;
    if (status == cudaSuccess && !eightBits)
    {
        // (B, S, H); TMA does not write rows beyond the end of a sequence
        status = describeTensor<T>(contextMap, a.context, {width, length, sequences}, {kSIZE, 16, 1});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    int64_t const blocks = countBlocks<Shape::kROWS>(a);
    LaunchSize const size{static_cast<unsigned int>(blocks), kWARPGROUP,
        sharedMemoryToSpread(blocks, multiprocessors, Shape::kBYTES)};
    auto* const kernel = eightBits ? qkvToContextShortKernel<T, kSIZE, kKEYS, kTILES, kBLOCKS, true>
                                   : qkvToContextShortKernel<T, kSIZE, kKEYS, kTILES, kBLOCKS, false>;
    return launchDependent(kernel, size, stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// Chooses the number of queries and keys of a block (docs/kernels/attention.md has the measurements).
template <typename T, int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    if (a.length <= 64)
    {
        return launchShape<T, kSIZE, 64, 1, 6>(a, multiprocessors, stream);
    }
    if (int64_t{a.sequences} * a.heads <= 2 * multiprocessors) // all blocks are resident at the same time
    {
        return launchShape<T, kSIZE, 128, 1, 4>(a, multiprocessors, stream);
    }
    return launchShape<T, kSIZE, 128, 2, 3>(a, multiprocessors, stream);
}

} // namespace

cudaError_t launchQkvToContextShort(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (!suitsShortKernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return dispatchTensor(arguments,
        [&](auto element, auto size)
        {
            using T = decltype(element);
            if constexpr (sizeof(T) == 2 && size() <= 64)
            {
                return launchSuitable<T, size()>(arguments, multiprocessors, stream);
            }
            else
            {
                return cudaErrorNotSupported;
            }
        });
}

} // namespace bert
