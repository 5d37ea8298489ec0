// Runs the kernels over shapes that reach every branch of their launcher, including ids outside the tables, and
// compares with a reference loop in double precision. common/kernel_check.cuh says how to run it under
// compute-sanitizer.
#include "common/kernel_check.cuh"
#include "emb_layer_norm/emb_layer_norm_kernels.h"

#include <climits>

using namespace bert;

namespace
{

constexpr int32_t kSIZES[] = {11, 2, 5}; // of the tables of words, token types and positions

// Random ids. With more than two rows, the id of the middle row is outside table `bad`.
std::vector<int32_t> randomIds(int64_t rows, int table, int bad)
{
    auto const values = randomValues<float>(static_cast<size_t>(rows), 0.5F, 0.5F);
    std::vector<int32_t> ids(values.size());
    for (size_t row = 0; row < ids.size(); ++row)
    {
        ids[row] = std::min(static_cast<int32_t>(values[row] * kSIZES[table]), kSIZES[table] - 1);
    }
    if (rows > 2 && table == bad)
    {
        constexpr int32_t kOUTSIDE[] = {-1, INT_MIN, INT_MAX};
        ids[static_cast<size_t>(rows / 2)] = table == 1 ? kSIZES[table] : kOUTSIDE[(rows + table) % 3];
    }
    return ids;
}

constexpr float kOUT_SCALE = 0.04F; // up to 5 in absolute value

struct Variant
{
    char const* name;
    bool y;
    bool quantized;
    ElementType quantizedType{ElementType::kINT8};
    bool factors{false};
};
constexpr Variant kVARIANTS[] = {{"emb", true, false}, {"emb, both outputs", true, true},
    {"emb, int8 output", false, true}, {"emb, both outputs, E4M3", true, true, ElementType::kE4M3},
    {"emb, E4M3 output", false, true, ElementType::kE4M3},
    {"emb, both outputs, factors", true, true, ElementType::kINT8, true},
    {"emb, E4M3 output, factors", false, true, ElementType::kE4M3, true}};

// Whether it is what NaN becomes.
bool isQuantizedNan(int8_t found, ElementType type)
{
    return type == ElementType::kINT8 ? found == INT8_MIN : (static_cast<uint8_t>(found) & 0x7FU) == 0x7FU;
}

template <typename T, typename W>
void runShape(Outcome& outcome, Variant const& variant, ElementType type, ElementType weightType,
    int64_t rows, int32_t hidden, double tolerance)
{
    int const bad = hidden % 3;
    std::vector<int32_t> ids[3];
    std::vector<T> tables[3];
    for (int table = 0; table < 3; ++table)
    {
        ids[table] = randomIds(rows, table, bad);
        tables[table] = randomValues<T>(static_cast<size_t>(kSIZES[table]) * hidden, 1.0F, 1.0F);
    }
    auto const gamma = randomValues<W>(hidden, 1.0F, 0.5F);
    auto const beta = randomValues<W>(hidden, 0.5F, 0.5F);
    auto const factors = randomValues<float>(variant.factors ? hidden : 0, 1.0F, 0.9F);
    Tensor<float> const factorsDevice{factors};
    Tensor<int32_t> const idsDevice[3]{Tensor{ids[0]}, Tensor{ids[1]}, Tensor{ids[2]}};
    Tensor<T> const tablesDevice[3]{Tensor{tables[0]}, Tensor{tables[1]}, Tensor{tables[2]}};
    Tensor<W> const gammaDevice{gamma};
    Tensor<W> const betaDevice{beta};
    size_t const size = static_cast<size_t>(rows) * hidden;
    Tensor<T> const yDevice{variant.y ? size : 0};
    Tensor<int8_t> const quantizedDevice{variant.quantized ? size : 0};
    EmbLayerNormArguments arguments{{}, gammaDevice.data(), betaDevice.data(),
        variant.y ? yDevice.data() : nullptr, rows, hidden, kEPSILON, type, weightType};
    for (int table = 0; table < 3; ++table)
    {
        arguments.lookups[table] = {idsDevice[table].data(), tablesDevice[table].data(), kSIZES[table]};
    }
    arguments.quantized = variant.quantized ? quantizedDevice.data() : nullptr;
    arguments.outputScale = kOUT_SCALE;
    arguments.quantizedType = variant.quantizedType;
    arguments.outputFactors = variant.factors ? factorsDevice.data() : nullptr;
    check(launchEmbLayerNorm(arguments, nullptr), variant.name);
    check(cudaDeviceSynchronize(), variant.name);
    auto const y = yDevice.values();
    auto const quantized = quantizedDevice.values();
    for (int64_t row : {int64_t{0}, rows / 2, rows - 1})
    {
        size_t const start = static_cast<size_t>(row) * hidden;
        if (rows > 2 && row == rows / 2)
        {
            int32_t numbers = 0;
            for (int32_t i = 0; i < hidden; ++i)
            {
                numbers += variant.y && !std::isnan(toHost(y[start + i])) ? 1 : 0;
                numbers += variant.quantized && !isQuantizedNan(quantized[start + i], variant.quantizedType)
                               ? 1
                               : 0;
            }
            outcome.expectAtMost(numbers, 0.0, "numbers instead of NaN", rows, hidden, row);
            continue;
        }
        std::vector<double> sum(hidden);
        for (int table = 0; table < 3; ++table)
        {
            for (int32_t i = 0; i < hidden; ++i)
            {
                sum[i] += toHost(tables[table][static_cast<size_t>(ids[table][row]) * hidden + i]);
            }
        }
        auto const expected = normalizedRow(sum, gamma.data(), beta.data());
        if (variant.y)
        {
            outcome.expectAtMost(rowError(&y[start], expected), tolerance, variant.name, rows, hidden, row);
        }
        for (int32_t i = 0; variant.quantized && i < hidden; ++i)
        {
            double const factor = variant.factors ? factors[i] : 1.0;
            double const shift = toHost(beta[i]);
            double const terms = std::abs(expected[i] - shift) + std::abs(toHost(gamma[i])) + std::abs(shift);
            outcome.expectAtMost(halfSteps(quantized[start + i], expected[i] * factor / kOUT_SCALE,
                                     terms * factor / kOUT_SCALE, variant.quantizedType),
                variant.factors ? 1.004 : 1.002, variant.name, rows, hidden, row);
        }
    }
    outcome.countRun();
}

template <typename T, typename W>
void runType(Outcome& outcome, ElementType type, ElementType weightType, double tolerance)
{
    forEachShape(
        [&](int64_t rows, int32_t hidden)
        {
            for (Variant const& variant : kVARIANTS)
            {
                runShape<T, W>(outcome, variant, type, weightType, rows, hidden, tolerance);
            }
        });
}

} // namespace

int main()
{
    Outcome outcome;
    runType<float, float>(outcome, ElementType::kFLOAT, ElementType::kFLOAT, 1e-6);
    runType<__half, __half>(outcome, ElementType::kHALF, ElementType::kHALF, 6e-4);
    runType<__half, float>(outcome, ElementType::kHALF, ElementType::kFLOAT, 6e-4);
    runType<__nv_bfloat16, __nv_bfloat16>(outcome, ElementType::kBF16, ElementType::kBF16, 5e-3);
    runType<__nv_bfloat16, float>(outcome, ElementType::kBF16, ElementType::kFLOAT, 5e-3);
    return outcome.report();
}
