// Attention on int8 with Hopper's tensor cores for sentences of at most 128 tokens. What changed for int8
// against the short kernel:
//
//   - Queries and keys are multiplied as int8, as the copies (TMA) bring them: half the bytes, twice the speed.
//   - Scores need no conversion, their maximum half as many instructions (qkv_to_context_int8.cuh).
//   - Values cannot be multiplied as int8. The warpgroup widens them to fp16 between the exponentials of its first
//     tile: the exponentials keep their unit busy for longer than the instructions that widen take.
//   - A conversion of contexts to int8 is an addition, too.
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

// A block is one warpgroup, which takes kTILES times 64 queries.
template <int kSIZE, int kKEYS, int kTILES>
struct ShortInt8Shape
{
    static constexpr int kROWS = kTILES * kQUERIES;
    static constexpr int kTILE = kQUERIES * kSIZE; // bytes
    static constexpr int kCHUNK = kKEYS * kSIZE;   // bytes
    // Where the parts of shared memory begin. Contexts do not take the place of queries: no warp has to wait until all
    // have read theirs.
    static constexpr int kKEYS_BEGIN = kTILES * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kCHUNK;
    static constexpr int kCONTEXTS = kVALUES + 2 * kCHUNK;
    static constexpr int kBARRIERS = kCONTEXTS + kTILES * kTILE;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// The warpgroup's tiles, one after the other; store(sums, factors, i) is called for each. The tensor cores multiply for
// the next tile's scores and the last one's context while the softmax of one is computed.
template <int kKEYS, int kSIZE, int kTILES, typename Store>
__device__ void attendTiles(uint32_t queries, uint32_t keys, Widener<kKEYS, kSIZE> const& widener,
    uint32_t values, uint32_t valuesThere, KeyBits<kKEYS> const& bits, float scale, Store&& store)
{
    uint32_t products[kTILES][kKEYS / 8][4];
    uint32_t weights[kTILES][kKEYS / 16][4];
    float sums[kTILES][kSIZE / 8][4];
    float factors[kTILES][2];
    auto const finishTile = [&](int i)
    {
        waitForProducts<0>();
        settle(sums[i]);
        settle(weights[i]);
    };
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        multiplyKeysBiased<kKEYS, kSIZE>(products[i], queries + i * kQUERIES * kSIZE, keys);
    }
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        waitForProducts<(
            kTILES > 1 ? 1 : 0)>(); // what goes on: scores of the next tile, sums of the one before
        settle(products[i]);
        float scores[kKEYS / 8][4];
        readBiased(scores, products[i], bits);
        float maximum[2];
        findLargestOfRows(maximum, scores);
        float ofLane[2]{};
        if (i == 0)
        {
            waitForBarrier(valuesThere, 0);
            exponentiateBiased(ofLane, scores, maximum, scale, widener);
            showToTensorCores();
            __syncthreads(); // all have widened
        }
        else
        {
            exponentiateBiased(ofLane, scores, maximum, scale, Nothing{});
            finishTile(i - 1);
        }
        packWeights<__half>(weights[i], scores);
        settle(weights[i]);
        settle(sums[i]);
        multiplyValues<__half, kKEYS, kSIZE, false>(sums[i], weights[i], values);
        factors[i][0] = invertSum(ofLane[0]);
        factors[i][1] = invertSum(ofLane[1]);
        if (i > 0)
        {
            store(sums[i - 1], factors[i - 1], i - 1);
        }
    }
    finishTile(kTILES - 1);
    store(sums[kTILES - 1], factors[kTILES - 1], kTILES - 1);
}

// kBLOCKS of them at a time on a multiprocessor.
template <int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortInt8Kernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortInt8Shape<kSIZE, kKEYS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const narrowValues = queries + Shape::kNARROW_VALUES;
    uint32_t const values = queries + Shape::kVALUES;
    uint32_t const contexts = queries + Shape::kCONTEXTS;
    uint32_t const keysThere = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesThere = keysThere + 8;
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    Place const place = placeOf<false>(tile);
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
        int32_t const column = static_cast<int32_t>(head) * kSIZE;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysThere, Shape::kNARROW_VALUES);
        copyBoxes<Shape::kROWS, kBOX_ROWS, kSIZE>(
            queries, qkvMap, column, place.firstQuery, place.matrix, keysThere);
        copyBoxes<kKEYS, kBOX_ROWS, kSIZE>(keys, qkvMap, column + hidden, 0, place.matrix, keysThere);
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
            narrowValues, qkvMap, column + 2 * hidden, 0, place.matrix, valuesThere);
    }
    __syncwarp();
    KeyBits<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // the others see initialised barriers; the copies are on their way
    bits.gather(0);
    waitForBarrier(keysThere, 0);
    letNextKernelIn();
    attendTiles<kKEYS, kSIZE, kTILES>(queries, keys, Widener<kKEYS, kSIZE>{values, narrowValues}, values,
        valuesThere, bits, p.scale,
        [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
        {
            int32_t const ofWarp = i * kQUERIES + static_cast<int32_t>(threadIdx.x / kWARP) * 16;
            storeWarpRows<kSIZE, false>(
                p, contextMap, tile, head, ofWarp, contexts + ofWarp * kSIZE, sums, factors);
        });
    waitForStores();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = ShortInt8Shape<kSIZE, kKEYS, kTILES>;
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t const status = describeInt8<kSIZE>(qkvMap, contextMap, a);
    if (status != cudaSuccess)
    {
        return status;
    }
    return launchEarly(qkvToContextShortInt8Kernel<kSIZE, kKEYS, kTILES, kBLOCKS>,
        LaunchSize{static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), kWARPGROUP, Shape::kBYTES},
        stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// One tile to a block as long as there is room for all blocks at a time, else two. Microseconds on an H200, 12 heads of
// 64, development run:
//
//     B, S                                          1, 128   8, 128   32, 128
//     one tile, values widened first                2.41     3.16
//     one tile, between exponentials                2.25     3.00     6.92
//     one tile, by another warpgroup                2.24     3.16
//     two tiles, values widened first               3.33     3.55     6.17
//     two tiles, between exponentials               3.29     3.45     5.83
//     fp16 (short)                                  2.28     3.32     6.05
//
// A quarter of the exponentials as polynomials: 6.10 with two tiles at 32, 128.
template <int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    if (a.length <= 64)
    {
        return launchShape<kSIZE, 64, 1, 6>(a, stream);
    }
    constexpr int kBLOCKS = 4;
    if (countBlocks<kQUERIES>(a) <= kBLOCKS * multiprocessors)
    {
        return launchShape<kSIZE, 128, 1, kBLOCKS>(a, stream);
    }
    return launchShape<kSIZE, 128, 2, kSIZE == 64 ? 3 : 2>(a, stream); // registers: none is spilled
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
