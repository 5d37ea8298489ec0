// Attention on int8 with Hopper's tensor cores for sentences of at most 512 tokens. What changed against the hopper
// kernel for int8:
//
//   - A block has all keys and values of its sentence in shared memory, fetched at once: no ring of chunks, no
//     warpgroup that only fetches. While a block waits, the others of the multiprocessor compute.
//   - The warpgroups share the work of widening values, each in its turn while the tensor cores multiply its keys;
//     where multiprocessors have nothing else to do, another one does it. fp16 take the place of int8.
//   - To the copies (TMA), sentences are matrices of their own, and they also store the context.
//   - Queries, too, are read from shared memory by the tensor cores.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_copies.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kBOX_ROWS = 64;

// A block has kGROUPS warpgroups, each of which takes kTILES times 64 queries, and perhaps another one that only widens
// values (kHELPERS is 1). Chunks of keys and values are numbered; shared memory holds values, keys, queries and
// barriers.
template <int kSIZE, int kKEYS, int kGROUPS, int kHELPERS, int kTILES>
struct ShortInt8Shape
{
    static constexpr int kALL_GROUPS = kGROUPS + kHELPERS;
    static constexpr int kTHREADS = kALL_GROUPS * kWARPGROUP;
    static constexpr int kROWS = kGROUPS * kTILES * kQUERIES;
    using Bytes = SharedTile<kKEYS, kSIZE / 2>; // a chunk of int8, in pairs
    using Values = SharedTile<kKEYS, kSIZE>;    // widened
    using Queries = SharedTile<kROWS, kSIZE / 2>;

    static size_t bytes(size_t chunks)
    {
        return chunks * (Values::kBYTES + Bytes::kBYTES) + Queries::kBYTES + 8 + chunks * 24;
    }
};

template <typename Shape>
struct ShortInt8Memory
{
    uint32_t begin;
    uint32_t chunks;

    __device__ uint32_t values(uint32_t chunk) const // widened
    {
        return begin + chunk * Shape::Values::kBYTES;
    }
    __device__ uint32_t narrowValues(uint32_t chunk) const // the second half of what they will take
    {
        return values(chunk) + Shape::Bytes::kBYTES;
    }
    __device__ uint32_t keys(uint32_t chunk) const
    {
        return values(chunks) + chunk * Shape::Bytes::kBYTES;
    }
    __device__ uint32_t queries(uint32_t row) const
    {
        return keys(chunks) + row * Shape::Queries::kROW_BYTES;
    }
    __device__ uint32_t queriesThere() const
    {
        return queries(Shape::kROWS);
    }
    __device__ uint32_t keysThere(uint32_t chunk) const
    {
        return queriesThere() + 8 + chunk * 24;
    }
    __device__ uint32_t narrowValuesThere(uint32_t chunk) const
    {
        return keysThere(chunk) + 8;
    }
    __device__ uint32_t valuesThere(uint32_t chunk) const
    {
        return keysThere(chunk) + 16;
    }
};

// The threads of one warpgroup wait for each other. Numbers of barriers are constants: a block gets as many as it
// names.
template <int kGROUPS>
__device__ void syncWarpgroup()
{
#pragma unroll
    for (int group = 0; group < kGROUPS; ++group)
    {
        if (kGROUPS == 1 || threadIdx.x / kWARPGROUP == group)
        {
            asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kWARPGROUP) : "memory");
        }
    }
}

// Fetches a block's queries and all keys and values; one thread does.
template <typename Shape, int kSIZE, int kKEYS>
__device__ void fetchSentence(ShortInt8Memory<Shape> const& memory, CUtensorMap const& map, int32_t column,
    int32_t hidden, int32_t firstRow, int32_t sentence)
{
    arriveAndExpect(memory.queriesThere(), Shape::Queries::kBYTES);
    for (int row = 0; row < Shape::kROWS; row += kBOX_ROWS)
    {
        copyBox(memory.queries(row), map, column, firstRow + row, sentence, memory.queriesThere());
    }
    auto const fetch = [&](uint32_t target, uint32_t there, int32_t from, uint32_t chunk)
    {
        arriveAndExpect(there, Shape::Bytes::kBYTES);
        for (int row = 0; row < kKEYS; row += kBOX_ROWS)
        {
            copyBox(
                target + row * kSIZE, map, from, static_cast<int32_t>(chunk) * kKEYS + row, sentence, there);
        }
    };
    for (uint32_t chunk = 0; chunk < memory.chunks; ++chunk)
    {
        fetch(memory.keys(chunk), memory.keysThere(chunk), column + hidden, chunk);
        fetch(memory.narrowValues(chunk), memory.narrowValuesThere(chunk), column + 2 * hidden, chunk);
    }
}

// A warpgroup widens a chunk of values in place: all of it is in registers before the first fp16 is written.
template <typename Shape, int kSIZE, int kKEYS>
__device__ void widenValues(ShortInt8Memory<Shape> const& memory, uint32_t chunk)
{
    using Bytes = typename Shape::Bytes;
    using Values = typename Shape::Values;
    constexpr int kPIECES = kSIZE / 16; // of a row
    constexpr int kROWS_AT_ONCE = kWARPGROUP / kPIECES;
    static_assert(kROWS_AT_ONCE % 8 == 0, "pieces of rows so far apart are permuted in the same way");
    static_assert(Values::kBYTES == 2 * Bytes::kBYTES);
    constexpr int kTURNS = kKEYS / kROWS_AT_ONCE;
    uint32_t const thread = threadIdx.x % kWARPGROUP;
    uint32_t const row = thread / kPIECES;
    uint32_t const piece = thread % kPIECES;
    uint32_t const source = memory.narrowValues(chunk) + Bytes::offset(row, piece);
    uint32_t const first = memory.values(chunk) + Values::offset(row, 2 * piece);
    uint32_t const second = first ^ 16; // the neighbouring piece
    waitForBarrier(memory.narrowValuesThere(chunk), 0);
    uint4 bytes[kTURNS];
#pragma unroll
    for (int turn = 0; turn < kTURNS; ++turn)
    {
        bytes[turn] = loadPiece(source + turn * kROWS_AT_ONCE * Bytes::kROW_BYTES);
    }
    syncWarpgroup<Shape::kALL_GROUPS>();
#pragma unroll
    for (int turn = 0; turn < kTURNS; ++turn)
    {
        uint2 const a = widen(bytes[turn].x);
        uint2 const b = widen(bytes[turn].y);
        uint2 const c = widen(bytes[turn].z);
        uint2 const d = widen(bytes[turn].w);
        storePiece(first + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {a.x, a.y, b.x, b.y});
        storePiece(second + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {c.x, c.y, d.x, d.y});
    }
    showToTensorCores();
    __syncwarp();
    if (thread % kWARP == 0)
    {
        arrive(memory.valuesThere(chunk));
    }
    __syncwarp();
}

// The context of 64 queries. widenHere(chunk) is called while the tensor cores multiply the keys of that chunk. If
// kOVERLAP, they multiply the values of a chunk only then, while the softmax of the next one is computed.
template <typename Shape, int kSIZE, int kKEYS, bool kOVERLAP, typename Widen>
__device__ void attend(float (&sums)[kSIZE / 8][4], float (&factors)[2], ShortInt8Memory<Shape> const& memory,
    uint32_t queries, KeyBits<kKEYS>& bits, float scale, Widen&& widenHere)
{
    uint32_t weights[kKEYS / 16][4];
    OnlineSoftmax softmax{scale};
    auto const startValues = [&](uint32_t chunk)
    {
        settle(sums);
        settle(weights);
        multiplyValues<__half, kKEYS, kSIZE>(sums, weights, memory.values(chunk));
    };
    auto const finishValues = [&]
    {
        waitForProducts<0>();
        settle(sums);
        settle(weights);
    };
    bits.fetch(0);
    for (uint32_t chunk = 0; chunk < memory.chunks; ++chunk)
    {
        bits.gather(static_cast<int32_t>(chunk));
        bits.fetch(static_cast<int32_t>(chunk) + 1);
        uint32_t products[kKEYS / 8][4];
        float scores[kKEYS / 8][4];
        waitForBarrier(memory.keysThere(chunk), 0);
        bool const overlap = kOVERLAP && chunk > 0;
        if (overlap)
        {
            waitForBarrier(memory.valuesThere(chunk - 1), 0);
        }
        settle(products);
        multiplyKeysInt8<kKEYS, kSIZE>(products, queries, memory.keys(chunk));
        widenHere(chunk);
        if (overlap)
        {
            startValues(chunk - 1);
            waitForProducts<1>();
        }
        else
        {
            waitForProducts<0>();
        }
        settle(products);
        scoresToFloat(scores, products);
        if (!bits.all())
        {
            hide(scores, bits);
        }
        bool const rescale = softmax.weigh(scores);
        if (kOVERLAP)
        {
            finishValues();
        }
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<__half>(weights, scores);
        if (!kOVERLAP)
        {
            waitForBarrier(memory.valuesThere(chunk), 0);
            startValues(chunk);
            finishValues();
        }
    }
    if (kOVERLAP)
    {
        waitForBarrier(memory.valuesThere(memory.chunks - 1), 0);
        startValues(memory.chunks - 1);
        finishValues();
    }
    softmax.finish(factors);
}

// The same for two tiles whose keys are one chunk; store(sums, factors, tile) is called for each. The tensor cores
// multiply for the second one's scores and the first one's context while softmax and store of the other are computed.
template <typename Shape, int kSIZE, int kKEYS, typename Store>
__device__ void attendAhead(
    ShortInt8Memory<Shape> const& memory, KeyBits<kKEYS>& bits, float scale, Store&& store)
{
    uint32_t products[2][kKEYS / 8][4];
    uint32_t weights[2][kKEYS / 16][4];
    float sums[2][kSIZE / 8][4];
    float factors[2][2];
    auto const finishTile = [&](int i)
    {
        waitForProducts<0>();
        settle(sums[i]);
        settle(weights[i]);
    };
    bits.fetch(0);
    bits.gather(0);
    waitForBarrier(memory.keysThere(0), 0);
#pragma unroll
    for (int i = 0; i < 2; ++i)
    {
        settle(products[i]);
        multiplyKeysInt8<kKEYS, kSIZE>(products[i], memory.queries(i * kQUERIES), memory.keys(0));
    }
    widenValues<Shape, kSIZE, kKEYS>(memory, 0);
    waitForBarrier(memory.valuesThere(0), 0);
#pragma unroll
    for (int i = 0; i < 2; ++i)
    {
        waitForProducts<1>(); // what goes on: scores of the next tile, sums of the one before
        settle(products[i]);
        float scores[kKEYS / 8][4];
        scoresToFloat(scores, products[i]);
        if (!bits.all())
        {
            hide(scores, bits);
        }
        float largest[2];
        findLargest(largest, scores);
        PlainSoftmax softmax{largest, scale};
        softmax.weigh(scores);
        softmax.finish(factors[i]);
        if (i > 0)
        {
            finishTile(0);
        }
        packWeights<__half>(weights[i], scores);
        settle(weights[i]);
        settle(sums[i]);
        multiplyValues<__half, kKEYS, kSIZE, false>(sums[i], weights[i], memory.values(0));
    }
    store(sums[0], factors[0], 0);
    finishTile(1);
    store(sums[1], factors[1], 1);
}

// The warp's 16 rows of an int8 context, by way of shared memory: `memory` is theirs. Rows behind the sentence's end
// are not written.
template <int kSIZE>
__device__ void storeBoxOfWarp(CUtensorMap const& map, int32_t column, int32_t row, int32_t sentence,
    uint32_t memory, float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    uint32_t const lane = threadIdx.x % kWARP;
    uint32_t const t = lane % 4;
    bool const odd = t % 2 != 0;
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        float const factor = factors[half];
#pragma unroll
        for (int n = 0; n < kSIZE / 8; n += 2)
        {
            uint32_t first;
            uint32_t second;
            packPair(first, sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor, int8_t{});
            packPair(second, sums[n + 1][2 * half] * factor, sums[n + 1][2 * half + 1] * factor, int8_t{});
            // Lanes 2i and 2i + 1 exchange pairs, so that each has four neighbouring elements.
            uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? first : second, 1);
            uint32_t const low = odd ? received : first;
            uint32_t const high = odd ? second : received;
            uint32_t const piece = SharedTile<16, kSIZE / 2>::offset(lane / 4 + 8 * half, n / 2);
            storeWord(memory + piece + (odd ? 8 : 0) + t / 2 * 4, low | high << 16);
        }
    }
    showToTensorCores(); // and to copies
    __syncwarp();
    if (lane == 0)
    {
        storeBox(map, column, row, sentence, memory);
    }
    __syncwarp();
}

// How products and softmax of a warpgroup follow each other.
enum class Order
{
    kIN_TURN,
    kOVERLAP, // of chunks
    kAHEAD    // of tiles: for two tiles, and sentences of one chunk
};

// kBLOCKS of them at a time on a multiprocessor.
template <int kSIZE, int kKEYS, int kGROUPS, int kHELPERS, int kTILES, int kBLOCKS, Order kORDER>
__global__ void __launch_bounds__((kGROUPS + kHELPERS) * kWARPGROUP, kBLOCKS)
    qkvToContextShortInt8Kernel(AttentionProblem const p, __grid_constant__ CUtensorMap const qkvMap,
        __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortInt8Shape<kSIZE, kKEYS, kGROUPS, kHELPERS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    uint32_t const chunks = (static_cast<uint32_t>(p.length) + kKEYS - 1) / kKEYS;
    ShortInt8Memory<Shape> const memory{sharedAddress(bytes), chunks};
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
        initBarrier(memory.queriesThere(), 1);
        for (uint32_t chunk = 0; chunk < chunks; ++chunk)
        {
            initBarrier(memory.keysThere(chunk), 1);
            initBarrier(memory.narrowValuesThere(chunk), 1);
            initBarrier(memory.valuesThere(chunk), 4); // warps
        }
        showBarriers();
    }
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    auto const firstRow = static_cast<int32_t>(tile.firstQuery - tile.firstKey);
    int32_t const column = static_cast<int32_t>(head) * kSIZE;
    __syncthreads();
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        fetchSentence<Shape, kSIZE, kKEYS>(memory, qkvMap, column, p.heads * kSIZE, firstRow, tile.sentence);
    }
    __syncwarp();

    uint32_t const group = threadIdx.x / kWARPGROUP;
    int32_t const warp = static_cast<int32_t>(threadIdx.x / kWARP % 4);
    auto const isMine = [&](uint32_t chunk)
    { return kHELPERS > 0 ? group == kGROUPS : (kGROUPS == 1 || chunk % kGROUPS == group); };
    if (group == kGROUPS || static_cast<int32_t>(group) * kQUERIES >= tile.queries) // no queries, but values
    {
        for (uint32_t chunk = 0; chunk < chunks; ++chunk)
        {
            if (isMine(chunk))
            {
                widenValues<Shape, kSIZE, kKEYS>(memory, chunk);
            }
        }
        return;
    }
    waitForBarrier(memory.queriesThere(), 0);
    letNextKernelIn();
    KeyBits<kKEYS> bits{p, tile};
    auto const storeTile
        = [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int32_t ofBlock) // its first row
    {
        int32_t const ofWarp = ofBlock + warp * 16;
        if (p.outputType == ElementType::kINT8)
        {
            float const scaled[2] = {factors[0] * p.outputFactor, factors[1] * p.outputFactor};
            // All have multiplied their queries: contexts take their place.
            syncWarpgroup<Shape::kALL_GROUPS>();
            storeBoxOfWarp<kSIZE>(
                contextMap, column, firstRow + ofWarp, tile.sentence, memory.queries(ofWarp), sums, scaled);
        }
        else
        {
            storeContext<kSIZE>(p, tile.firstQuery + ofWarp, tile.queries - ofWarp, head, sums, factors);
        }
    };
    if constexpr (kORDER == Order::kAHEAD)
    {
        static_assert(kGROUPS == 1 && kHELPERS == 0 && kTILES == 2);
        attendAhead<Shape, kSIZE, kKEYS>(memory, bits, p.scale,
            [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
            { storeTile(sums, factors, i * kQUERIES); });
    }
    else
    {
#pragma unroll 1
        for (int i = 0; i < kTILES; ++i)
        {
            int32_t const ofBlock = (i * kGROUPS + static_cast<int32_t>(group)) * kQUERIES;
            if (ofBlock >= tile.queries)
            {
                break;
            }
            float sums[kSIZE / 8][4]{};
            float factors[2];
            attend<Shape, kSIZE, kKEYS, kORDER == Order::kOVERLAP>(sums, factors, memory,
                memory.queries(ofBlock), bits, p.scale,
                [&](uint32_t chunk)
                {
                    if (i == 0 && isMine(chunk))
                    {
                        widenValues<Shape, kSIZE, kKEYS>(memory, chunk);
                    }
                });
            storeTile(sums, factors, ofBlock);
        }
    }
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kKEYS, int kGROUPS, int kHELPERS, int kTILES, int kBLOCKS, Order kORDER>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = ShortInt8Shape<kSIZE, kKEYS, kGROUPS, kHELPERS, kTILES>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const sentences = static_cast<cuuint64_t>(a.sentences);
    CUtensorMap qkvMap{};
    cudaError_t status = describeTensor<int8_t>(
        qkvMap, a.qkv, {3 * width, length, sentences}, {kSIZE, kBOX_ROWS, 1}); // (B, S, 3H)
    if (status != cudaSuccess)
    {
        return status;
    }
    CUtensorMap contextMap{}; // used for int8 only
    status = describeTensor<int8_t>(
        contextMap, a.context, {width, length, sentences}, {kSIZE, 16, 1}); // (B, S, H)
    if (status != cudaSuccess)
    {
        return status;
    }
    return launchEarly(qkvToContextShortInt8Kernel<kSIZE, kKEYS, kGROUPS, kHELPERS, kTILES, kBLOCKS, kORDER>,
        LaunchSize{static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), Shape::kTHREADS,
            Shape::bytes((length + kKEYS - 1) / kKEYS)},
        stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// The one place where it is decided how a sentence is shared out. Microseconds on an H200, 12 heads of 64, development
// runs in which the next kernel was let in at once; keys of a chunk, warpgroups with queries + those that only widen:
//
//     B, S               1, 128   8, 128   32, 128   1, 384   32, 384   8, 512
//     64, 1 + 0          3.67     5.72     9.51      8.10     72.1      31.0
//     64, 2 + 0          4.08     5.40     9.08      8.38     48.0      21.4
//     128, 1 + 0         3.40     3.90     9.16      7.43     62.4      27.3
//     128, 1 + 1         2.92     5.76     17.2      5.62     94.8      39.7
//     128, 1 + 0, both tiles of a sentence     7.16
template <int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    int64_t const pairs = int64_t{a.sentences} * a.heads;
    int64_t const tiles = pairs * ((a.length + kQUERIES - 1) / kQUERIES);
    if (a.length > 64 && tiles <= multiprocessors) // a multiprocessor for every 64 queries
    {
        return launchShape<kSIZE, 128, 1, 1, 1, 1, Order::kOVERLAP>(a, stream);
    }
    if (a.length <= 64)
    {
        return launchShape<kSIZE, 64, 1, 0, 1, 4, Order::kIN_TURN>(a, stream);
    }
    if (tiles <= 2 * multiprocessors) // all at a time
    {
        return launchShape<kSIZE, 128, 1, 0, 1, 3, Order::kIN_TURN>(a, stream);
    }
    if (a.length <= 128 && pairs > multiprocessors) // a warpgroup to each
    {
        return launchShape<kSIZE, 128, 1, 0, 2, 3, Order::kAHEAD>(a, stream);
    }
    return launchShape<kSIZE, 64, 2, 0, 1, 2, Order::kOVERLAP>(a, stream);
}

} // namespace

cudaError_t launchQkvToContextShortInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (!suitsShortInt8Kernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return arguments.headSize == 32 ? launchSuitable<32>(arguments, multiprocessors, stream)
                                    : launchSuitable<64>(arguments, multiprocessors, stream);
}

} // namespace bert
