// Layer normalisation, third version: memory is touched once.
#include "common/reduce.cuh"
#include "layer_norm/layer_norm_common.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

template <typename T>
constexpr int kPER_VECTOR = 16 / static_cast<int>(sizeof(T));

// One row in the registers of kLANES neighbouring threads, kVECTORS vectors in each.
template <typename T, typename W, int kLANES, int kVECTORS>
struct RowTile
{
    static constexpr int kN = kPER_VECTOR<T>;
    using VectorT = Vector<T, kN>;
    using VectorW = Vector<W, kN>;

    float x[kVECTORS][kN];

    __device__ void load(T const* row, uint32_t first, uint32_t vectors)
    {
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            uint32_t const index = first + v * kLANES;
            VectorT loaded{};
            if (index < vectors)
            {
                loaded = reinterpret_cast<VectorT const*>(row)[index];
            }
#pragma unroll
            for (int i = 0; i < kN; ++i)
            {
                x[v][i] = toFloat(loaded.values[i]);
            }
        }
    }

    // Elements behind the end of the row are 0 and add nothing.
    __device__ float sum() const
    {
        float total = 0.0F;
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
#pragma unroll
            for (int i = 0; i < kN; ++i)
            {
                total += x[v][i];
            }
        }
        return total;
    }

    __device__ float2 deviationSums(float mean, uint32_t first, uint32_t vectors) const
    {
        float2 sums{};
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (first + v * kLANES < vectors)
            {
#pragma unroll
                for (int i = 0; i < kN; ++i)
                {
                    float const deviation = x[v][i] - mean;
                    sums = sums + make_float2(deviation, deviation * deviation);
                }
            }
        }
        return sums;
    }

    __device__ void store(T* row, W const* gamma, W const* beta, RowStatistics statistics, uint32_t first,
        uint32_t vectors) const
    {
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            uint32_t const index = first + v * kLANES;
            if (index < vectors)
            {
                VectorW const g = reinterpret_cast<VectorW const*>(gamma)[index];
                VectorW const b = reinterpret_cast<VectorW const*>(beta)[index];
                VectorT y;
#pragma unroll
                for (int i = 0; i < kN; ++i)
                {
                    y.values[i] = normalize<T>(x[v][i], statistics, g.values[i], b.values[i]);
                }
                reinterpret_cast<VectorT*>(row)[index] = y;
            }
        }
    }
};

constexpr int kNARROW_BLOCK = 128;

// Narrow rows: a row belongs to kLANES lanes of one warp, so sums need shuffles only, no barrier.
template <typename T, typename W, int kLANES, int kVECTORS>
__global__ void __launch_bounds__(kNARROW_BLOCK) layerNormNarrowKernel(
    T const* x, W const* gamma, W const* beta, T* y, int64_t rows, uint32_t hidden, float epsilon)
{
    constexpr int kROWS = kNARROW_BLOCK / kLANES; // of a block
    uint32_t const lane = threadIdx.x % kLANES;
    int64_t const row = static_cast<int64_t>(blockIdx.x) * kROWS + threadIdx.x / kLANES;
    bool const exists = row < rows; // the others stay: every lane of a warp takes part in its shuffles
    uint32_t const vectors = exists ? hidden / kPER_VECTOR<T> : 0;

    RowTile<T, W, kLANES, kVECTORS> tile;
    tile.load(x + row * hidden, lane, vectors);
    float const mean = warpSum<kLANES>(tile.sum()) / hidden;
    float2 const sums = warpSum<kLANES>(tile.deviationSums(mean, lane, vectors));
    tile.store(y + row * hidden, gamma, beta, makeStatistics(mean, sums, hidden, epsilon), lane, vectors);
}

// Wide rows: a row belongs to a whole block of kTHREADS.
template <typename T, typename W, int kTHREADS, int kVECTORS>
__global__ void __launch_bounds__(kTHREADS) layerNormWideKernel(
    T const* x, W const* gamma, W const* beta, T* y, int64_t rows, uint32_t hidden, float epsilon)
{
    __shared__ float meanScratch[kTHREADS / kWARP];
    __shared__ float2 deviationScratch[kTHREADS / kWARP];
    uint32_t const vectors = hidden / kPER_VECTOR<T>;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    {
        RowTile<T, W, kTHREADS, kVECTORS> tile;
        tile.load(x + row * hidden, threadIdx.x, vectors);
        float const mean = blockSum(tile.sum(), meanScratch) / hidden;
        float2 const sums = blockSum(tile.deviationSums(mean, threadIdx.x, vectors), deviationScratch);
        RowStatistics const statistics = makeStatistics(mean, sums, hidden, epsilon);
        tile.store(y + row * hidden, gamma, beta, statistics, threadIdx.x, vectors);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W>
struct Pointers
{
    T const* x;
    W const* gamma;
    W const* beta;
    T* y;

    explicit Pointers(LayerNormArguments const& a)
        : x(static_cast<T const*>(a.x))
        , gamma(static_cast<W const*>(a.gamma))
        , beta(static_cast<W const*>(a.beta))
        , y(static_cast<T*>(a.y))
    {
    }
};

template <int kLANES, int kVECTORS, typename T, typename W>
cudaError_t launchNarrow(LayerNormArguments const& a, Pointers<T, W> p, cudaStream_t stream)
{
    constexpr int kROWS = kNARROW_BLOCK / kLANES;
    auto const blocks = static_cast<unsigned int>((a.rows + kROWS - 1) / kROWS);
    layerNormNarrowKernel<T, W, kLANES, kVECTORS>
        <<<blocks, kNARROW_BLOCK, 0, stream>>>(p.x, p.gamma, p.beta, p.y, a.rows, a.hidden, a.epsilon);
    return cudaGetLastError();
}

template <int kTHREADS, int kVECTORS, typename T, typename W>
cudaError_t launchWide(LayerNormArguments const& a, Pointers<T, W> p, cudaStream_t stream)
{
    layerNormWideKernel<T, W, kTHREADS, kVECTORS>
        <<<rowBlocks(a.rows), kTHREADS, 0, stream>>>(p.x, p.gamma, p.beta, p.y, a.rows, a.hidden, a.epsilon);
    return cudaGetLastError();
}

// Chooses by the number of 16-byte vectors in a row.
template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    Pointers<T, W> const p{a};
    int const vectors = a.hidden / kPER_VECTOR<T>;
    if (vectors <= 8)
    {
        return launchNarrow<8, 1>(a, p, stream);
    }
    if (vectors <= 32)
    {
        return launchNarrow<32, 1>(a, p, stream);
    }
    if (vectors <= 64)
    {
        return launchNarrow<32, 2>(a, p, stream);
    }
    if (vectors <= 96)
    {
        return launchNarrow<32, 3>(a, p, stream);
    }
    if (vectors <= 128)
    {
        return launchNarrow<32, 4>(a, p, stream);
    }
    if (vectors <= 192)
    {
        return launchNarrow<32, 6>(a, p, stream);
    }
    if (vectors <= 256)
    {
        return launchWide<256, 1>(a, p, stream);
    }
    if (vectors <= 512)
    {
        return launchWide<256, 2>(a, p, stream);
    }
    if (vectors <= 1024)
    {
        return launchWide<256, 4>(a, p, stream);
    }
    return launchWide<1024, 4>(a, p, stream);
}

// Rows that cannot be read in vectors, or do not fit into the registers of a block, take the fused kernel.
bool canUseVectors(LayerNormArguments const& a, int32_t perVector)
{
    constexpr int32_t kMOST_VECTORS = 1024 * 4;
    return a.hidden % perVector == 0 && a.hidden / perVector <= kMOST_VECTORS && isAligned16(a.x)
           && isAligned16(a.gamma) && isAligned16(a.beta) && isAligned16(a.y);
}

} // namespace

cudaError_t launchLayerNormFast(LayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess;
    }
    if (!canUseVectors(arguments, arguments.type == ElementType::kFLOAT ? 4 : 8))
    {
        return launchLayerNormFused(arguments, stream);
    }
    return dispatchTypes(arguments,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
