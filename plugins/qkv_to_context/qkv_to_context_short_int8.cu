// Attention on int8 with Hopper's tensor cores for sequences of at most 128 tokens. What changed for int8
// against the short kernel:
//
//   - Queries and keys are multiplied as int8, directly from the TMA copies: half the bytes, twice the speed.
//   - Scores need no conversion, and their maximum takes half as many instructions (qkv_to_context_int8.cuh).
//   - Values cannot be multiplied as int8. The warpgroup widens them to fp16 between the exponentials of its first
//     tile. The exponential unit limits the kernel, so the instructions that widen are nearly free.
//   - Contexts are converted to int8 by additions, too.
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

// A block is one warpgroup, which computes kTILES tiles of 64 queries.
template <int kSIZE, int kKEYS, int kTILES>
struct ShortInt8Shape
{
    static constexpr int kROWS = kTILES * kQUERIES;
    static constexpr int kTILE = kQUERIES * kSIZE; // bytes
    static constexpr int kCHUNK = kKEYS * kSIZE;   // bytes
    // Offsets in shared memory. Contexts have memory of their own instead of that of the queries, so that no warp
    // waits until all warps have read theirs.
    static constexpr int kKEYS_BEGIN = kTILES * kTILE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kCHUNK;
    static constexpr int kCONTEXTS = kVALUES + 2 * kCHUNK;
    static constexpr int kBARRIERS = kCONTEXTS + kTILES * kTILE;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// Computes the warpgroup's tiles one after the other and calls store(sums, factors, i) for each. While the softmax of
// one tile is computed, the tensor cores compute the scores of the next tile and the context of the previous one.
template <int kKEYS, int kSIZE, int kTILES, typename Store>
__device__ void attendTiles(uint32_t queries, uint32_t keys, Widener<kKEYS, kSIZE> const& widener,
    uint32_t values, uint32_t valuesFull, KeyMask<kKEYS> const& bits, float scale, Store&& store)
{
    uint32_t products[kTILES][kKEYS / 8][4];
    uint32_t weights[kTILES][kKEYS / 16][4];
    float sums[kTILES][kSIZE / 8][4];
    float factors[kTILES][2];
    auto const finishTile = [&](int i)
    {
        wgmmaWait<0>();
        fenceRegisters(sums[i]);
        fenceRegisters(weights[i]);
    };
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        multiplyKeysBiased<kKEYS, kSIZE>(products[i], queries + i * kQUERIES * kSIZE, keys);
    }
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        wgmmaWait<(kTILES > 1 ? 1 : 0)>(); // in flight: scores of the next tile, sums of the previous one
        fenceRegisters(products[i]);
        float scores[kKEYS / 8][4];
        readBiased(scores, products[i], bits);
        float maximum[2];
        findLargestOfRows(maximum, scores);
        float ofLane[2]{};
        if (i == 0)
        {
            waitForBarrier(valuesFull, 0);
            exponentiateBiased(ofLane, scores, maximum, scale, widener);
            fenceAsyncProxy();
            __syncthreads(); // all warps have widened their part
        }
        else
        {
            exponentiateBiased(ofLane, scores, maximum, scale, NoOp{});
            finishTile(i - 1);
        }
        packWeights<__half>(weights[i], scores);
        fenceRegisters(weights[i]);
        fenceRegisters(sums[i]);
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

// Occupancy: kBLOCKS blocks per multiprocessor.
template <int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortInt8Kernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortInt8Shape<kSIZE, kKEYS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const narrowValues = queries + Shape::kNARROW_VALUES;
    uint32_t const values = queries + Shape::kVALUES;
    uint32_t const contexts = queries + Shape::kCONTEXTS;
    uint32_t const keysFull = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesFull = keysFull + 8;
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    Coordinates const coordinates = coordinatesOf<false>(tile);
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        prefetchMap(contextMap);
        initBarrier(keysFull, 1);
        initBarrier(valuesFull, 1);
        fenceBarrierInit();
    }
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        int32_t const column = static_cast<int32_t>(head) * kSIZE;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysFull, Shape::kNARROW_VALUES);
        copyBoxes<Shape::kROWS, kBOX_ROWS, kSIZE>(
            queries, qkvMap, column, coordinates.firstQuery, coordinates.matrix, keysFull);
        copyBoxes<kKEYS, kBOX_ROWS, kSIZE>(keys, qkvMap, column + hidden, 0, coordinates.matrix, keysFull);
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
            narrowValues, qkvMap, column + 2 * hidden, 0, coordinates.matrix, valuesFull);
    }
    __syncwarp();
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // all threads see initialised barriers; the copies are in flight
    bits.gather(0);
    waitForBarrier(keysFull, 0);
    triggerDependentLaunch();
    attendTiles<kKEYS, kSIZE, kTILES>(queries, keys, Widener<kKEYS, kSIZE>{values, narrowValues}, values,
        valuesFull, bits, p.scale,
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
    return launchDependent(qkvToContextShortInt8Kernel<kSIZE, kKEYS, kTILES, kBLOCKS>,
        LaunchSize{static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), kWARPGROUP, Shape::kBYTES},
        stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

// One tile per block as long as all blocks are resident at the same time, otherwise two (docs/kernels/attention.md
// has the measurements).
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
    constexpr int kWITH_TWO_TILES = kSIZE == 64 ? 3 : 2; // as many as registers allow without spilling
    return launchShape<kSIZE, 128, 2, kWITH_TWO_TILES>(a, stream);
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
