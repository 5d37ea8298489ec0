// Attention with the tensor cores of any GPU from Turing on (mma.sync). A warp takes 16 queries and keeps them, their
// sums and their scores in registers. The warps of a block share keys and values, which pass through shared memory in
// chunks, in a pipeline with one chunk in flight.
#include "qkv_to_context/qkv_to_context_fragments.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// scores (16, kKEYS) = queries (16, kSIZE) keys^T
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyKeys(
    float (&scores)[kKEYS / 8][4], uint32_t const (&queries)[kSIZE / 16][4], uint32_t keys)
{
    uint32_t const lane = threadIdx.x % kWARP;
    uint32_t const row = lane % 8 + lane / 16 * 8;
    uint32_t const piece = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < kKEYS / 8; n += 2)
    {
        float (&first)[4] = scores[n];
        float (&second)[4] = scores[n + 1];
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            first[i] = 0.0F;
            second[i] = 0.0F;
        }
#pragma unroll
        for (int k = 0; k < kSIZE / 16; ++k)
        {
            uint32_t b[4];
            loadMatrices(b, keys + SharedTile<kKEYS, kSIZE>::offset(n * 8 + row, 2 * k + piece));
            multiply(first, queries[k], b[0], b[1], T{});
            multiply(second, queries[k], b[2], b[3], T{});
        }
    }
}

// sums (16, kSIZE) += weights (16, kKEYS) values
template <typename T, int kKEYS, int kSIZE>
__device__ void multiplyValues(
    float (&sums)[kSIZE / 8][4], uint32_t const (&weights)[kKEYS / 16][4], uint32_t values)
{
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int k = 0; k < kKEYS / 16; ++k)
    {
#pragma unroll
        for (int n = 0; n < kSIZE / 8; n += 2)
        {
            uint32_t b[4];
            loadMatricesTransposed(
                b, values + SharedTile<kKEYS, kSIZE>::offset(16 * k + lane % 16, n + lane / 16));
            multiply(sums[n], weights[k], b[0], b[1], T{});
            multiply(sums[n + 1], weights[k], b[2], b[3], T{});
        }
    }
}

template <typename In, int kSIZE, int kWARPS, int kKEYS, int kIN_FLIGHT>
struct TensorShape
{
    static constexpr int kTHREADS = kWARPS * kWARP;
    static constexpr int kROWS = kWARPS * 16;
    using Queries = SharedTile<kROWS, kSIZE>;
    using Chunks = ChunkLoader<In, kKEYS, kSIZE, kTHREADS, kIN_FLIGHT + 1, kIN_FLIGHT>;
    static constexpr int kBYTES = Queries::kBYTES + Chunks::kBYTES;
};

// Occupancy: kBLOCKS blocks per multiprocessor.
template <typename In, int kSIZE, int kWARPS, int kKEYS, int kIN_FLIGHT, int kBLOCKS>
__global__ void __launch_bounds__(kWARPS* kWARP, kBLOCKS) qkvToContextTensorKernel(AttentionProblem const p)
{
    using T = Operand<In>;
    using Shape = TensorShape<In, kSIZE, kWARPS, kKEYS, kIN_FLIGHT>;
    extern __shared__ __align__(128) unsigned char memory[];
    uint32_t const queryMemory = sharedAddress(memory);
    uint32_t const head = blockIdx.x % p.heads;
    int32_t const firstRow = static_cast<int32_t>(threadIdx.x / kWARP) * 16;

    waitForPreviousKernel();
    QueryTile const tile = findTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    if (tile.invalid)
    {
        poison<kSIZE>(p, tile, head, Shape::kTHREADS);
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
    KeyMask<kKEYS> bits{p, tile};
#pragma unroll
    for (int chunk = 0; chunk < kIN_FLIGHT; ++chunk)
    {
        chunks.start(chunk);
    }
    bits.fetch(0);
    queryLoader.finish(queryMemory);

    uint32_t queries[kSIZE / 16][4];
    float sums[kSIZE / 8][4]{};
    OnlineSoftmax softmax{p.scale};
    int32_t const count = (tile.keys + kKEYS - 1) / kKEYS;
    for (int32_t chunk = 0; chunk < count; ++chunk)
    {
        chunks.finish(chunk);
        bits.gather(chunk);
        __syncthreads(); // the chunk has arrived, and no warp reads the previous one any more
        chunks.start(chunk + kIN_FLIGHT);
        bits.fetch(chunk + 1);
        if (chunk == 0)
        {
            loadQueries<Shape::kROWS, kSIZE>(queries, queryMemory, firstRow);
        }
        float scores[kKEYS / 8][4];
        multiplyKeys<T, kKEYS, kSIZE>(scores, queries, chunks.keys(chunk));
        if (!bits.all())
        {
            maskScores(scores, bits);
        }
        if (softmax.weigh(scores))
        {
            softmax.rescale(sums);
        }
        uint32_t weights[kKEYS / 16][4];
        packWeights<T>(weights, scores);
        multiplyValues<T, kKEYS, kSIZE>(sums, weights, chunks.values(chunk));
    }
    waitForCopyGroups<0>();
    float factors[2];
    softmax.finish(factors);
    storeContext<kSIZE>(p, tile.firstQuery + firstRow, tile.queries - firstRow, head, sums, factors);
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename In, int kSIZE, int kWARPS, int kKEYS, int kIN_FLIGHT, int kBLOCKS>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = TensorShape<In, kSIZE, kWARPS, kKEYS, kIN_FLIGHT>;
    LaunchSize const size{
        static_cast<unsigned int>(countBlocks<Shape::kROWS>(a)), Shape::kTHREADS, Shape::kBYTES};
    return launchDependent(qkvToContextTensorKernel<In, kSIZE, kWARPS, kKEYS, kIN_FLIGHT, kBLOCKS>, size,
        stream, makeProblem<Shape::kROWS>(a));
}

} // namespace

cudaError_t launchQkvToContextTensor(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    return dispatchTensor(arguments,
        [&](auto element, auto size)
        {
            // Turing has 64 KB of shared memory.
            constexpr int kKEYS = size() == 128 ? 32 : 64;
            return launchShape<decltype(element), size(), 4, kKEYS, 1, 1>(arguments, stream);
        });
}

} // namespace bert
