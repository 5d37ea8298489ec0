// Layer normalisation, third version: memory is touched once. What changed against the fused kernel:
//
//   - x is read in vectors of 16 bytes, and the row stays in registers: one read and one write, no second look.
//   - A row belongs to as few threads as its width allows, most often to one warp. Sums over a warp need no barrier.
//   - gamma and beta are fetched together with x, not after the sums have been waited for.
//   - It is launched while the kernel before it still runs (common/early_launch.cuh).
//
// Run it with: python plugins/testLayerNormPlugin.py --kernel fast
#include "common/early_launch.cuh"
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

// Threads to a block, unless one row needs more. Small blocks: a finished one makes room for the next at once.
constexpr int kBLOCK = 64;

// The vectors of a row that belong to one thread: kVECTORS of them, kTHREADS apart. kEXACT: together they fill the
// row; else some lie behind its end, are never loaded or stored, and count as nothing.
template <int kPER, int kTHREADS, int kVECTORS, bool kEXACT>
struct Share
{
    static __device__ uint32_t index(int v)
    {
        return threadIdx.x % kTHREADS + v * kTHREADS;
    }
    static __device__ bool exists(int v, uint32_t hidden)
    {
        return kEXACT || index(v) < hidden / kPER;
    }
    template <bool kONCE = false, typename Element>
    static __device__ void load(
        Vector<Element, kPER> (&vectors)[kVECTORS], Element const* row, uint32_t hidden)
    {
        auto const* const source = reinterpret_cast<Vector<Element, kPER> const*>(row);
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                if constexpr (kONCE)
                {
                    vectors[v] = loadOnce(source + index(v));
                }
                else
                {
                    vectors[v] = source[index(v)];
                }
            }
        }
    }
};

// kTHREADS threads to a row; as many rows to a block as make up kBLOCK threads.
// The 1 in __launch_bounds__ tells the compiler that one block at a time would do: else it saves registers by fetching
// gamma and beta last, and every row waits for them (0.3 us of 1.9 with 16 rows of 768 fp16 elements on an H200).
template <typename T, typename W, int kTHREADS, int kVECTORS, bool kEXACT>
__global__ void __launch_bounds__(kTHREADS > kBLOCK ? kTHREADS : kBLOCK, 1) layerNormFastKernel(
    T const* x, W const* gamma, W const* beta, T* y, uint32_t rows, uint32_t hidden, float epsilon)
{
    constexpr int kPER = kPER_VECTOR<T>;
    constexpr int kROWS = kTHREADS > kBLOCK ? 1 : kBLOCK / kTHREADS;
    constexpr int kWARPS = kTHREADS > kWARP ? kTHREADS / kWARP : 1;
    constexpr bool kSHARE_WARP = kTHREADS < kWARP; // several rows to a warp
    // Measured on an H200 with more data than its cache holds: 3 % faster in fp16 and bf16, slower in fp32.
    constexpr bool kONCE = sizeof(T) == 2;
    using Mine = Share<kPER, kTHREADS, kVECTORS, kEXACT>;
    __shared__ float meanScratch[kROWS][kWARPS];
    __shared__ float2 deviationScratch[kROWS][kWARPS];

    waitForPreviousKernel();
    int const rowOfBlock = threadIdx.x / kTHREADS;
    uint32_t const row = blockIdx.x * kROWS + rowOfBlock;
    bool const exists = row < rows;
    if (!kSHARE_WARP && !exists)
    {
        return;
    }
    // All threads of a warp take part in its sums: those without a row compute the last one, and do not store it.
    uint64_t const start = static_cast<uint64_t>(exists ? row : rows - 1) * hidden;
    Width const width{hidden};

    Vector<T, kPER> loaded[kVECTORS];
    Vector<W, kPER> gammas[kVECTORS];
    Vector<W, kPER> betas[kVECTORS];
    Mine::template load<kONCE>(loaded, x + start, hidden);
    Mine::load(gammas, gamma, hidden);
    Mine::load(betas, beta, hidden);

    // Sums of each vector by itself first: short chains of additions, which also round less than one long one.
    float values[kVECTORS][kPER];
    float sum = 0.0F;
#pragma unroll
    for (int v = 0; v < kVECTORS; ++v)
    {
        float ofVector = 0.0F;
#pragma unroll
        for (int i = 0; i < kPER; ++i)
        {
            values[v][i] = toFloat(loaded[v].values[i]);
            ofVector += values[v][i];
        }
        sum += Mine::exists(v, hidden) ? ofVector : 0.0F;
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
            float const deviation = values[v][i] - mean;
            ofVector = ofVector + make_float2(deviation, deviation * deviation);
        }
        sums = sums + (Mine::exists(v, hidden) ? ofVector : float2{});
    }
    sums = groupSum<kTHREADS>(sums, deviationScratch[rowOfBlock]);
    RowStatistics const statistics = makeStatistics(mean, sums, width, epsilon);

    if (kSHARE_WARP && !exists)
    {
        return;
    }
    auto* const target = reinterpret_cast<Vector<T, kPER>*>(y + start);
#pragma unroll
    for (int v = 0; v < kVECTORS; ++v)
    {
        if (Mine::exists(v, hidden))
        {
            Vector<T, kPER> result;
#pragma unroll
            for (int i = 0; i < kPER; ++i)
            {
                result.values[i]
                    = normalize<T>(values[v][i], statistics, gammas[v].values[i], betas[v].values[i]);
            }
            if constexpr (kONCE)
            {
                storeOnce(target + Mine::index(v), result);
            }
            else
            {
                target[Mine::index(v)] = result;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename W, int kTHREADS, int kVECTORS, bool kEXACT>
cudaError_t launchKernel(LayerNormArguments const& a, cudaStream_t stream)
{
    constexpr int kTHREADS_OF_BLOCK = std::max(kTHREADS, kBLOCK);
    constexpr int64_t kROWS = kTHREADS_OF_BLOCK / kTHREADS;
    auto const blocks = static_cast<unsigned int>((a.rows + kROWS - 1) / kROWS);
    return launchEarly(layerNormFastKernel<T, W, kTHREADS, kVECTORS, kEXACT>, blocks, kTHREADS_OF_BLOCK,
        stream, static_cast<T const*>(a.x), static_cast<W const*>(a.gamma), static_cast<W const*>(a.beta),
        static_cast<T*>(a.y), static_cast<uint32_t>(a.rows), a.hidden, a.epsilon);
}

template <typename T, typename W, int kTHREADS, int kVECTORS>
cudaError_t launchShape(LayerNormArguments const& a, cudaStream_t stream)
{
    bool const exact = a.hidden == kTHREADS * kVECTORS * kPER_VECTOR<T>;
    return exact ? launchKernel<T, W, kTHREADS, kVECTORS, true>(a, stream)
                 : launchKernel<T, W, kTHREADS, kVECTORS, false>(a, stream);
}

// The fewest threads that hold a row in at most four vectors each. Measured with 768 elements: three or four vectors
// in flight for each thread were never slower than one or two in more threads, whatever the number of rows.
template <typename T, typename W>
cudaError_t launchTyped(LayerNormArguments const& a, cudaStream_t stream)
{
    int32_t const vectors = a.hidden / kPER_VECTOR<T>;
    if (vectors <= 8)
    {
        return launchShape<T, W, 8, 1>(a, stream);
    }
    if (vectors <= 32)
    {
        return launchShape<T, W, 32, 1>(a, stream);
    }
    if (vectors <= 64)
    {
        return launchShape<T, W, 32, 2>(a, stream);
    }
    if (vectors <= 96)
    {
        return launchShape<T, W, 32, 3>(a, stream);
    }
    if (vectors <= 128)
    {
        return launchShape<T, W, 32, 4>(a, stream);
    }
    if (vectors <= 192)
    {
        return launchShape<T, W, 64, 3>(a, stream);
    }
    if (vectors <= 256)
    {
        return launchShape<T, W, 64, 4>(a, stream);
    }
    if (vectors <= 512)
    {
        return launchShape<T, W, 128, 4>(a, stream);
    }
    if (vectors <= 1024)
    {
        return launchShape<T, W, 256, 4>(a, stream);
    }
    return launchShape<T, W, 512, 4>(a, stream);
}

// Rows that cannot be read in vectors, do not fit into the registers of a block, or are more than a grid can have.
bool needsFused(LayerNormArguments const& a)
{
    int32_t const perVector = a.type == ElementType::kFLOAT ? 4 : 8;
    constexpr int32_t kMOST_VECTORS = 512 * 4;
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
    return dispatchTypes(arguments,
        [&](auto x, auto weight) { return launchTyped<decltype(x), decltype(weight)>(arguments, stream); });
}

} // namespace bert
