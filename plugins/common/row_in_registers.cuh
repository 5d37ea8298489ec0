// Rows that stay in registers between the passes of a layer normalisation: each element is read from memory once.
#pragma once

#include "common/normalize.cuh"
#include "common/programmatic_dependent_launch.cuh"

#include <type_traits>

namespace bert
{

// Elements in a vector of 16 bytes: 4 or 8.
template <typename T>
constexpr int kPER_VECTOR = 16 / static_cast<int>(sizeof(T));

// Whether data that is touched only once is loaded and stored with the streaming hint: a gain for two-byte types, a
// loss for fp32 (docs/kernels/layer_norm.md).
template <typename T>
constexpr bool kSTREAMING = sizeof(T) < 4;

// Threads of a block, unless one row needs more. Blocks are small, so that a finished block makes room for the next
// soon.
constexpr int kSMALL_BLOCK = 64;

// How a row is distributed over threads. Each thread has kVECTORS vectors of kPER elements, kTHREADS vectors apart.
// With kEXACT they fill the row exactly; otherwise some vectors lie beyond its end: they are never loaded or stored
// and are left out of the sums.
//
// Kernels with such rows have __launch_bounds__(Shape::kBLOCK, 1), or kBLOCKS instead of 1. With 1 the compiler may
// use many registers. Without it, the compiler saves registers by loading gamma and beta last, and every row waits
// for them.
template <int kPER_, int kTHREADS_, int kVECTORS_, bool kEXACT_>
struct RowShape
{
    static constexpr int kPER = kPER_;
    static constexpr int kTHREADS = kTHREADS_;
    static constexpr int kVECTORS = kVECTORS_;
    static constexpr bool kEXACT = kEXACT_;
    static constexpr int kBLOCK = kTHREADS > kSMALL_BLOCK ? kTHREADS : kSMALL_BLOCK;
    static constexpr int kROWS = kBLOCK / kTHREADS; // of a block
    static constexpr bool kSHARES_WARP = kTHREADS < kWARP;

    // The row of this thread. All threads of a warp must take part in its sums, so threads without a row compute the
    // last row and do not store it. If a warp has one row only, a warp without a row can return at once: it is idle.
    struct Position
    {
        uint32_t row;
        bool exists;
        bool idle;
    };
    static __device__ Position position(uint32_t rows)
    {
        uint32_t const row = blockIdx.x * kROWS + threadIdx.x / kTHREADS;
        bool const exists = row < rows;
        return {kSHARES_WARP && !exists ? rows - 1 : row, exists, !kSHARES_WARP && !exists};
    }

    static __device__ uint32_t index(int v)
    {
        return threadIdx.x % kTHREADS + v * kTHREADS;
    }
    static __device__ bool exists(int v, uint32_t hidden)
    {
        return kEXACT || index(v) < hidden / kPER;
    }

    template <bool kSTREAMED = false, typename Element>
    static __device__ void load(
        Vector<Element, kPER> (&vectors)[kVECTORS], Element const* row, uint32_t hidden)
    {
        auto const* const source = reinterpret_cast<Vector<Element, kPER> const*>(row);
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                if constexpr (kSTREAMED)
                {
                    vectors[v] = loadStreaming(source + index(v));
                }
                else
                {
                    vectors[v] = source[index(v)];
                }
            }
        }
    }

    // Calls function(v, i) for every element: element i of vector v.
    template <typename Function>
    static __device__ void forEach(Function const& function)
    {
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
#pragma unroll
            for (int i = 0; i < kPER; ++i)
            {
                function(v, i);
            }
        }
    }

    // Stores value(v, i).
    template <bool kSTREAMED, typename Element, typename Value>
    static __device__ void store(Element* row, uint32_t hidden, Value const& value)
    {
        auto* const target = reinterpret_cast<Vector<Element, kPER>*>(row);
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                Vector<Element, kPER> result;
                if constexpr (std::is_same_v<decltype(value(0, 0)), PendingE4m3>)
                {
#pragma unroll
                    for (int i = 0; i < kPER; i += 2)
                    {
                        reinterpret_cast<__nv_fp8x2_storage_t*>(&result)[i / 2] = __nv_cvt_float2_to_fp8x2(
                            make_float2(value(v, i).value, value(v, i + 1).value), __NV_SATFINITE, __NV_E4M3);
                    }
                }
                else
                {
#pragma unroll
                    for (int i = 0; i < kPER; ++i)
                    {
                        result.values[i] = value(v, i);
                    }
                }
                if constexpr (kSTREAMED)
                {
                    storeStreaming(target + index(v), result);
                }
                else
                {
                    target[index(v)] = result;
                }
            }
        }
    }

    // A kernel calls it once, with all threads that are not idle.
    static __device__ RowStatistics statistics(
        float const (&values)[kVECTORS][kPER], Width width, uint32_t hidden, float epsilon)
    {
        constexpr int kWARPS = kTHREADS > kWARP ? kTHREADS / kWARP : 1;
        __shared__ float meanScratch[kROWS][kWARPS];
        __shared__ float2 deviationScratch[kROWS][kWARPS];
        int const rowOfBlock = threadIdx.x / kTHREADS;

        // Each vector is summed by itself first: short chains of dependent additions, which also round less than a
        // long chain.
        float sum = 0.0F;
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            float ofVector = 0.0F;
#pragma unroll
            for (int i = 0; i < kPER; ++i)
            {
                ofVector += values[v][i];
            }
            sum += exists(v, hidden) ? ofVector : 0.0F;
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
            sums = sums + (exists(v, hidden) ? ofVector : float2{});
        }
        sums = groupSum<kTHREADS>(sums, deviationScratch[rowOfBlock]);
        return makeStatistics(mean, sums, width, epsilon);
    }
};

// Blocks per multiprocessor for __launch_bounds__ of kernels that add several rows in registers. Where 64 registers
// per thread are enough, the compiler is asked to use no more, so that 1024 threads fit on a multiprocessor.
// Elsewhere that limit would spill registers to memory.
template <typename W, typename Shape>
constexpr int kBLOCKS = Shape::kEXACT && Shape::kVECTORS <= 3 && sizeof(W) < 4 ? 1024 / Shape::kBLOCK : 1;

// ---------------------------------------------------------------------------------------------------------------
// Launching
// ---------------------------------------------------------------------------------------------------------------

constexpr int32_t kMAX_VECTORS = 512 * 4;

// Whether a row can be read in vectors of perVector elements, fits into the registers of a block, and the number of
// rows does not exceed the limit of a grid. In addition addresses must be aligned (isAligned16).
inline bool fitsRegisters(int64_t rows, int32_t hidden, int32_t perVector)
{
    return hidden % perVector == 0 && hidden / perVector <= kMAX_VECTORS && rows <= INT32_MAX;
}

// Calls function(RowShape{}) with the shape of the fewest threads that hold a row in at most four vectors each: three
// or four loads in flight for each thread were never slower than one or two in more threads. kINSTANTIATE_EXACT =
// false leaves out the exact shapes, for a smaller library.
template <int kPER, bool kINSTANTIATE_EXACT = true, typename Function>
cudaError_t dispatchRowShape(int32_t hidden, Function&& function)
{
    auto const withShape = [&](auto threads, auto vectors)
    {
        constexpr int kTHREADS = decltype(threads)::value;
        constexpr int kVECTORS = decltype(vectors)::value;
        bool const exact = hidden == kTHREADS * kVECTORS * kPER;
        return exact ? function(RowShape<kPER, kTHREADS, kVECTORS, kINSTANTIATE_EXACT>{})
                     : function(RowShape<kPER, kTHREADS, kVECTORS, false>{});
    };
    using std::integral_constant;
    integral_constant<int, 1> const one{};
    integral_constant<int, 2> const two{};
    integral_constant<int, 3> const three{};
    integral_constant<int, 4> const four{};
    integral_constant<int, 16> const halfWarp{};
    integral_constant<int, 32> const warp{};
    integral_constant<int, 64> const twoWarps{};

    int32_t const count = hidden / kPER;
    if (count <= 8)
    {
        return withShape(integral_constant<int, 8>{}, one);
    }
    if (count <= 32)
    {
        return withShape(warp, one);
    }
    if (count <= 48)
    {
        return withShape(halfWarp, three);
    }
    if (count <= 64)
    {
        return withShape(warp, two);
    }
    if (count <= 96)
    {
        return withShape(warp, three);
    }
    if (count <= 128)
    {
        return withShape(warp, four);
    }
    if (count <= 192)
    {
        return withShape(twoWarps, three);
    }
    if (count <= 256)
    {
        return withShape(twoWarps, four);
    }
    if (count <= 512)
    {
        return withShape(integral_constant<int, 128>{}, four);
    }
    if (count <= 1024)
    {
        return withShape(integral_constant<int, 256>{}, four);
    }
    return withShape(integral_constant<int, 512>{}, four);
}

// Launches a kernel that calls waitForPreviousKernel, with blocks for all rows.
template <typename Shape, typename... Parameters, typename... Arguments>
cudaError_t launchRows(
    void (*kernel)(Parameters...), int64_t rows, cudaStream_t stream, Arguments const&... arguments)
{
    auto const blocks = static_cast<unsigned int>((rows + Shape::kROWS - 1) / Shape::kROWS);
    return launchDependent(kernel, blocks, Shape::kBLOCK, stream, arguments...);
}

} // namespace bert
