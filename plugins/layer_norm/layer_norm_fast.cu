// Layer normalisation, third version: memory is touched once. What changed against the fused kernel:
//
//   - x is read in vectors of 16 bytes, and the row stays in registers: one read and one write, no second look.
//   - A row belongs to as few threads as its width allows, most often to one warp. Sums over a warp need no barrier.
//   - gamma and beta are fetched together with x where registers allow it, not after the sums have been waited for.
//
// Run it with: python plugins/testLayerNormPlugin.py --kernel fast
#include "common/reduce.cuh"
#include "layer_norm/layer_norm_common.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

template <typename T>
constexpr int kPER_VECTOR = 16 / static_cast<int>(sizeof(T)); // 4 or 8 elements

// The part of a row that one thread holds: kVECTORS vectors, kTHREADS apart. kEXACT: they fill the row; else some
// reach behind its end, are never loaded or stored, and count as nothing.
template <typename Element, int kPER, int kTHREADS, int kVECTORS, bool kEXACT>
struct RowPart
{
    using VectorType = Vector<Element, kPER>;

    VectorType vectors[kVECTORS];

    static __device__ bool exists(int v, uint32_t hidden)
    {
        return kEXACT || indexOf(v) < hidden / kPER;
    }
    static __device__ uint32_t indexOf(int v)
    {
        return threadIdx.x % kTHREADS + v * kTHREADS;
    }
    __device__ void load(Element const* row, uint32_t hidden)
    {
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                vectors[v] = reinterpret_cast<VectorType const*>(row)[indexOf(v)];
            }
        }
    }
};

// kTHREADS threads to a row, kROWS rows to a block.
template <typename T, typename W, int kTHREADS, int kVECTORS, int kROWS, bool kEXACT>
__global__ void __launch_bounds__(kTHREADS* kROWS) layerNormFastKernel(
    T const* x, W const* gamma, W const* beta, T* y, int64_t rows, uint32_t hidden, float epsilon)
{
    constexpr int kPER = kPER_VECTOR<T>;
    constexpr int kWARPS = kTHREADS > kWARP ? kTHREADS / kWARP : 1;
    constexpr bool kFETCH_WEIGHTS_EARLY
        = kVECTORS == 1; // two more vectors for each of x's would crowd the registers
    using Part = RowPart<T, kPER, kTHREADS, kVECTORS, kEXACT>;
    using WeightPart = RowPart<W, kPER, kTHREADS, kVECTORS, kEXACT>;
    __shared__ float meanScratch[kROWS][kWARPS];
    __shared__ float2 deviationScratch[kROWS][kWARPS];

    // A row behind the last is computed like the last, since all threads take part in sums, and not stored.
    int const rowOfBlock = threadIdx.x / kTHREADS;
    int64_t const wanted = static_cast<int64_t>(blockIdx.x) * kROWS + rowOfBlock;
    int64_t const row = min(wanted, rows - 1);
    Width const width{hidden};

    Part part;
    WeightPart gammaPart;
    WeightPart betaPart;
    part.load(x + row * hidden, hidden);
    if constexpr (kFETCH_WEIGHTS_EARLY)
    {
        gammaPart.load(gamma, hidden);
        betaPart.load(beta, hidden);
    }

    // Sums of each vector by itself first: short chains of additions, which also round less than one long one.
    float sum = 0.0F;
#pragma unroll
    for (int v = 0; v < kVECTORS; ++v)
    {
        float ofVector = 0.0F;
#pragma unroll
        for (int i = 0; i < kPER; ++i)
        {
            ofVector += toFloat(part.vectors[v].values[i]);
        }
        sum += Part::exists(v, hidden) ? ofVector : 0.0F;
    }
    float const mean = width.average(groupSum<kTHREADS>(sum, meanScratch[rowOfBlock]));

    float2 sums{};
#pragma unroll
    for (int v = 0; v < kVECTORS; ++v)
    {
        float2 ofVector{};
#pragma unroll
        for (int i = 0; i < kPER; ++i)
        {
            float const deviation = toFloat(part.vectors[v].values[i]) - mean;
            ofVector = ofVector + make_float2(deviation, deviation * deviation);
        }
        sums = sums + (Part::exists(v, hidden) ? ofVector : float2{});
    }
    sums = groupSum<kTHREADS>(sums, deviationScratch[rowOfBlock]);
    RowStatistics const statistics = makeStatistics(mean, sums, width, epsilon);

    if (wanted >= rows)
    {
        return;
    }
    if constexpr (!kFETCH_WEIGHTS_EARLY)
    {
        gammaPart.load(gamma, hidden);
        betaPart.load(beta, hidden);
    }
#pragma unroll
    for (int v = 0; v < kVECTORS; ++v)
    {
        if (Part::exists(v, hidden))
        {
            typename Part::VectorType normalized;
#pragma unroll
            for (int i = 0; i < kPER; ++i)
            {
                normalized.values[i] = normalize<T>(toFloat(part.vectors[v].values[i]), statistics,
                    gammaPart.vectors[v].values[i], betaPart.vectors[v].values[i]);
            }
            reinterpret_cast<typename Part::VectorType*>(y + row * hidden)[Part::indexOf(v)] = normalized;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W, int kTHREADS, int kVECTORS, int kROWS, bool kEXACT>
cudaError_t launchKernel(LayerNormArguments const& a, cudaStream_t stream)
{
    int64_t const blocks = (a.rows + kROWS - 1) / kROWS;
    layerNormFastKernel<T, W, kTHREADS, kVECTORS, kROWS, kEXACT>
        <<<static_cast<unsigned int>(blocks), kTHREADS * kROWS, 0, stream>>>(static_cast<T const*>(a.x),
            static_cast<W const*>(a.gamma), static_cast<W const*>(a.beta), static_cast<T*>(a.y), a.rows,
            a.hidden, a.epsilon);
    return cudaGetLastError();
}

// Launches what fits: kTHREADS * kVECTORS vectors at most.
template <int kTHREADS, int kVECTORS, int kROWS, typename T, typename W>
cudaError_t launchShape(LayerNormArguments const& a, T, W, cudaStream_t stream)
{
    bool const exact = a.hidden == kTHREADS * kVECTORS * kPER_VECTOR<T>;
    return exact ? launchKernel<T, W, kTHREADS, kVECTORS, kROWS, true>(a, stream)
                 : launchKernel<T, W, kTHREADS, kVECTORS, kROWS, false>(a, stream);
}

// Few rows leave most of the GPU idle; what counts is how soon one row is done: one vector for each thread.
template <typename T, typename W>
cudaError_t launchFewRows(LayerNormArguments const& a, int32_t vectors, T x, W weight, cudaStream_t stream)
{
    if (vectors <= 64)
    {
        return launchShape<64, 1, 1>(a, x, weight, stream);
    }
    if (vectors <= 96)
    {
        return launchShape<96, 1, 1>(a, x, weight, stream);
    }
    if (vectors <= 128)
    {
        return launchShape<128, 1, 1>(a, x, weight, stream);
    }
    if (vectors <= 192)
    {
        return launchShape<192, 1, 1>(a, x, weight, stream);
    }
    return launchShape<256, 1, 1>(a, x, weight, stream);
}

// Many rows keep the memory busy by themselves; what counts is little work for each: few threads, no barriers.
template <typename T, typename W>
cudaError_t launchManyRows(LayerNormArguments const& a, int32_t vectors, T x, W weight, cudaStream_t stream)
{
    if (vectors <= 64)
    {
        return launchShape<32, 2, 4>(a, x, weight, stream);
    }
    if (vectors <= 96)
    {
        return launchShape<32, 3, 4>(a, x, weight, stream);
    }
    if (vectors <= 128)
    {
        return launchShape<32, 4, 4>(a, x, weight, stream);
    }
    if (vectors <= 192)
    {
        return launchShape<64, 3, 2>(a, x, weight, stream);
    }
    if (vectors <= 256)
    {
        return launchShape<64, 4, 2>(a, x, weight, stream);
    }
    if (vectors <= 512)
    {
        return launchShape<128, 4, 1>(a, x, weight, stream);
    }
    if (vectors <= 1024)
    {
        return launchShape<256, 4, 1>(a, x, weight, stream);
    }
    return launchShape<1024, 4, 1>(a, x, weight, stream);
}

template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, T x, W weight, cudaStream_t stream)
{
    constexpr int64_t kFEW_ROWS = 1024; // measured, see plugins/README.md
    int32_t const vectors = a.hidden / kPER_VECTOR<T>;
    if (vectors <= 8) // narrow: several rows to a warp
    {
        return launchShape<8, 1, 16>(a, x, weight, stream);
    }
    if (vectors <= 32)
    {
        return launchShape<32, 1, 4>(a, x, weight, stream);
    }
    if (a.rows <= kFEW_ROWS && vectors <= 256)
    {
        return launchFewRows(a, vectors, x, weight, stream);
    }
    return launchManyRows(a, vectors, x, weight, stream);
}

// Rows that cannot be read in vectors, do not fit into the registers of a block, or are more than a grid can have.
bool needsFused(LayerNormArguments const& a)
{
    int32_t const perVector = a.type == ElementType::kFLOAT ? 4 : 8;
    constexpr int32_t kMOST_VECTORS = 1024 * 4;
    bool const aligned = isAligned16(a.x) && isAligned16(a.gamma) && isAligned16(a.beta) && isAligned16(a.y);
    return a.hidden % perVector != 0 || a.hidden / perVector > kMOST_VECTORS || !aligned
           || a.rows > INT32_MAX;
}

} // namespace

cudaError_t launchLayerNormFast(LayerNormArguments const& arguments, cudaStream_t stream)
{
    if (arguments.rows == 0)
    {
        return cudaSuccess;
    }
    if (needsFused(arguments))
    {
        return launchLayerNormFused(arguments, stream);
    }
    return dispatchTypes(
        arguments, [&](auto x, auto weight) { return launchTyped(arguments, x, weight, stream); });
}

} // namespace bert
