// Attention with Hopper's tensor cores for sentences of at most 128 tokens. What changed against the hopper kernel:
//
//   - A block takes one head of one sentence, fetches its queries, keys and values at once, and is done. While it waits,
//     the other blocks of the multiprocessor compute: no ring of chunks, no warp that only fetches.
//   - All keys are one chunk: the softmax knows its maximum from the beginning.
//   - To the copies (TMA), sentences are matrices of their own: what lies behind a sentence's end is zeros, in every length.
//   - Queries, too, are read from shared memory by the tensor cores.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_copies.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// A block has kGROUPS warpgroups, each of which takes kTILES times 64 queries.
template <int kSIZE, int kKEYS, int kGROUPS, int kTILES>
struct ShortShape
{
    static constexpr int kTHREADS = kGROUPS * kWARPGROUP;
    static constexpr int kROWS = kGROUPS * kTILES * kQUERIES;
    static constexpr int kBOX_ROWS = kROWS < kKEYS ? kROWS : kKEYS;
    using Queries = SharedTile<kROWS, kSIZE>;
    using Keys = SharedTile<kKEYS, kSIZE>; // and values
    // Where the parts of shared memory begin.
    static constexpr int kKEYS_BEGIN = Queries::kBYTES;
    static constexpr int kVALUES_BEGIN = kKEYS_BEGIN + Keys::kBYTES;
    static constexpr int kBARRIERS = kVALUES_BEGIN + Keys::kBYTES;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// Copies kROWS rows of a sentence's head in boxes; one thread does.
template <int kROWS, int kBOX_ROWS, int kSIZE>
__device__ void copyRows(
    uint32_t tile, CUtensorMap const& map, int32_t column, int32_t row, int32_t sentence, uint32_t barrier)
{
#pragma unroll
    for (int first = 0; first < kROWS; first += kBOX_ROWS)
    {
        copyBox(
            tile + first * SharedTile<kROWS, kSIZE>::kROW_BYTES, map, column, row + first, sentence, barrier);
    }
}

// The warp's 16 rows of the context, by way of shared memory: `memory` is theirs. Rows behind the sentence's end are not
// written.
template <typename Out, int kSIZE>
__device__ void storeBoxOfWarp(CUtensorMap const& map, int32_t column, int32_t row, int32_t sentence,
    uint32_t memory, float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int n = 0; n < kSIZE / 8; n += 2)
    {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            float const(&pair)[4] = sums[n + i / 2];
            float const factor = factors[i % 2];
            packPair(words[i], pair[i % 2 * 2] * factor, pair[i % 2 * 2 + 1] * factor, Out{});
        }
        storeMatrices(memory + SharedTile<16, kSIZE>::offset(lane % 16, n + lane / 16), words);
    }
    showToTensorCores(); // and to copies
    __syncwarp();
    if (lane == 0)
    {
        storeBox(map, column, row, sentence, memory);
    }
    __syncwarp();
}

// The context of one tile, in two halves of its keys: the tensor cores multiply one while the softmax of the other is
// computed.
template <typename T, int kKEYS, int kSIZE>
__device__ void attendInHalves(float (&sums)[kSIZE / 8][4], float (&factors)[2], uint32_t queries,
    uint32_t keys, uint32_t values, uint32_t valuesThere, KeyBits<kKEYS> const& bits, float scale)
{
    constexpr int kHALF = kKEYS / 2;
    constexpr int kHALF_BYTES = SharedTile<kHALF, kSIZE>::kBYTES;
    float scores[2][kHALF / 8][4];
    uint32_t weights[2][kHALF / 16][4];
    float largest[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        settle(scores[half]);
        multiplyKeys<T, kHALF, kSIZE>(scores[half], queries, keys + half * kHALF_BYTES);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        if (half == 0)
        {
            waitForProducts<1>();
        }
        else
        {
            waitForProducts<0>();
        }
        settle(scores[half]);
        if (!bits.all())
        {
            hide(scores[half], bits, half * kHALF / 8);
        }
        findLargest(largest[half], scores[half]);
    }
    float const ofBoth[2] = {fmaxf(largest[0][0], largest[1][0]), fmaxf(largest[0][1], largest[1][1])};
    PlainSoftmax softmax{ofBoth, scale};
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        softmax.weigh(scores[half]);
        packWeights<T>(weights[half], scores[half]);
        settle(weights[half]);
        if (half == 0)
        {
            waitForBarrier(valuesThere, 0);
            settle(sums);
            multiplyValues<T, kHALF, kSIZE, false>(sums, weights[half], values);
        }
        else
        {
            multiplyValues<T, kHALF, kSIZE>(sums, weights[half], values + kHALF_BYTES);
        }
    }
    softmax.finish(factors);
    waitForProducts<0>();
    settle(sums);
    settle(weights[0]);
    settle(weights[1]);
}

// A warpgroup's tiles, one after the other; store(sums, factors, i) is called for each. If kAHEAD, the tensor cores
// multiply for the next tile's scores and the last one's context while the softmax of one is computed.
template <typename T, int kKEYS, int kSIZE, int kTILES, bool kAHEAD, typename Store>
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
        bool const last = i + 1 == kTILES;
        if (kAHEAD && !last)
        {
            startTile(i + 1);
        }
        waitForProducts<kAHEAD ? 1 : 0>(); // what goes on: scores of the next tile, sums of the one before
        settle(scores[i]);
        if (!bits.all())
        {
            hide(scores[i], bits);
        }
        float largest[2];
        findLargest(largest, scores[i]);
        PlainSoftmax softmax{largest, scale};
        softmax.weigh(scores[i]);
        softmax.finish(factors[i]);
        if (kAHEAD && i > 0)
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
        if (kAHEAD && i > 0)
        {
            store(sums[i - 1], factors[i - 1], i - 1);
        }
        if (!kAHEAD && !last)
        {
            finishTile(i);
            startTile(i + 1);
            store(sums[i], factors[i], i);
        }
    }
    finishTile(kTILES - 1);
    store(sums[kTILES - 1], factors[kTILES - 1], kTILES - 1);
}

// kBLOCKS of them at a time on a multiprocessor. kAHEAD: products and softmax overlap within a warpgroup. kBOXES:
// contexts are stored by copies of whole rows.
template <typename T, int kSIZE, int kKEYS, int kGROUPS, int kTILES, int kBLOCKS, bool kAHEAD, bool kBOXES>
__global__ void __launch_bounds__(kGROUPS* kWARPGROUP, kBLOCKS)
    qkvToContextShortKernel(AttentionProblem const p, __grid_constant__ CUtensorMap const qkvMap,
        __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortShape<kSIZE, kKEYS, kGROUPS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const values = queries + Shape::kVALUES_BEGIN;
    uint32_t const keysThere = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesThere = keysThere + 8;
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        if (kBOXES)
        {
            prefetchMap(contextMap);
        }
        initBarrier(keysThere, 1);
        initBarrier(valuesThere, 1);
        showBarriers();
    }
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    int32_t const firstRow = Shape::kROWS < kKEYS ? static_cast<int32_t>(tile.firstQuery - tile.firstKey) : 0;
    int32_t const column = static_cast<int32_t>(head) * kSIZE;
    __syncthreads();
    letNextKernelIn();
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        constexpr int kBOX_ROWS = Shape::kBOX_ROWS;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysThere, Shape::kVALUES_BEGIN);
        copyRows<Shape::kROWS, kBOX_ROWS, kSIZE>(queries, qkvMap, column, firstRow, tile.sentence, keysThere);
        copyRows<kKEYS, kBOX_ROWS, kSIZE>(keys, qkvMap, column + hidden, 0, tile.sentence, keysThere);
        arriveAndExpect(valuesThere, Shape::Keys::kBYTES);
        copyRows<kKEYS, kBOX_ROWS, kSIZE>(values, qkvMap, column + 2 * hidden, 0, tile.sentence, valuesThere);
    }
    __syncwarp();
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);
    bits.gather(0);

    int const warp = static_cast<int>(threadIdx.x / kWARP);
    int32_t const groupRow = warp / 4 * kTILES * kQUERIES; // within the block
    uint32_t const ofGroup = queries + groupRow * Shape::Queries::kROW_BYTES;
    auto const storeTile = [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
    {
        int32_t const ofBlock = groupRow + i * kQUERIES + warp % 4 * 16;
        int32_t const row = firstRow + ofBlock;
        if (kBOXES && p.outputType != ElementType::kINT8)
        {
            __syncthreads(); // all warps have read their queries: contexts take their place
            storeBoxOfWarp<T, kSIZE>(contextMap, column, row, tile.sentence,
                queries + ofBlock * Shape::Queries::kROW_BYTES, sums, factors);
        }
        else
        {
            storeContext<kSIZE>(
                p, int64_t{tile.sentence} * p.length + row, p.length - row, head, sums, factors);
        }
    };
    waitForBarrier(keysThere, 0);
    if constexpr (kAHEAD && kTILES == 1)
    {
        float sums[kSIZE / 8][4];
        float factors[2];
        attendInHalves<T, kKEYS, kSIZE>(sums, factors, ofGroup, keys, values, valuesThere, bits, p.scale);
        storeTile(sums, factors, 0);
    }
    else
    {
        attendTiles<T, kKEYS, kSIZE, kTILES, kAHEAD>(
            ofGroup, keys, values, valuesThere, bits, p.scale, storeTile);
    }
    if (kBOXES)
    {
        waitForStores();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, int kSIZE, int kKEYS, int kGROUPS, int kTILES, int kBLOCKS, bool kAHEAD, bool kBOXES>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = ShortShape<kSIZE, kKEYS, kGROUPS, kTILES>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const sentences = static_cast<cuuint64_t>(a.sentences);
    CUtensorMap qkvMap{};
    cudaError_t status = describeTensor<T>(
        qkvMap, a.qkv, {3 * width, length, sentences}, {kSIZE, Shape::kBOX_ROWS, 1}); // (B, S, 3H)
    if (status != cudaSuccess)
    {
        return status;
    }
    CUtensorMap contextMap{};
    if (kBOXES)
    {
        status = describeTensor<T>(
            contextMap, a.context, {width, length, sentences}, {kSIZE, 16, 1}); // (B, S, H)
        if (status != cudaSuccess)
        {
            return status;
        }
    }
    return launchEarly(qkvToContextShortKernel<T, kSIZE, kKEYS, kGROUPS, kTILES, kBLOCKS, kAHEAD, kBOXES>,
        LaunchSize{static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), Shape::kTHREADS, Shape::kBYTES},
        stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// The one place where it is decided how a sentence is shared out.
template <typename T, int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    int64_t const pairs = int64_t{a.sentences} * a.heads;
    if (a.length <= 64)
    {
        return launchShape<T, kSIZE, 64, 1, 1, 6, false, false>(a, stream);
    }
    if (2 * pairs <= multiprocessors) // a multiprocessor for every 64 queries
    {
        return launchShape<T, kSIZE, 128, 1, 1, 4, true, false>(a, stream);
    }
    if (pairs <= 2 * multiprocessors) // all at a time, two warpgroups to each
    {
        return launchShape<T, kSIZE, 128, 2, 1, 2, true, false>(a, stream);
    }
    // most of them at a time, a warpgroup to each
    return launchShape<T, kSIZE, 128, 1, 2, 3, true, true>(a, stream);
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
