// Rows that stay in registers between the passes of a layer normalisation: memory is touched once.
#pragma once

#include "common/early_launch.cuh"
#include "common/normalize.cuh"

#include <type_traits>

namespace bert
{

// Elements in a vector of 16 bytes: 4 or 8.
template <typename T>
constexpr int kPER_VECTOR = 16 / static_cast<int>(sizeof(T));

// Whether what is touched once only is marked so for the cache. Measured on an H200 with more data than its cache
// holds: 3 % faster in fp16 and bf16, slower in fp32.
template <typename T>
constexpr bool kONCE = sizeof(T) < 4;

// Threads to a block, unless one row needs more. Small blocks: a finished one makes room for the next at once.
constexpr int kSMALL_BLOCK = 64;

// How a row is spread over threads. Each has kVECTORS vectors of kPER elements, kTHREADS apart. kEXACT: together they
// fill the row; else some lie behind its end, are never loaded or stored, and count as nothing.
//
// Kernels with such rows have __launch_bounds__(Shape::kBLOCK, 1), or kBLOCKS for the 1. The 1 tells the compiler that one block at a time
// would do: else it saves registers by fetching gamma and beta last, and every row waits for them (0.3 us of 1.9 with
// 16 rows of 768 fp16 elements on an H200).
template <int kPER_, int kTHREADS_, int kVECTORS_, bool kEXACT_>
struct RowShape
{
    static constexpr int kPER = kPER_;
    static constexpr int kTHREADS = kTHREADS_;
    static constexpr int kVECTORS = kVECTORS_;
    static constexpr bool kEXACT = kEXACT_;
    static constexpr int kBLOCK = kTHREADS > kSMALL_BLOCK ? kTHREADS : kSMALL_BLOCK;
    static constexpr int kROWS = kBLOCK / kTHREADS; // rows of a block
    static constexpr bool kSHARES_WARP = kTHREADS < kWARP;

    // The row of this thread. All threads of a warp take part in its sums: those without a row compute the last one,
    // and do not store it; where a warp has one row, the whole of it can go.
    struct Place
    {
        uint32_t row;
        bool exists;
        bool idle; // has nothing to do at all
    };
    static __device__ Place place(uint32_t rows)
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

    template <bool kTOUCHED_ONCE = false, typename Element>
    static __device__ void load(
        Vector<Element, kPER> (&vectors)[kVECTORS], Element const* row, uint32_t hidden)
    {
        auto const* const source = reinterpret_cast<Vector<Element, kPER> const*>(row);
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                if constexpr (kTOUCHED_ONCE)
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

    // Calls function(v, i) for every element, of vector v the i-th.
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
    template <bool kTOUCHED_ONCE, typename Element, typename Value>
    static __device__ void store(Element* row, uint32_t hidden, Value const& value)
    {
        auto* const target = reinterpret_cast<Vector<Element, kPER>*>(row);
#pragma unroll
        for (int v = 0; v < kVECTORS; ++v)
        {
            if (exists(v, hidden))
            {
                Vector<Element, kPER> result;
#pragma unroll
                for (int i = 0; i < kPER; ++i)
                {
                    result.values[i] = value(v, i);
                }
                if constexpr (kTOUCHED_ONCE)
                {
                    storeOnce(target + index(v), result);
                }
                else
                {
                    target[index(v)] = result;
                }
            }
        }
    }

    // To be called once in a kernel, by all threads that are not idle.
    static __device__ RowStatistics statistics(
        float const (&values)[kVECTORS][kPER], Width width, uint32_t hidden, float epsilon)
    {
        constexpr int kWARPS = kTHREADS > kWARP ? kTHREADS / kWARP : 1;
        __shared__ float meanScratch[kROWS][kWARPS];
        __shared__ float2 deviationScratch[kROWS][kWARPS];
        int const rowOfBlock = threadIdx.x / kTHREADS;

        // Sums of each vector by itself first: short chains of additions, which also round less than one long one.
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

// The second number of __launch_bounds__ for kernels with more than one row in registers. Where 64 registers to a thread
// do, they are asked for, so that 1024 threads fit into a multiprocessor: 131072 embeddings of 768 fp16 elements took
// 106 us without it and 84 with it on an H200. Elsewhere values would have to go to memory and back.
template <typename W, typename Shape>
constexpr int kBLOCKS = Shape::kEXACT && Shape::kVECTORS <= 3 && sizeof(W) < 4 ? 1024 / Shape::kBLOCK : 1;

// ---------------------------------------------------------------------------------------------------------------
// Launching
// ---------------------------------------------------------------------------------------------------------------

constexpr int32_t kMOST_VECTORS = 512 * 4;

// Whether a row can be read in vectors of kPER elements and fits into the registers of a block, and there are no more
// rows than a grid can have. Addresses must be aligned besides (isAligned16).
inline bool fitsRegisters(int64_t rows, int32_t hidden, int32_t perVector)
{
    return hidden % perVector == 0 && hidden / perVector <= kMOST_VECTORS && rows <= INT32_MAX;
}

// Calls function(RowShape{}) with the shape of the fewest threads that hold a row in at most four vectors each. Measured
// with 768 elements: three or four vectors in flight for each thread were never slower than one or two in more threads,
// whatever the number of rows. kINSTANTIATE_EXACT = false leaves out the shapes that a row fills, for smaller libraries.
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

// Launches a kernel that waits for the one before it with blocks for all rows.
template <typename Shape, typename... Parameters, typename... Arguments>
cudaError_t launchRows(
    void (*kernel)(Parameters...), int64_t rows, cudaStream_t stream, Arguments const&... arguments)
{
    auto const blocks = static_cast<unsigned int>((rows + Shape::kROWS - 1) / Shape::kROWS);
    return launchEarly(kernel, blocks, Shape::kBLOCK, stream, arguments...);
}

} // namespace bert
