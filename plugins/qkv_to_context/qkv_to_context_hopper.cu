// Attention with Hopper's tensor cores (wgmma). What changed against the tensor kernel:
//
//   - Four warps, a warpgroup, take 64 queries together. Their products read keys and values from shared memory by
//     themselves and once for all four warps, without passing through registers.
//   - Products run beside other work: while the softmax of one chunk is computed, the tensor cores multiply the weights
//     of the chunk before with its values. What one warpgroup leaves unused is there for the others.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_fragments.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kWARPGROUP = 4 * kWARP;

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kAHEAD>
struct HopperShape
{
    static constexpr int kTHREADS = kGROUPS * kWARPGROUP;
    static constexpr int kROWS = kGROUPS * 64;
    using Queries = SharedTile<kROWS, kSIZE>;
    // One slot more than in the tensor kernel: the values of a chunk are read while the next one is begun.
    using Chunks = ChunkLoader<In, kKEYS, kSIZE, kTHREADS, kAHEAD + 2, kAHEAD>;
    static constexpr int kBYTES = Queries::kBYTES + Chunks::kBYTES;
};

// scores (64, kKEYS) = queries (64, kSIZE) keys^T
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(
    float (&scores)[kKEYS / 8][4], uint32_t const (&queries)[kSIZE / 16][4], uint32_t keys)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    constexpr int kOF_PANEL = Tile::kPANEL_COLUMNS / 16;
    beginProducts();
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        uint32_t const address = keys + k / kOF_PANEL * Tile::kPANEL_BYTES + k % kOF_PANEL * 32;
        uint64_t const matrix = describeMatrix<Tile::kROW_BYTES, 16>(address);
        multiplyAsync<0>(scores, queries[k], matrix, k == 0 ? 0 : 1, T{});
    }
    endProducts();
}

// sums (64, kSIZE) += weights (64, kKEYS) values
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyValues(
    float (&sums)[kSIZE / 8][4], uint32_t const (&weights)[kKEYS / 16][4], uint32_t values)
{
    using Tile = SharedTile<kKEYS, kSIZE>;
    beginProducts();
#pragma unroll
    for (int k = 0; k < kKEYS / 16; ++k)
    {
        uint64_t const matrix
            = describeMatrix<Tile::kROW_BYTES, Tile::kPANEL_BYTES>(values + k * 16 * Tile::kROW_BYTES);
        multiplyAsync<1>(sums, weights[k], matrix, 1, T{});
    }
    endProducts();
}

// kBLOCKS of them at a time on a multiprocessor.
template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kAHEAD, int kBLOCKS>
__global__ void __launch_bounds__(kGROUPS* kWARPGROUP, kBLOCKS)
    qkvToContextHopperKernel(AttentionProblem const p)
{
    using T = Operand<In>;
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kAHEAD>;
    extern __shared__ __align__(1024) unsigned char memory[]; // as the swizzle wants it
    uint32_t const queryMemory = sharedAddress(memory);
    uint32_t const head = blockIdx.x % p.heads;
    int32_t const firstRow = static_cast<int32_t>(threadIdx.x / kWARP) * 16;

    waitForPreviousKernel();
    QueryTile const tile = findTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    if (tile.broken)
    {
        poison<kSIZE>(p, tile, head);
        return;
    }
    if (tile.queries <= 0)
    {
        return;
    }

    int64_t const hidden = int64_t{p.heads} * kSIZE;
    int64_t const stride = 3 * hidden; // elements of a token
    In const* const ofHead = static_cast<In const*>(p.qkv) + head * kSIZE;
    TileLoader<In, Shape::kROWS, kSIZE, Shape::kTHREADS> queryLoader;
    queryLoader.start(ofHead + tile.firstQuery * stride, stride, tile.queries, queryMemory);
    typename Shape::Chunks chunks{ofHead + tile.firstKey * stride + hidden, hidden, stride, tile.keys,
        queryMemory + Shape::Queries::kBYTES};
    KeyBits<kKEYS> bits{p, tile};
#pragma unroll
    for (int chunk = 0; chunk < kAHEAD; ++chunk)
    {
        chunks.start(chunk);
    }
    bits.fetch(0);
    queryLoader.finish(queryMemory);

    uint32_t queries[kSIZE / 16][4];
    uint32_t weights[kKEYS / 16][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    int32_t const count = (tile.keys + kKEYS - 1) / kKEYS;
    for (int32_t chunk = 0; chunk < count; ++chunk)
    {
        chunks.finish(chunk);
        bits.gather();
        showToTensorCores();
        __syncthreads(); // the chunk is there, and nobody reads the second before it any more
        chunks.start(chunk + kAHEAD);
        bits.fetch(chunk + 1);
        if (chunk == 0)
        {
            loadQueries<Shape::kROWS, kSIZE>(queries, queryMemory, firstRow);
        }

        float scores[kKEYS / 8][4];
        settle(queries);
        settle(scores);
        settle(sums);
        multiplyKeys<T, kKEYS, kSIZE>(scores, queries, chunks.keys(chunk));
        if (chunk == 0)
        {
            waitForProducts<0>();
        }
        else
        {
            multiplyValues<T, kKEYS, kSIZE>(sums, weights, chunks.values(chunk - 1));
            waitForProducts<1>();
        }
        settle(scores);
        if (!bits.all())
        {
            OnlineSoftmax::hide(scores, bits);
        }
        bool const rescale = softmax.weigh(scores);
        waitForProducts<0>();
        settle(sums);
        settle(weights);
        if (rescale)
        {
            softmax.rescale(sums);
        }
        packWeights<T>(weights, scores);
    }
    if (count > 0)
    {
        settle(weights);
        settle(sums);
        multiplyValues<T, kKEYS, kSIZE>(sums, weights, chunks.values(count - 1));
        waitForProducts<0>();
        settle(sums);
    }
    waitForGroups<0>();
    float factors[2];
    softmax.finish(factors);
    storeContext<kSIZE>(p, tile.firstQuery + firstRow, tile.queries - firstRow, head, sums, factors);
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename In, int kSIZE, int kGROUPS, int kKEYS, int kAHEAD, int kBLOCKS>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = HopperShape<In, kSIZE, kGROUPS, kKEYS, kAHEAD>;
    LaunchSize const size{
        static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), Shape::kTHREADS, Shape::kBYTES};
    return launchEarly(qkvToContextHopperKernel<In, kSIZE, kGROUPS, kKEYS, kAHEAD, kBLOCKS>, size, stream,
        makeProblem<Shape::kROWS>(a));
}

} // namespace

cudaError_t launchQkvToContextHopper(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    return dispatchTensor(arguments,
        [&](auto element, auto size)
        {
            using In = decltype(element);
            constexpr int kAHEAD = sizeof(In) == 1 ? 1 : 2;
            return launchShape<In, size(), 2, 64, kAHEAD, (size() == 128 ? 1 : 2)>(arguments, stream);
        });
}

} // namespace bert
