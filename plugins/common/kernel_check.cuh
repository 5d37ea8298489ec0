// What the check programs share: tensors on host and device, the reference loop in double precision, and the count of
// wrong rows. The programs are small and do not use PyTorch, so that compute-sanitizer runs them in seconds:
//
//     cmake --build plugins/build --target layer_norm_check
//     compute-sanitizer --tool memcheck plugins/build/layer_norm_check        also: racecheck, initcheck, synccheck
#pragma once

#include "common/device_tensor.cuh"
#include "common/element.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace bert
{

constexpr float kEPSILON = 1e-12F;

// ---------------------------------------------------------------------------------------------------------------
// Values on the host
// ---------------------------------------------------------------------------------------------------------------

inline float toHost(float value)
{
    return value;
}
inline float toHost(__half value)
{
    return __half2float(value);
}
inline float toHost(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}
inline float toHost(int8_t value)
{
    return value;
}
inline float toHost(E4m3 value)
{
    return static_cast<float>(value);
}
template <typename T>
T fromHost(float value)
{
    return static_cast<T>(value);
}

template <typename T>
constexpr bool kNARROW = sizeof(T) == 1; // int8 and E4M3

template <typename T>
struct TypeOf;
template <>
struct TypeOf<__half>
{
    static constexpr ElementType kVALUE = ElementType::kHALF;
};
template <>
struct TypeOf<__nv_bfloat16>
{
    static constexpr ElementType kVALUE = ElementType::kBF16;
};
template <>
struct TypeOf<int8_t>
{
    static constexpr ElementType kVALUE = ElementType::kINT8;
};
template <>
struct TypeOf<E4m3>
{
    static constexpr ElementType kVALUE = ElementType::kE4M3;
};

// A number that was divided by its scale, in 8 bits as TensorRT defines it.
inline int8_t quantized(double value, int8_t /*type*/)
{
    return static_cast<int8_t>(std::nearbyint(std::min(127.0, std::max(-128.0, value))));
}
inline E4m3 quantized(double value, E4m3 /*type*/)
{
    return static_cast<E4m3>(static_cast<float>(std::min(448.0, std::max(-448.0, value))));
}
// Numbers that follow each other for neighbours.
inline int stepOf(int8_t value)
{
    return value;
}
inline int stepOf(E4m3 value)
{
    return (value.__x & 0x80) != 0 ? -(value.__x & 0x7F) : value.__x;
}

// At most kDIFFERENT random values, repeated: drawing every value would take most of the program's time. The number
// is a prime, so that rows differ.
template <typename T>
std::vector<T> randomValues(size_t count, float mean, float deviation)
{
    constexpr size_t kDIFFERENT = 131071;
    static std::minstd_rand generator{1};
    std::uniform_real_distribution<float> distribution{mean - deviation, mean + deviation};
    std::vector<T> values(count);
    for (size_t i = 0; i < count; ++i)
    {
        values[i] = i < kDIFFERENT ? fromHost<T>(distribution(generator)) : values[i - kDIFFERENT];
    }
    return values;
}

// ---------------------------------------------------------------------------------------------------------------
// The reference loop
// ---------------------------------------------------------------------------------------------------------------

// Layer normalisation of one row.
template <typename W>
std::vector<double> normalizedRow(std::vector<double> const& x, W const* gamma, W const* beta)
{
    auto const hidden = static_cast<double>(x.size());
    double mean = 0.0;
    double variance = 0.0;
    for (double value : x)
    {
        mean += value / hidden;
    }
    for (double value : x)
    {
        variance += (value - mean) * (value - mean) / hidden;
    }
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i)
    {
        y[i] = (x[i] - mean) / std::sqrt(variance + kEPSILON) * toHost(gamma[i]) + toHost(beta[i]);
    }
    return y;
}

// ||found * scale - expected|| / ||expected|| over one row
template <typename T>
double rowError(T const* found, std::vector<double> const& expected, double scale = 1.0)
{
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < expected.size(); ++i)
    {
        double const difference = toHost(found[i]) * scale - expected[i];
        error += difference * difference;
        norm += expected[i] * expected[i];
    }
    return std::sqrt(error / norm);
}

// How far a byte of int8 or E4M3 is from the value that was quantized, in halves of the step there: at most 1, and a
// margin for the difference of fp32 and double precision. `terms` is the sum of the absolute values of the terms whose
// sum is the value: where they cancel, E4M3 has small steps, but fp32 still has rounded the terms. Eight roundings are
// not counted. Not for NaN.
//
// gamma is a term too: the mean, in units of the deviation, is as precise as the deviations' sum. In a wide row all
// additions of a thread can round the same way, because the mean's last bits are in each deviation.
inline double halfSteps(int8_t found, double value, double terms, ElementType type)
{
    double const rounding = terms * 0x1p-21;
    auto const distance
        = [&](double stored, double bounded) { return std::max(std::abs(stored - bounded) - rounding, 0.0); };
    if (type == ElementType::kINT8)
    {
        return distance(found, std::min(std::max(value, -128.0), 127.0)) * 2.0;
    }
    E4m3 narrow;
    narrow.__x = static_cast<__nv_fp8_storage_t>(found);
    double const bounded = std::min(std::max(value, -448.0), 448.0);
    constexpr double kSMALLEST_NORMAL = 1.0 / 64;
    double const step = std::exp2(std::floor(std::log2(std::max(std::abs(bounded), kSMALLEST_NORMAL)))) / 8.0;
    return distance(static_cast<float>(narrow), bounded) * 2.0 / step;
}

// ---------------------------------------------------------------------------------------------------------------
// The count
// ---------------------------------------------------------------------------------------------------------------

class Outcome
{
public:
    void countRun()
    {
        ++mRuns;
    }
    // Prints an error above the tolerance, or a NaN.
    void expectAtMost(
        double error, double tolerance, char const* what, int64_t rows, int32_t hidden, int64_t row)
    {
        if (!(error <= tolerance))
        {
            std::printf("wrong: %s, %lld x %d, row %lld: error %g\n", what, static_cast<long long>(rows),
                hidden, static_cast<long long>(row), error);
            ++mWrong;
        }
    }
    // Prints the totals. Returns the exit status.
    int report() const
    {
        std::printf("%d runs, %d rows wrong\n", mRuns, mWrong);
        return mWrong == 0 ? 0 : 1;
    }

private:
    int mRuns{};
    int mWrong{};
};

// Odd widths, then the narrowest and the widest row of each RowShape, and one that fits none of them.
constexpr int32_t kWIDTHS[] = {1, 5, 33, 769, 64, 192, 200, 256, 312, 384, 512, 768, 1000, 1024, 1536, 2040,
    2048, 4096, 8192, 16384, 32768, 40000};

// Calls function(rows, hidden) for one row, a few rows, and for narrow rows a larger odd number.
template <typename Function>
void forEachShape(Function&& function)
{
    for (int32_t hidden : kWIDTHS)
    {
        function(int64_t{1}, hidden);
        function(int64_t{7}, hidden);
        if (hidden <= 2048)
        {
            function(int64_t{131}, hidden);
        }
    }
}

} // namespace bert
