// Attention with Hopper's tensor cores for sentences of at most 128 tokens. What changed against the hopper kernel:
//
//   - A block takes up to 128 queries of one head of one sentence, fetches them and all keys and values at once, and is
//     done. While it waits, the other blocks of the multiprocessor compute: no ring of chunks, no warp that only
//     fetches.
//   - All keys are one chunk: the softmax knows its maximum from the beginning.
//   - To the copies (TMA), sentences are matrices of their own: what lies behind a sentence's end comes as zeros and is
//     not written.
//   - Queries, too, are read from shared memory by the tensor cores.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_copies.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// A block is one warpgroup, which takes kTILES times 64 queries.
template <int kSIZE, int kKEYS, int kTILES>
struct ShortShape
{
    static constexpr int kROWS = kTILES * kQUERIES;
    static constexpr int kBOX_ROWS = kROWS < kKEYS ? kROWS : kKEYS;
    using Queries = SharedTile<kROWS, kSIZE>;
    using Keys = SharedTile<kKEYS, kSIZE>; // and values
    using Rows = SharedTile<16, kSIZE>;    // of a warp
    // Where the parts of shared memory begin. Contexts do not take the place of queries: no warp has to wait until all
    // have read theirs.
    static constexpr int kKEYS_BEGIN = Queries::kBYTES;
    static constexpr int kVALUES_BEGIN = kKEYS_BEGIN + Keys::kBYTES;
    static constexpr int kCONTEXTS_BEGIN = kVALUES_BEGIN + Keys::kBYTES;
    static constexpr int kBARRIERS = kCONTEXTS_BEGIN + Queries::kBYTES;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// The warpgroup's tiles, one after the other; store(sums, factors, i) is called for each. The tensor cores multiply for
// the next tile's scores and the last one's context while the softmax of one is computed.
template <typename T, int kKEYS, int kSIZE, int kTILES, typename Store>
__device__ void attendTiles(uint32_t queries, uint32_t keys, uint32_t values, uint32_t valuesThere,
    KeyBits<kKEYS> const& bits, float scale, Store&& store)
{
    float scores[kTILES][kKEYS / 8][4];
    uint32_t weights[kTILES][kKEYS / 16][4];
    float sums[kTILES][kSIZE / 8][4];
    float factors[kTILES][2];
    auto const startTile = [&](int i)
    {
        settle(scores[i]);
        multiplyKeys<T, kKEYS, kSIZE>(scores[i], queries + i * SharedTile<kQUERIES, kSIZE>::kBYTES, keys);
    };
    auto const finishTile = [&](int i)
    {
        waitForProducts<0>();
        settle(sums[i]);
        settle(weights[i]);
    };
    startTile(0);
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        if (i + 1 < kTILES)
        {
            startTile(i + 1);
        }
        waitForProducts<(
            kTILES > 1 ? 1 : 0)>(); // what goes on: scores of the next tile, sums of the one before
        settle(scores[i]);
        if (!bits.all())
        {
            hide(scores[i], bits);
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
            waitForBarrier(valuesThere, 0);
        }
        settle(weights[i]);
        settle(sums[i]);
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

// kBLOCKS of them at a time on a multiprocessor.
template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortKernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const values = queries + Shape::kVALUES_BEGIN;
    uint32_t const contexts = queries + Shape::kCONTEXTS_BEGIN;
    uint32_t const keysThere = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesThere = keysThere + 8;
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    int32_t const firstRow = Shape::kROWS < kKEYS ? static_cast<int32_t>(tile.firstQuery - tile.firstKey) : 0;
    int32_t const column = static_cast<int32_t>(head) * kSIZE;
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
        initBarrier(keysThere, 1);
        initBarrier(valuesThere, 1);
        showBarriers();
    }
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        constexpr int kBOX_ROWS = Shape::kBOX_ROWS;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysThere, Shape::kVALUES_BEGIN);
        copyBoxes<Shape::kROWS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            queries, qkvMap, column, firstRow, tile.sentence, keysThere);
        copyBoxes<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            keys, qkvMap, column + hidden, 0, tile.sentence, keysThere);
        fetchRows<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            values, qkvMap, column + 2 * hidden, 0, tile.sentence, valuesThere);
    }
    __syncwarp();
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // the others see initialised barriers; the copies are on their way
    bits.gather(0);

    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    auto const storeTile = [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
    {
        int32_t const row = i * kQUERIES + warp * 16; // within the block
        uint32_t const rows = contexts + row * Shape::Rows::kROW_BYTES;
        stageContext<T, kSIZE>(rows, sums, factors);
        showToTensorCores(); // and to copies
        __syncwarp();
        if (first)
        {
            storeBox(contextMap, column, firstRow + row, tile.sentence, rows);
        }
    };
    waitForBarrier(keysThere, 0);
    letNextKernelIn();
    attendTiles<T, kKEYS, kSIZE, kTILES>(queries, keys, values, valuesThere, bits, p.scale, storeTile);
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// Shared memory to ask for, `least` or more, so that a multiprocessor has no more blocks at a time than if they were
// shared out evenly. The kernel before leaves few multiprocessors free, and blocks that are launched while it runs would
// lie there on top of each other. (H200, a layer of 8 sentences of 128: 43.0 to 42.0 us.)
size_t memoryToSpread(int64_t blocks, int multiprocessors, size_t least)
{
    constexpr size_t kOF_MULTIPROCESSOR = 228 * 1024;
    auto const atATime = static_cast<size_t>(divideUp(blocks, multiprocessors));
    return std::max(
        least, kOF_MULTIPROCESSOR / (atATime + 1)); // one more does not fit: each takes 1 KB besides
}

template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
cudaError_t launchShape(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const sentences = static_cast<cuuint64_t>(a.sentences);
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeTensor<T>(
        qkvMap, a.qkv, {3 * width, length, sentences}, {kSIZE, Shape::kBOX_ROWS, 1}); // (B, S, 3H)
    if (status == cudaSuccess)
    {
        // (B, S, H); rows behind a sentence's end are not written
        status = describeTensor<T>(contextMap, a.context, {width, length, sentences}, {kSIZE, 16, 1});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    int64_t const blocks = countBlocks<Shape::kROWS>(a);
    LaunchSize const size{static_cast<unsigned int>(blocks), kWARPGROUP,
        memoryToSpread(blocks, multiprocessors, Shape::kBYTES)};
    return launchEarly(qkvToContextShortKernel<T, kSIZE, kKEYS, kTILES, kBLOCKS>, size, stream,
        makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// The one place where it is decided how a sentence is shared out. Microseconds on an H200, 12 heads of 64, development
// runs, for what a block takes:
//
//     B, S                                8, 64   8, 128   22, 128   32, 128   128, 128
//     64 queries, 64 keys                 2.69
//     64 queries, 128 keys                4.14    4.39     4.80      6.86      29.2
//     128 queries                         5.90    5.40     5.91      6.13      28.2
//     128 queries, two warpgroups         4.90    4.57     4.90      7.87      30.1
//
// (The first row of 8, 128 is 3.33 since the next kernel is let in only when the keys are there.)
// Contexts that threads store by themselves, 8 bytes each, cost 0.3 us with one sentence of 128, 1.3 us with 8 and 3 to
// 4 us with 128.
template <typename T, int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    if (a.length <= 64)
    {
        return launchShape<T, kSIZE, 64, 1, 6>(a, multiprocessors, stream);
    }
    if (int64_t{a.sentences} * a.heads <= 2 * multiprocessors) // all blocks at a time
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
